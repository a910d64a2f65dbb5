"""One child in several districts: whether this installation looks for that, and what it found, kept beside the rosters.
Who is one child and who went over is decided in roster.statewide; no district's roster or ledger changes by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    any_,
    bindparam,
    delete,
    literal,
    or_,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, UUID

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import statewide_links, statewide_matching, statewide_transfers
from sis_pipeline.roster.model import MERGED, Kind
from sis_pipeline.roster.statewide import LINKS, PEOPLE, SIDES, STAYS, TRANSFERS, across_districts, same_children
from sis_pipeline.store import bulk
from sis_pipeline.store.guarding import today_of
from sis_pipeline.store.locks import TIMEOUTS, lock_key

SHARED = """
select s.* from sis.students s where exists (
  select from sis.students o where o.ssid = s.ssid and o.district <> s.district)
"""
OF_DISTRICT = """
 and s.ssid in (
  select m.ssid from sis.students m where m.district = %s
  union select b.ssid from sis.statewide_links l join sis.students b on b.student_id = l.other_student_id where l.district = %s
  union select b.ssid from sis.statewide_links l join sis.students b on b.student_id = l.student_id where l.other_district = %s)
"""
"""Who has a number that a student of the district has, or had when it was last compared: everybody whose transfers may be
others now, in third districts too."""
STAYS_OF = "select * from sis.enrollments where student_id = any(%s::uuid[])"


@dataclass(frozen=True, slots=True)
class Matching:
    """Whether students of several districts are compared; version 0 is that of an installation that never said so."""

    version: int = 0
    enabled: bool = False
    set_by: str | None = None
    reason: str | None = None
    set_at: datetime | None = None


class Statewide:
    """The matching across the districts of this installation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def matching(self) -> Matching:
        with self._engine.connect() as connection:
            return _newest(connection)

    def set(self, *, enabled: bool, actor: str, reason: str) -> tuple[Matching, dict[str, int]]:
        """Begin to compare the students of all districts, at once and with every publication, or stop and forget what was
        found; and the rows that there are now. Where it is so already, nothing is kept. Raises ConfigError without a
        reason."""
        if not (reason.strip() and actor.strip()):
            raise ConfigError(
                "Whether districts are compared needs who says so and why.",
                code="config.statewide_reason",
                advice="Give both, and run it again.",
            )
        with self._engine.begin() as connection:
            for name, value in TIMEOUTS.items():
                connection.execute(text("select set_config(:name, :value, true)"), {"name": name, "value": value})
            _lock(connection, "matching")  # publications that did not know of it have committed, and are seen
            hold_still(connection)
            old = _newest(connection)
            if old.enabled != enabled:
                values = {"version": old.version + 1, "enabled": enabled, "set_by": actor, "reason": reason}
                connection.execute(statewide_matching.insert().values(values))
                _compare(connection, enabled=enabled)
                # behind the comparison: until the end, nobody else can write to the chain of all districts
                audit.append(
                    connection,
                    "statewide.on" if enabled else "statewide.off",
                    "districts",
                    district=audit.EVERYWHERE,
                    actor=actor,
                    details={"version": old.version + 1, "reason": reason},
                )
            return _newest(connection), _counts(connection)


def follow(connection: Connection, district: str) -> None:
    """Bring what is known across districts to what a district publishes, in the same transaction.

    Two districts that publish at once do this one after the other, so that the later one sees both.
    """
    _lock(connection, "matching", shared=True)
    if _newest(connection).enabled:
        hold_still(connection)
        _compare(connection, district)


def hold_still(connection: Connection) -> None:
    """Wait until nobody compares students across districts, and let nobody begin until the transaction ends: a comparison
    that had read a student would link the student after an erasure. A district's own lock is taken first."""
    _lock(connection, "following")


def _lock(connection: Connection, what: str, *, shared: bool = False) -> None:
    statement = f"select pg_advisory_xact_lock{'_shared' if shared else ''}(:key)"
    connection.execute(text(statement), {"key": lock_key("statewide", what)})


def _newest(connection: Connection) -> Matching:
    query = select(statewide_matching).order_by(statewide_matching.c.version.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return Matching(*row) if row else Matching()


def _counts(connection: Connection) -> dict[str, int]:
    query = """
    select decision as what, count(*) as number from sis.statewide_links group by 1
    union all select kind, count(*) from sis.statewide_transfers group by 1 order by 1
    """
    return {row.what: row.number for row in connection.execute(text(query))}


def _compare(connection: Connection, district: str | None = None, *, enabled: bool = True) -> None:
    """Compare all districts, or one with all others; if not `enabled` there is nothing to be known."""
    links, transfers, people = pl.DataFrame(schema=LINKS), pl.DataFrame(schema=TRANSFERS), pl.DataFrame()
    if enabled:
        shared, asked = (SHARED + OF_DISTRICT, [district] * 3) if district else (SHARED, [])
        people = _read(connection, "students", PEOPLE, shared, asked)
        links = same_children(people)
        ids = pl.concat([links["student_id"], links["other_student_id"]]).unique().to_list()
        stays = _read(connection, "enrollments", STAYS, STAYS_OF, [ids])
        transfers = across_districts(links, stays, today_of(connection))
    for table, key, frame in ((statewide_links, SIDES, links), (statewide_transfers, ["transfer_id"], transfers)):
        _bring(
            connection, table, key, frame, _of(table, district, people["student_id"].to_list()) if district else true()
        )


def _of(table: Table, district: str, people: Sequence[str]) -> ColumnElement[bool]:
    """The rows of a district, and those of people in other ones who were compared with it."""
    ids = literal(list(people), ARRAY(UUID(as_uuid=False)))
    ours = [table.c[f"{side}district"] == district for side in ("", "other_")]
    theirs = [table.c[f"{side}student_id"] == any_(ids) for side in ("", "other_")]
    return or_(*ours, *theirs)


def _read(
    connection: Connection, name: str, columns: Iterable[str], query: str, parameters: Sequence[object]
) -> pl.DataFrame:
    kinds: Mapping[str, Kind] = {column: MERGED[name][column].kind for column in columns}
    return bulk.copy_out(connection, query, kinds, parameters)


def _bring(
    connection: Connection, table: Table, key: Sequence[str], frame: pl.DataFrame, scope: ColumnElement[bool]
) -> None:
    """Make the rows of the scope those of the frame; what is there already keeps when it was found."""
    columns = [table.c[name] for name in frame.columns]
    there = {tuple(row) for row in connection.execute(select(*columns).where(scope))}
    wanted = set(frame.iter_rows())
    gone, fresh = (
        [dict(zip(frame.columns, row, strict=True)) for row in rows] for rows in (there - wanted, wanted - there)
    )
    if gone:
        same = [table.c[name] == bindparam(f"of_{name}") for name in key]
        connection.execute(delete(table).where(*same), [{f"of_{name}": row[name] for name in key} for row in gone])
    if fresh:
        connection.execute(table.insert(), fresh)
