"""The audit log can be added to and not changed; whoever changes it all the same is found, at the first changed row."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from alembic import command
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from sis_pipeline.db import audit, migrate
from sis_pipeline.db.audit import Chain, Entry, Head
from sis_pipeline.db.engine import engine_for
from sis_pipeline.db.tables import audit_log
from sis_pipeline_tests.forking import FORKS

MUTATIONS = 60


def fill(engine: Engine, operations: int = 12, districts: tuple[str, ...] = ("fernhollow", "*", "lincoln")) -> None:
    """Operations of one to three entries, in turn in every district."""
    for number in range(operations):
        district = districts[number % len(districts)]
        entries = [
            Entry("token.refresh", f"sis-{number}", district, {"n": number, "part": part, "who": 'Zoë "Q"\n\\'})
            for part in range(number % 3 + 1)
        ]
        with engine.begin() as connection:
            audit.append_all(connection, entries, actor="ada")


def walked(connection: Connection, heads: list[Head] | tuple[()] = (), **options) -> dict[str, Chain]:
    return {chain.district: chain for chain in audit.verify(connection, heads=heads, **options)}


@contextmanager
def forging(engine: Engine) -> Iterator[Connection]:
    """A transaction of somebody who owns the tables and switched the triggers off; nothing of it stays."""
    with engine.connect() as connection:
        connection.execute(text("alter table sis.audit_log disable trigger all"))
        connection.execute(text("alter table sis.audit_links disable trigger all"))
        yield connection
        connection.rollback()


# --- appending --------------------------------------------------------------------------------------------------------


def test_what_was_appended_is_whole(database):
    fill(database)
    with audit.standing_still(database) as connection:
        chains = walked(connection)
    assert {one.district: (one.links, one.rows, one.broken) for one in chains.values()} == {
        "*": (4, 8, None),
        "fernhollow": (4, 4, None),
        "lincoln": (4, 12, None),
    }


def test_one_operation_is_one_link_per_district(database):
    with database.begin() as connection:
        audit.append_all(connection, [Entry("a", "1", "x"), Entry("b", "2", "y"), Entry("c", "3", "x")], actor="ada")
        audit.append(connection, "d", "4", district="y", details={"n": 1})
    with database.connect() as connection:
        links = connection.execute(
            text("select district, link, jsonb_array_length(entries) from audit_links order by 1, 2")
        )
        assert [tuple(row) for row in links] == [("x", 1, 2), ("y", 1, 1), ("y", 2, 1)]
        assert [(head.district, head.link) for head in audit.heads(connection)] == [("x", 1), ("y", 2)]


def test_an_operation_without_entries_leaves_nothing(database):
    with database.begin() as connection:
        audit.append_all(connection, [])
    with database.connect() as connection:
        assert walked(connection) == {}


def test_what_is_rolled_back_leaves_neither_row_nor_link(database):
    fill(database, 3)
    with database.connect() as connection:
        audit.append(connection, "never", "happened", district="fernhollow")
        connection.rollback()
    fill(database, 3)
    with database.connect() as connection:
        assert {chain.broken for chain in walked(connection).values()} == {None}
        assert connection.scalar(text("select count(*) from audit_log where action = 'never'")) == 0


def test_reading_filters_and_gives_the_newest_first(database):
    fill(database, 6)
    with database.begin() as connection:
        audit.append(connection, "tokens", "sis-1", district="fernhollow", actor="bob")
    with database.connect() as connection:
        everything = audit.read(connection)
        assert [row["entry"] for row in everything] == sorted((row["entry"] for row in everything), reverse=True)
        assert {row["district"] for row in audit.read(connection, district="lincoln")} == {"lincoln"}
        assert {row["action"] for row in audit.read(connection, action="token")} == {"token.refresh"}
        assert [row["actor"] for row in audit.read(connection, action="tokens")] == ["bob"]
        assert {row["subject"] for row in audit.read(connection, subject="sis-1")} == {"sis-1"}
        assert len(audit.read(connection, limit=2)) == 2
        assert audit.read(connection, since=datetime.now(UTC) + timedelta(hours=1)) == []


CANONICAL = text("""
    select encode(sha256(convert_to(json_build_array(entry, district,
      to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), actor, action, subject, details::text
    )::text, 'UTF8')), 'hex') as own, l.entries -> 0 ->> 1 as kept
    from audit_log join audit_links l using (district) where entry = (l.entries -> 0 ->> 0)::bigint
    order by entry desc limit 1
