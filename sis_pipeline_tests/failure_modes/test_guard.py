"""Modes 1, 2 and 29: when much goes at once, and when what is named is not there."""

from __future__ import annotations

from datetime import date

from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.validate import quarantine_dangling, validate
from sis_pipeline_tests.roster.rosters import DAY_2, YEAR, Roster, events, loaded, merge, publish
from sis_pipeline_tests.roster.test_district import changed, district, enrollment_holds

NEXT = SchoolYear(SchoolYear.parse(YEAR).start + 1).key


def with_calendar() -> Roster:
    return district().add("academic_sessions", sis_id="y", start_date="2025-08-18", end_date="2026-06-19")


def test_01_a_summer_rollover_moves_nobody() -> None:
    """The system shows next year's schools on 18 June, and nothing of this year any more."""
    tables = loaded(with_calendar())
    rolled = with_calendar()
    for row in rolled.rows["enrollments"]:
        other = "school-2" if row["school_sis_id"] == "school-1" else "school-1"
        row.update(sis_id=f"next-{row['sis_id']}", school_sis_id=other, school_year=NEXT, entry_date="2026-08-17")
    day = date(2026, 6, 18)
    merged = merge(rolled, tables, as_of=day)
    assert enrollment_holds(merged) == [("absences between two school years, until 2026-08-18", 40)]
    assert merged.changes.is_empty()
    assert publish(tables, merged)["enrollments"].equals(tables["enrollments"]), "the last good roster is served"

    stated = changed(with_calendar(), "enrollments", "e-s1-1", status="withdrawn", exit_date="2026-06-10")
    assert events(merge(stated, tables, as_of=day)) == [("withdraw", "explicit_exit")], "a stated exit flows on"


def in_terms(fall: tuple[str, ...], spring: tuple[str, ...]) -> Roster:
    """The district, with a section of the fall and one of the spring, and who sits in them."""
    roster = district().add("academic_sessions", sis_id="t1", start_date="2025-08-18", end_date="2025-12-20")
    roster.add("academic_sessions", sis_id="t2", start_date="2026-01-05", end_date="2026-06-10")
    roster.section("fall", *fall, session_sis_ids='["t1"]').section("spring", *spring, session_sis_ids='["t2"]')
    for row in roster.rows.get("section_enrollments", []):
        if row["section_sis_id"] == "spring":
            row["begin_date"] = "2026-01-05"
    return roster


def test_02_a_change_of_term_drops_seats_and_no_students() -> None:
    everybody = tuple(f"s{number}" for number in range(1, 40, 2))
    tables = loaded(in_terms(everybody, ()))
    turned = merge(in_terms((), everybody), tables, as_of=date(2026, 1, 6))
    assert events(turned) == [("section_add", "new_record")] * 20
    assert turned.held == (), "whose term is over is nobody's loss"

    emptied = merge(in_terms((), ()), tables, as_of=DAY_2)
    assert {(hold.entity, hold.removals) for hold in emptied.held} == {("section_enrollments", 20)}
    assert emptied.changes.is_empty(), "in the middle of the term the seats wait, and the enrollments stay"


def test_29_what_is_named_but_not_there_costs_its_own_rows_and_is_told_once() -> None:
    """Twenty seats name a section that the system no longer has: one finding; the students stay."""
    made = district().section("m", *(f"s{number}" for number in range(20)))
    frames = {}
    for entity, given in made.rows.items():
        names = [{name: value for name, value in row.items() if name != "integration"} for row in given]
        filled = made.records()[entity].drop("integration", "snapshot_id").to_pandas().astype("str")
        assert len(names) == len(filled)
        frames[entity] = validate(entity, filled.where(filled != "nan")).frame
    frames["sections"] = frames["sections"].iloc[:0]
    found = quarantine_dangling(frames)
    assert {entity: len(lines) for entity, lines in found.removed.items()} == {"section_enrollments": 20}
    assert set(found.removed["section_enrollments"]["reason"]) == {"refers to sections that are not there"}
    assert (len(found.frames["students"]), len(found.frames["enrollments"])) == (40, 40)
