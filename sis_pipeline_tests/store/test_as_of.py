"""What was enrolled on a day as known at a moment: days of random changes through the real merge, undone here and there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from sis_pipeline.db.tables import student_aliases, sync_operations
from sis_pipeline.roster.changes import compensations
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.model import MERGED
from sis_pipeline.store import bulk
from sis_pipeline.store.identity import Identities
from sis_pipeline.store.publish import publish as publish_operation
from sis_pipeline.store.undo import Undoing
from sis_pipeline_tests.roster.rosters import Roster, laws, merge, publish
from sis_pipeline_tests.store.as_of import Key, Publication, Stay, enrolled, stays_known
from sis_pipeline_tests.store.conftest import YEAR, add_integration, good_snapshot, sis_student, uid

START = date(2025, 9, 1)
OPEN = {"pre_registered", "active"}
ENTRIES = [date(2025, 8, 18), date(2025, 8, 20), date(2025, 9, 3), date(2025, 10, 1)]
EXITS = [None, None, date(2025, 8, 18), date(2025, 9, 2), date(2025, 9, 4), date(2025, 12, 1)]
A_STAY = st.fixed_dictionaries({
    "school": st.sampled_from(["1", "2"]),
    "entry_date": st.sampled_from(ENTRIES),
    "exit_date": st.sampled_from(EXITS),
    "entry_code": st.sampled_from([None, "E1"]),
    "status": st.sampled_from(["active", "active", "active", "withdrawn", "graduated", "no_show"]),
})  # fmt: skip
A_DAY = st.lists(st.lists(A_STAY, max_size=2, unique_by=lambda it: (it["school"], it["entry_date"])), min_size=3, max_size=3)  # fmt: skip
DAYS = st.lists(st.tuples(A_DAY, st.booleans()), min_size=2, max_size=5)
"""What is delivered day by day, and whether it is undone in the evening."""

Tables = Mapping[str, pl.DataFrame]


def roster(day: Sequence[Sequence[Mapping[str, Any]]]) -> Roster:
    built = Roster().school("1").school("2")
    for number, stays in enumerate(day):
        names = {
            "first_name": f"First{number}",
            "last_name": f"Last{number}",
            "ssid": f"S{number}",
            "ssid_issuer": "TX",
        }
        built.student(str(number), school=None, **names)
        for place, stay in enumerate(stays):
            given_stay = dict(stay)
            built.stay(str(number), given_stay.pop("school"), sis_id=f"e-{number}-{place}", **given_stay)
    return built


def lived(days: Sequence[tuple[Any, bool]]) -> list[tuple[Publication, Tables]]:
    """Every publication, and the tables after it."""
    history: list[tuple[Publication, Tables]] = []
    tables: Tables = {}
    for number, (day, is_undone) in enumerate(days):
        before, own = tables, uid("operation", number)
        merged = merge(roster(day), tables, as_of=START + timedelta(number))
        events = merged.changes.with_columns(operation_id=pl.lit(own))
        tables = publish(tables, merged)
        history.append((Publication(own, events), tables))
        if is_undone and number:
            undo = uid("undo", number)
            tables = before
            history.append((Publication(undo, compensations(events, own, undo), undoes=own), tables))
    return history


def published(tables: Tables) -> dict[Key, tuple[Any, ...]]:
    return {
        (row["student_id"], row["school_id"], row["school_year"], row["entry_date"]): (
            row["entry_code"], row["exit_date"], row["exit_code"], row["status"] in OPEN,
        )
        for row in tables["enrollments"].iter_rows(named=True)
    }  # fmt: skip


def essence(stays: Mapping[Key, Stay]) -> dict[Key, tuple[Any, ...]]:
    return {key: (stay.entry_code, stay.exit_date, stay.exit_code, stay.is_open) for key, stay in stays.items()}


@laws(6)
@given(DAYS)
def test_what_the_ledger_knows_is_what_was_published_at_every_moment(days) -> None:
    """Also after an undo, which is as if the day had never happened."""
    history = lived(days)
    for number, (_, tables) in enumerate(history, 1):
        known = stays_known([one for one, _ in history[:number]])
        assert essence(known) == published(tables)


def test_a_transfer_tells_both_dates_and_a_return_both_schools() -> None:
    """The exit that a transfer implies is an event of no other kind, so the transfer has to tell it."""
    here = {"school": "1", "entry_date": ENTRIES[0], "exit_date": None, "entry_code": None, "status": "active"}
    left = here | {"exit_date": date(2025, 9, 2)}
    there = here | {"school": "2", "entry_date": date(2025, 9, 5)}
    history = lived([([[here], [], []], False), ([[left, there], [], []], False)])
    events = history[1][0].events
    assert events["kind"].to_list() == ["transfer"]
    assert essence(stays_known([one for one, _ in history])) == published(history[1][1])


def record(database, history: Sequence[Publication]) -> list[datetime]:
    """Write publications as they would be, an hour apart; when each was made."""
    moments = []
    with database.begin() as connection:
        for number, one in enumerate(history, 1):
            at = datetime(2025, 9, 1, tzinfo=UTC) + timedelta(hours=number)
            connection.execute(
                sync_operations.insert().values(
                    operation_id=one.operation_id, district="d1", school_year="2025-2026", epoch=number,
                    status="published", started_at=at, finished_at=at, undoes=one.undoes, inputs={},
                    published_before={}, base_epoch=number - 1, fingerprint=str(number),
                )
            )  # fmt: skip
            bulk.append(connection, MERGED["enrollment_changes"], one.events, scope={"district": "d1"})
            moments.append(at)
    return moments


def in_sql(database, at: datetime, student: str | None = None) -> dict[Key, Stay]:
    query = text(
        "select student_id::text, school_id::text, school_year, entry_date, entry_code, exit_date, exit_code, is_open,"
        " over_on from sis.stays_known_at('d1', :at, cast(:student as uuid))"
    )
    with database.connect() as connection:
        rows = connection.execute(query, {"at": at, "student": student}).all()
    found = {(row[0], row[1], row[2], row[3]): Stay(*row[4:]) for row in rows}
    assert len(found) == len(rows)
    return found


def enrolled_in_sql(database, day: date, at: datetime | None = None) -> set[Key]:
    known = ", :at" if at else ""
    query = text(
        "select student_id::text, school_id::text, school_year, entry_date"
        f" from sis.enrolled_as_of('d1', cast(:day as date){known})"
    )
    with database.connect() as connection:
        return {(row[0], row[1], row[2], row[3]) for row in connection.execute(query, {"day": day, "at": at})}


def drawn_days(count: int) -> list[list[tuple[Any, bool]]]:
    """The same examples in every run, without a database for each."""
    examples: list[list[tuple[Any, bool]]] = []

    @laws(count)
    @given(DAYS)
    def draw(days) -> None:
        examples.append(days)

    draw()
    return examples


def test_the_sql_says_the_same_at_every_moment_of_every_day(database) -> None:
    """What is known at a moment stays so whatever is published later: all is asked after all was published."""
    days = [day for days in drawn_days(4) for day in days]
    history = [one for one, _ in lived(days)]
    moments = record(database, history)
    asked = [date(2025, 8, 18), date(2025, 9, 2), date(2025, 9, 3), date(2025, 11, 1), date(2025, 12, 1)]
    for number, at in enumerate(moments, 1):
        known = stays_known(history[:number])
        assert in_sql(database, at) == known
        assert in_sql(database, at + timedelta(minutes=59)) == known
        day = asked[number % len(asked)]
        assert enrolled_in_sql(database, day, at) == set(enrolled(known, day))
    assert in_sql(database, moments[0] - timedelta(seconds=1)) == {}
    known = stays_known(history)
    assert known
    for student in {key[0] for key in known}:
        mine = {key: stay for key, stay in known.items() if key[0] == student}
        assert in_sql(database, moments[-1], student) == mine
    assert enrolled_in_sql(database, asked[3]) == set(enrolled(known, asked[3]))


def test_who_was_joined_since_is_one_and_was_two_before(database) -> None:
    day = roster([[{"school": "1", "entry_date": ENTRIES[0], "status": "active"}]] * 2 + [[]])
    merged = merge(day, as_of=START)
    [at] = record(
        database, [Publication(uid("operation"), merged.changes.with_columns(operation_id=pl.lit(uid("operation"))))]
    )
    one, two = sorted(merged.frames["enrollments"]["student_id"])
    later = at + timedelta(days=1)
    with database.begin() as connection:
        connection.execute(
            student_aliases.insert().values(
                district="d1", alias_id=two, student_id=one, records=[], operation_id=uid("join"), merged_at=later
            )
        )
    assert {key[0] for key in in_sql(database, at)} == {one, two}
    assert {key[0] for key in in_sql(database, later)} == {one}
    assert in_sql(database, later, one) == in_sql(database, later)
    assert in_sql(database, later, two) == {}


def test_an_ending_without_a_date_counts_until_it_shows(database) -> None:
    """A no-show was never there; whoever was gone when first seen, on no known day."""
    here = {"school": "1", "entry_date": ENTRIES[0], "status": "active"}
    stays = [[[here]] * 3, [[here | {"status": status}] for status in ("withdrawn", "no_show", "active")]]
    history = [one for one, _ in lived([(day, False) for day in stays])]
    moments = record(database, history)
    counted = [len(enrolled_in_sql(database, START + timedelta(days), moments[-1])) for days in (0, 1)]
    assert counted == [2, 1]
    assert len(enrolled_in_sql(database, START, moments[0])) == 3
    assert enrolled_in_sql(database, ENTRIES[0] - timedelta(1)) == set()
    assert enrolled_in_sql(database, date(2026, 7, 1)) == set(), "another school year"


def test_who_was_whom_stays_known_through_later_merges_and_splits(database, snapshots, merges) -> None:
    """Joined into one that is joined in turn, split off, and joined again by an undo: at each moment it is as it was then."""
    records = {"lincoln-ps": "7", "lincoln-ic": "70", "lincoln-sky": "700"}
    people, known = Identities(database), []
    by = {"actor": "ada", "reason": "the office knows"}

    def holders() -> dict[str, str]:
        with database.connect() as connection:
            rows = connection.execute(text("select integration, student_id::text from sis.student_links")).all()
        return {row.integration: row.student_id for row in rows}

    def who_is_enrolled(at: datetime | None = None) -> str:
        at_moment = ", :at" if at else ""
        query = text(f"select student_id::text from sis.stays_known_at('lincoln'{at_moment})")
        with database.connect() as connection:
            return connection.scalars(query, {"at": at}).one()

    def published() -> None:
        gathered = merges.gather("lincoln", YEAR)
        operation = merges.write_merged(gathered, merge_district(gathered.inputs))
        publish_operation(database, merges, operation)

    def note() -> None:
        with database.connect() as connection:
            known.append((connection.scalar(text("select sis.clock()")), who_is_enrolled(), holders()["lincoln-sky"]))

    def are_one(*pair: str) -> None:
        [near] = [
            one for one in people.near_matches(status=None) if {side.record[0] for side in one.sides} == set(pair)
        ]
        people.confirm(near.near_match_id, **by)
        published()
        note()

    stay = {"student_sis_id": "700", "school_sis_id": "1", "school_year": YEAR, "entry_date": date(2025, 8, 18),
            "entry_date_source": "sis", "enrollment_type": "primary", "status": "active", "grade_level": "07"}  # fmt: skip
    for integration, sis_id in records.items():
        if integration != "lincoln-ps":
            add_integration(database, integration)
        stays = [stay | {"sis_id": "e", "record_status": "active"}] if integration == "lincoln-sky" else []
        student = sis_student(sis_id, birth_date=date(2012, 3, 4))
        good_snapshot(snapshots, integration, students=[student], enrollments=stays)
        published()
    note()
    are_one("lincoln-ic", "lincoln-sky")
    are_one("lincoln-ps", "lincoln-ic")
    people.split(holders()["lincoln-sky"], ("lincoln-sky", "700"), **by)
    published()
    note()
    Undoing(database, merges).undo(merges.newest("lincoln", YEAR).operation_id, "ada", "one after all")
    note()
    then = [who for _, who, _ in known]
    assert (len(set(then)), then[3], then[4]) == (3, then[0], then[2])
    assert then == [holder for _, _, holder in known]
    assert [who_is_enrolled(at) for at, _, _ in known] == then