""")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60)
@given(actor=texts.filter(bool), subject=texts, details=st.dictionaries(texts, values, max_size=4))
def test_a_digest_can_be_computed_with_sql_alone_whatever_the_row_holds(engine_of_module, actor, subject, details):
    with engine_of_module.connect() as connection:
        audit.append(connection, "a", subject, district="d", actor=actor, details=details)
        row = connection.execute(CANONICAL).one()
        assert row.own == row.kept
        assert walked(connection)["d"].broken is None
        connection.rollback()


@pytest.fixture(scope="module")
def engine_of_module(postgres: URL, _template: str) -> Iterator[Engine]:
    admin = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"create database audit_module template {_template}"))
    engine = engine_for(postgres.set(database="audit_module"))
    yield engine
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text("drop database audit_module with (force)"))
    admin.dispose()


# --- insert-only ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["audit_log", "audit_links"])
@pytest.mark.parametrize(
    "statement", ["update {} set district = 'other'", "delete from {}", "truncate {}", "delete from {} where false"]
)
def test_the_tables_refuse_their_owner(database, table, statement):
    fill(database, 1)
    with database.connect() as connection:
        before = connection.execute(text(f"select * from {table}")).all()
        with pytest.raises(DBAPIError) as refused:
            connection.execute(text(statement.format(table)))
        assert refused.value.orig.sqlstate == "42501"
        assert f"{table} is insert-only" in str(refused.value.orig)
        connection.rollback()
        assert connection.execute(text(f"select * from {table}")).all() == before


def test_rows_from_before_the_chains_become_their_first_link(postgres: URL):
    admin = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("create database audit_before"))
    engine = engine_for(postgres.set(database="audit_before"))
    try:
        with engine.begin() as connection:
            connection.execute(text("create schema sis"))
            command.upgrade(migrate._config(connection), "0001")
            connection.execute(
                audit_log.insert(),
                [
                    {"district": d, "actor": "zoë", "action": "a", "subject": '"\\\n\t\x7f', "details": {"ä": [1, 1.50, None, n]}}
                    for n, d in enumerate(("x", "y", "x", "*", "x"))
                ],
            )  # fmt: skip
        assert migrate.upgrade(engine)
        fill(engine, 2, ("x",))
        with engine.connect() as connection:
            chains = walked(connection)
            assert {name: (one.links, one.rows, one.broken) for name, one in chains.items()} == {
                "*": (2, 2, None),  # the upgrade itself is noted, too
                "x": (3, 6, None),
                "y": (1, 1, None),
            }
        with engine.begin() as connection:
            command.downgrade(migrate._config(connection), "0001")
            connection.execute(text("delete from sis.audit_log where district = 'y'"))
        assert migrate.upgrade(engine)
        with engine.connect() as connection:
            assert {name: (one.links, one.rows) for name, one in walked(connection).items()} == {
                "*": (2, 3),
                "x": (1, 6),
            }
            (upgrade, *_) = audit.read(connection, action="database.upgrade")
            assert (upgrade["subject"], upgrade["details"]) == (migrate.newest_revision(), {"from": "0001"})
    finally:
        engine.dispose()
        with admin.connect() as connection:
            connection.execute(text("drop database audit_before with (force)"))
        admin.dispose()


# --- what is changed all the same is found ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Forgery:
    """A change and what must be said of it: of which district, what, and the first entry or link of it."""

    district: str
    what: set[str]
    entry: int | None = None
    link: int | None = None


class Log:
    """The log as it is before a forgery: entries and links by district, and what a row or a link holds."""

    def __init__(self, connection: Connection, seed: random.Random) -> None:
        self.connection, self.seed = connection, seed
        rows = connection.execute(text("select district, entry from audit_log order by entry")).all()
        links = connection.execute(text("select district, link, entries from audit_links order by district, link"))
        self.entries: dict[str, list[int]] = {}
        for row in rows:
            self.entries.setdefault(row.district, []).append(row.entry)
        self.links: dict[str, dict[int, list[int]]] = {}
        for link in links:
            self.links.setdefault(link.district, {})[link.link] = [entry for entry, _ in link.entries]
        self.district = seed.choice(sorted(self.links))

    def run(self, sql: str, **bound: object) -> None:
        assert self.connection.execute(text(sql), bound).rowcount > 0, "the forgery changed nothing"

    def an_entry(self) -> int:
        return self.seed.choice(self.entries[self.district])

    def a_link(self, first: int = 1) -> int:
        return self.seed.choice([link for link in self.links[self.district] if link >= first])


def edit_a_row(log: Log) -> Forgery:
    entry = log.an_entry()
    change = log.seed.choice(
        [
            "actor = actor || 'x'", "action = 'token.revoke'", "subject = upper(subject)", "at = at + interval '1 microsecond'",
            "details = details || '{\"n\": 99}'", "details = '{}'", "at = 'infinity'",
        ]
    )  # fmt: skip
    log.run(f"update audit_log set {change} where entry = :entry", entry=entry)
    return Forgery(log.district, {"row altered"}, entry=entry)


def delete_a_row(log: Log) -> Forgery:
    entry = log.an_entry()
    log.run("delete from audit_log where entry = :entry", entry=entry)
    return Forgery(log.district, {"row missing"}, entry=entry)


def renumber_a_row(log: Log) -> Forgery:
    entry = log.an_entry()
    log.run("update audit_log set entry = 100000 where entry = :entry", entry=entry)
    return Forgery(log.district, {"row missing"}, entry=entry)


def move_a_row_to_another_district(log: Log) -> Forgery:
    entry = log.an_entry()
    log.run("update audit_log set district = 'elsewhere' where entry = :entry", entry=entry)
    return Forgery(log.district, {"row missing"}, entry=entry)


def swap_two_rows(log: Log) -> Forgery:
    first, second = sorted(log.seed.sample(log.entries[log.district], 2))
    log.run("update audit_log set entry = -1 where entry = :first", first=first)
    log.run("update audit_log set entry = :first where entry = :second", first=first, second=second)
    log.run("update audit_log set entry = :second where entry = -1", second=second)
    return Forgery(log.district, {"row altered"}, entry=first)


def slip_in_a_row(log: Log) -> Forgery:
    entry = log.seed.choice([0, -5, 200_000])
    log.run(
        "insert into audit_log (district, entry, actor, action, subject) values (:district, :entry, 'eve', 'a', 'b')",
        district=log.district,
        entry=entry,
    )
    return Forgery(log.district, {"row not in any link"}, entry=entry)


def edit_a_link(log: Log) -> Forgery:
    link = log.a_link()
    change = log.seed.choice(
        ["hash = 'ab' || hash", "previous = 'ab'", "entries = entries || '[[7, \"ab\"]]'", "entries = '{}'"]
    )
    log.run(f"update audit_links set {change} where district = :district and link = :link", district=log.district, link=link)  # fmt: skip
    return Forgery(log.district, {"link altered"}, link=link)


def delete_an_inner_link(log: Log) -> Forgery:
    link = log.seed.choice(sorted(log.links[log.district])[:-1])
    log.run("delete from audit_links where district = :district and link = :link", district=log.district, link=link)
    return Forgery(log.district, {"link missing"}, link=link)


def delete_the_last_link(log: Log) -> Forgery:
    link = max(log.links[log.district])
    log.run("delete from audit_links where district = :district and link = :link", district=log.district, link=link)
    return Forgery(log.district, {"chain cut", "row not in any link"}, link=link)


def swap_two_links(log: Log) -> Forgery:
    first, second = sorted(log.seed.sample(sorted(log.links[log.district]), 2))
    for before, after in ((first, -1), (second, first), (-1, second)):
        log.run(
            "update audit_links set link = :after where district = :district and link = :before",
            district=log.district,
            before=before,
            after=after,
        )
    return Forgery(log.district, {"link altered"}, link=first)


def slip_in_a_link(log: Log) -> Forgery:
    link = max(log.links[log.district]) + 1
    log.run(
        "insert into audit_links values (:district, :link, '[[1, \"ab\"]]', 'x', 'y')", district=log.district, link=link
    )
    return Forgery(log.district, {"link altered"}, link=link)


def rehash_one_link(log: Log) -> Forgery:
    """As good as anybody can who changes a row, its link, and not the links after it."""
    link = log.a_link()
    entry = log.links[log.district][link][0]
    log.run("update audit_log set subject = 'forged' where entry = :entry", entry=entry)
    rewrite(log.connection, log.district, link, link)
    last = link == max(log.links[log.district])
    what = "chain rewritten" if last else "link altered"
    return Forgery(log.district, {what}, link=link if last else link + 1)


def rewrite_the_rest(log: Log) -> Forgery:
    """Change a row and compute every later link anew: only a head kept elsewhere tells."""
    link = log.a_link()
    entry = log.links[log.district][link][0]
    log.run("update audit_log set subject = 'forged' where entry = :entry", entry=entry)
    last = max(log.links[log.district])
    rewrite(log.connection, log.district, link, last)
    return Forgery(log.district, {"chain rewritten"}, link=last)


def cut_the_end(log: Log) -> Forgery:
    """Delete the last links with all their rows: what is left is a whole chain."""
    first = log.a_link()
    for link, entries in log.links[log.district].items():
        if link >= first:
            log.run("delete from audit_links where district = :d and link = :link", d=log.district, link=link)
            log.run("delete from audit_log where entry = any(:entries)", entries=entries)
    return Forgery(log.district, {"chain cut"}, link=first)


def rewrite(connection: Connection, district: str, first: int, last: int) -> None:
    """Make links `first` to `last` fit the rows as they are now."""
    for number in range(first, last + 1):
        where = {"district": district, "link": number}
        entries = connection.scalar(text("select entries from audit_links where (district, link) = (:district, :link)"), where)  # fmt: skip
        before = connection.scalar(text("select hash from audit_links where (district, link) = (:district, :link - 1)"), where)  # fmt: skip
        rows = connection.execute(
            audit.select(*audit.ROW).where(audit_log.c.entry.in_([entry for entry, _ in entries]))
        )
        pairs = sorted([row.entry, audit.row_digest(row)] for row in rows)
        own = audit.link_hash(district, number, before or "", json.dumps(pairs))
        values = {**where, "pairs": json.dumps(pairs), "previous": before or "", "hash": own}
        connection.execute(
            text(
                "update audit_links set entries = cast(:pairs as jsonb), previous = :previous, hash = :hash "
                "where (district, link) = (:district, :link)"
            ),
            values,
        )


FORGERIES: tuple[Callable[[Log], Forgery], ...] = (
    edit_a_row, delete_a_row, renumber_a_row, move_a_row_to_another_district, swap_two_rows, slip_in_a_row, edit_a_link,
    delete_an_inner_link, delete_the_last_link, swap_two_links, slip_in_a_link, rehash_one_link, rewrite_the_rest,
    cut_the_end,
)  # fmt: skip
NEED_HEADS = {rewrite_the_rest, cut_the_end}
"""What leaves a chain that is whole in itself."""


@pytest.fixture
def log_of_many(database) -> Engine:
    fill(database, 24)
    return database


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_every_forgery_is_named_at_its_first_row_or_link(log_of_many, forge):
    for seed in range(-(-MUTATIONS // len(FORGERIES))):
        find(log_of_many, forge, seed)


def find(engine: Engine, forge: Callable[[Log], Forgery], seed: int) -> None:
    """Forge something, and see that exactly that is found, with the heads of before, and without."""
    with forging(engine) as connection:
        heads = audit.heads(connection)
        log = Log(connection, random.Random(seed))
        done = forge(log)
        chains = walked(connection, heads)
        broken = chains[done.district].broken
        assert broken is not None, f"{forge.__name__} {seed} was not found"
        assert broken.what in done.what, broken
        assert done.entry is None or broken.entry == done.entry, broken
        assert done.link is None or broken.link == done.link, broken
        others = {name for name, one in chains.items() if one.broken} - {done.district, "elsewhere"}
        assert not others
        without_heads = walked(connection).get(done.district)
        whole = without_heads is None or without_heads.broken is None
        assert whole == (forge in NEED_HEADS or (forge is rehash_one_link and broken.what == "chain rewritten"))


def test_older_heads_say_after_which_link_a_chain_was_rewritten(database):
    heads: list[Head] = []
    for _ in range(3):
        fill(database, 2, ("fernhollow",))
        with database.connect() as connection:
            heads += audit.heads(connection)
    with forging(database) as connection:
        connection.execute(
            text("update audit_log set subject = 'forged' where entry = (select max(entry) from audit_log)")
        )
        rewrite(connection, "fernhollow", 6, 6)
        broken = walked(connection, heads)["fernhollow"].broken
        assert broken is not None
        assert (broken.what, broken.link) == ("chain rewritten", 6)
        assert "after link 4" in broken.message


def test_a_chain_that_vanished_altogether_is_found_by_its_head(database):
    fill(database, 3)
    with forging(database) as connection:
        heads = audit.heads(connection)
        connection.execute(text("delete from audit_log where district = 'lincoln'"))
        connection.execute(text("delete from audit_links where district = 'lincoln'"))
        assert walked(connection)["fernhollow"].broken is None
        assert "lincoln" not in walked(connection)
        assert walked(connection, heads)["lincoln"].broken.what == "chain cut"


def test_the_newest_links_alone_are_walked_from_the_known_head(database):
    fill(database, 9)
    with database.connect() as connection:
        heads = audit.heads(connection)
    fill(database, 3)
    with forging(database) as connection:
        new = walked(connection, heads, newest_only=True)
        assert {one.links for one in new.values()} == {2}
        assert {one.broken for one in new.values()} == {None}
        connection.execute(text("update audit_log set actor = 'eve' where entry = 1"))
        assert {one.broken for one in walked(connection, heads, newest_only=True).values()} == {None}
        connection.execute(text("update audit_log set actor = 'eve' where entry = (select max(entry) from audit_log)"))
        assert [one.broken.what for one in walked(connection, heads, newest_only=True).values() if one.broken] == [
            "row altered"
        ]


def test_a_log_that_grows_while_it_is_walked_is_whole(database):
    fill(database, 300)
    done = threading.Event()
    writer = threading.Thread(target=lambda: [fill(database, 3) for _ in iter(done.is_set, True)])
    writer.start()
    try:
        for _ in range(5):
            with audit.standing_still(database) as connection:
                assert {one.broken for one in walked(connection).values()} == {None}
    finally:
        done.set()
        writer.join()
    with database.connect() as connection:
        assert connection.scalar(text("select count(*) from audit_links")) > 300


# --- many at once -----------------------------------------------------------------------------------------------------


def test_writers_of_other_districts_do_not_wait(database):
    with database.connect() as one, database.connect() as other:
        audit.append(one, "a", "b", district="fernhollow")
        other.execute(text("set local lock_timeout = '1s'"))
        audit.append(other, "a", "b", district="lincoln")
        other.commit()
        other.execute(text("set local lock_timeout = '50ms'"))
        with pytest.raises(DBAPIError) as waited:
            audit.append(other, "a", "b", district="fernhollow")
        assert waited.value.orig.sqlstate == "55P03"
        other.rollback()
        one.commit()


def _append_many(url: str, number: int, operations: int) -> None:
    """Rows of two districts per operation, named in this process's own order; a row lock before them as in real work."""
    engine = engine_for(make_url(url))
    seed = random.Random(number)
    for operation in range(operations):
        districts = seed.sample(["a", "b", "c", "d"], 2)
        with engine.begin() as connection:
            connection.execute(
                text("select * from rate_limits where limit_key = :key for update"),
                {"key": f"shared {seed.randrange(2)}"},
            )
            audit.append_all(
                connection,
                [Entry("work", f"{number}-{operation}", district) for district in districts],
                actor=f"p{number}",
            )
    engine.dispose()


def test_eight_processes_make_whole_chains_without_a_deadlock(database, database_url: URL):
    processes, operations = 8, 25
    with database.begin() as connection:
        for key in ("shared 0", "shared 1"):
            connection.execute(
                text("insert into rate_limits (limit_key, next_free) values (:key, now())"), {"key": key}
            )
    url = database_url.render_as_string(hide_password=False)
    workers = [FORKS.Process(target=_append_many, args=(url, number, operations)) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * processes
    with audit.standing_still(database) as connection:
        chains = walked(connection)
        assert connection.scalar(text("select deadlocks from pg_stat_database where datname = current_database()")) == 0
    assert sum(one.rows for one in chains.values()) == 2 * processes * operations
    assert {one.broken for one in chains.values()} == {None}


def test_appending_takes_milliseconds(database):
    fill(database, 5, ("fernhollow",))
    took = []
    for number in range(50):
        with database.begin() as connection:
            began = time.perf_counter()
            audit.append(connection, "a", str(number), district="fernhollow")
            took.append(time.perf_counter() - began)
    assert sorted(took)[25] < 0.02, f"median {sorted(took)[25] * 1000:.1f} ms"
