"""Modes 15 to 26: what an enrollment is when its dates, codes and places are not as simple as hoped."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pandas as pd
import polars as pl
import pytest

from sis_pipeline.roster.contract import IntegrationInput, MergedRoster
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.statewide import across_districts, same_children
from sis_pipeline.roster.validate import validate
from sis_pipeline_tests.roster.rosters import DAY_1, DAY_2, YEAR, Roster, events, loaded, merge, publish, rows
from sis_pipeline_tests.roster.test_district import changed, district, event, second_day, student_of
from sis_pipeline_tests.store.as_of import Publication, stays_known

LAST_YEAR = "2024-2025"


def stays_of(merged: MergedRoster, tables: dict[str, pl.DataFrame], sis_id: str, *columns: str) -> list[Any]:
    return rows(merged.frames["enrollments"].filter(pl.col("student_id") == student_of(tables, sis_id)), *columns)


def test_15_a_no_show_is_no_withdrawal() -> None:
    tables = loaded(district())
    merged = merge(changed(district(), "enrollments", "e-s1-1", exit_date="2025-08-18", status="withdrawn"), tables)
    assert events(merged) == [("no_show", "explicit_exit")]
    assert stays_of(merged, tables, "s1", "status") == ["no_show"]

    never = district().student("new", last_name="New", stay={"status": "no_show", "exit_date": "2025-08-18"})
    assert events(merge(never, tables, as_of=DAY_2)) == [("no_show", "explicit_exit")], "nobody enrolled or left"


def test_16_who_is_registered_ahead_begins_on_the_day() -> None:
    roster = district().student("early", last_name="Early", stay={"entry_date": "2025-10-02"})
    tables = loaded(roster, as_of=DAY_1)
    assert rows(tables["enrollments"].filter(pl.col("status") == "pre_registered"), "entry_date") == [DAY_2]
    merged = merge(roster, tables, as_of=DAY_2)
    assert stays_of(merged, tables, "early", "status") == ["active"]
    assert merged.changes.is_empty(), "the event of the registration had the day"


def test_16_who_is_registered_ahead_begins_on_the_day_also_where_no_later_reading_names_them() -> None:
    roster = district().student("early", last_name="Early", stay={"entry_date": "2025-10-02"})
    tables = loaded(roster, as_of=DAY_1)
    delta = {"a": IntegrationInput(completeness="delta")}
    merged = merge(roster.without("early"), tables, as_of=DAY_2, integrations=delta)
    assert stays_of(merged, tables, "early", "status") == ["active"]
    assert merged.changes.is_empty()


@pytest.mark.parametrize("completeness", ["complete", "partial", "delta"])
def test_17_a_corrected_date_amends_the_enrollment_that_it_is_about(completeness: Any) -> None:
    """Also where the enrollment is named by its date, and the reading can't prove that the former name is gone."""
    tables = loaded(district())
    corrected = changed(district(), "enrollments", "e-s1-1", sis_id="re-sent", entry_date="2025-08-20")
    parts = {"a": IntegrationInput(completeness=completeness)}
    merged = merge(corrected, tables, as_of=DAY_2, integrations=parts)
    found = event(merged)
    assert (found["kind"], merged.changes.height, merged.frames["enrollments"].height) == ("amend", 1, 40)
    assert (found["before"]["entry_date"], found["after"]["entry_date"]) == ("2025-08-18", "2025-08-20")


def test_18_an_exit_before_the_entry_is_set_aside_and_takes_nobody_away() -> None:
    stay = {
        "sis_id": "e-s1-1", "student_sis_id": "s1", "school_sis_id": "school-1", "school_year": YEAR,
        "entry_date": "2025-08-18", "entry_date_source": "sis", "enrollment_type": "primary", "status": "withdrawn",
        "record_status": "active",
    }  # fmt: skip
    checked = validate("enrollments", pd.DataFrame([{**stay, "exit_date": "2025-08-11"}], dtype="str"))
    assert rows(pl.from_pandas(checked.rejected), "column", "reason") == [("exit_date", "before the entry date")]
    assert checked.frame.empty

    tables, without = loaded(district()), district()
    without.rows["enrollments"] = [row for row in without.rows["enrollments"] if row["sis_id"] != "e-s1-1"]
    aside = {"enrollments": pl.DataFrame({"integration": ["a"], "sis_id": ["e-s1-1"]})}
    merged = merge(without, tables, as_of=DAY_2, quarantined=aside)
    assert merged.changes.is_empty(), "a row that is set aside is there, so nobody is absent"
    assert stays_of(merged, tables, "s1", "status") == ["active"]

    one_day = validate("enrollments", pd.DataFrame([{**stay, "exit_date": "2025-08-18"}], dtype="str"))
    assert (len(one_day.frame), len(one_day.rejected)) == (1, 0), "a stay of no day is a no-show, see 15"


def test_19_of_stays_that_overlap_in_one_school_one_is_primary() -> None:
    tables = loaded(district())
    merged = merge(district().stay("s1", "1", sis_id="again", entry_date="2025-09-10"), tables, as_of=DAY_2)
    assert stays_of(merged, tables, "s1", "enrollment_type", "status") == [
        ("primary", "active"),
        ("secondary", "active"),
    ]
    who = merged.frames["student_years"].filter(pl.col("student_id") == student_of(tables, "s1"))
    assert (who.height, merged.stats.students) == (1, 40), "the child is counted once"
    assert merged.stats.irregular == {"a": {"overlapping": 1}}, "and it is told"

    after = district().stay("s1", "1", sis_id="again", entry_date="2025-09-10")
    earlier = changed(after, "enrollments", "e-s1-1", exit_date="2025-09-10", status="withdrawn")
    assert merge(earlier, tables, as_of=DAY_2).stats.irregular == {}, "one after the other is none"


def test_20_a_second_school_is_a_second_enrollment_and_no_transfer() -> None:
    tables = loaded(district())
    second = district().stay("s1", "2", sis_id="second", entry_date="2025-10-02", enrollment_type="secondary")
    merged = merge(second, tables, as_of=DAY_2)
    assert events(merged) == [("enroll", "new_record")]
    assert stays_of(merged, tables, "s1", "enrollment_type", "status") == [
        ("primary", "active"),
        ("secondary", "active"),
    ]

    both = district().stay("s1", "2", sis_id="second", entry_date="2025-10-02", enrollment_type="primary")
    irregular = merge(both, tables, as_of=DAY_2)
    found = stays_of(irregular, tables, "s1", "enrollment_type")
    assert sorted(found) == ["primary", "secondary"], "two that call themselves primary are one primary"
    assert events(irregular) == [("enroll", "new_record")], "an anomaly is no transfer"
    assert (irregular.stats.irregular, merged.stats.irregular) == ({"a": {"second_primary": 1}}, {}), "and it is told"

    primary = {"enrollment_type": "primary"}
    of_two = district().stay("s1", "1", sis_id="first", **primary).school("2", "b")
    of_two = of_two.student("b1", integration="b", school="2", last_name="Name1", ssid="001", stay=primary)
    merged = merge(of_two)
    assert (merged.stats.matched, merged.stats.irregular) == (1, {}), "each system knows its own only"


def test_23_a_stint_that_is_over_never_outranks_the_one_that_runs() -> None:
    """Listed last, entered later, of a system with priority, or of last year: who attends is active."""
    over = {"exit_date": "2025-09-20", "status": "withdrawn"}
    roster = (
        district()
        .school("9", "0-first")
        .student("f1", integration="0-first", school="9", last_name="Name1", ssid="001", stay={"entry_date": "2025-09-01", **over})
        .stay("s1", "2", sis_id="short", entry_date="2025-09-01", **over)
        .stay("s1", "2", sis_id="last-year", school_year=LAST_YEAR, entry_date="2024-08-18", exit_date="2025-06-01", status="withdrawn")
    )  # fmt: skip
    merged = merge(roster, as_of=DAY_2)
    tables = publish({}, merged)
    student = student_of(tables, "s1")
    assert student == student_of(tables, "f1", "0-first")
    year = merged.frames["student_years"].filter(pl.col("student_id") == student)
    school = tables["schools"].filter(pl.col("school_number") == "1")["school_id"].item()
    assert rows(year, "enrollment_status", "school_id") == [("active", school)]


def taught(lead: str, *others: str) -> Roster:
    """A section of 20 students, with a teacher of record and others beside."""
    roster = district().section("m", *(f"s{number}" for number in range(1, 40, 2)))
    for number, teacher in enumerate((lead, *others)):
        roster.add("staff", sis_id=teacher, last_name=teacher.title(), email=f"{teacher}@x.example")
        roster.add(
            "section_enrollments", sis_id=f"m-{teacher}", section_sis_id="m", person_sis_id=teacher, role="teacher",
            is_primary=number == 0, begin_date="2025-08-18",
        )  # fmt: skip
    return roster


def test_25_a_class_that_gets_another_teacher_keeps_its_students() -> None:
    tables = loaded(taught("hill", "reyes"))
    merged = merge(taught("moss", "reyes"), tables, as_of=DAY_2)
    frames = merged.frames
    who = dict(frames["staff"].select("staff_id", "last_name").iter_rows()) | dict(
        tables["staff"].select("staff_id", "last_name").iter_rows()
    )
    assert [who[teacher] for teacher in frames["sections"]["teacher_id"]] == ["Moss"], "who is of record is said"
    seats = frames["section_enrollments"]
    teaching = seats.filter(pl.col("role") == "teacher").select("person_id", "end_date")
    assert {who[person]: end for person, end in teaching.iter_rows()} == {"Hill": DAY_2, "Moss": None, "Reyes": None}
    students = seats.filter(pl.col("role") == "student")
    assert (students.height, students["end_date"].null_count(), merged.changes.height) == (20, 20, 0)


def test_26_a_row_belongs_to_its_own_year_whichever_delivery_brings_it() -> None:
    """Last year's stay and next year's, in this year's delivery: counted, left out, and published by their own year."""
    roster = district()
    for year, day in ((LAST_YEAR, "2024-08-18"), ("2026-2027", "2026-07-06")):
        roster.stay("s1", "2", sis_id=f"of-{year}", school_year=year, entry_date=day)
    merged = merge(roster, as_of=DAY_1)
    assert (merged.stats.other_year_rows, merged.stats.enrollments) == (2, 40)
    tables = publish({}, merged)

    own = Roster("2026-2027")
    own.rows = roster.rows
    following = merge(own, tables, as_of=date(2026, 8, 1))
    assert stays_of(following, tables, "s1", "school_year", "entry_date") == [("2026-2027", date(2026, 7, 6))]
    assert publish(tables, following, "2026-2027")["enrollments"].filter(school_year=YEAR).equals(tables["enrollments"])


def test_26_a_section_belongs_to_the_year_of_its_terms() -> None:
    """Last year's class in this year's delivery: counted with who sits in it, left out, and published by its own year."""
    for of_last_year, named in ((2, '["then"]'), (0, '["then", "now"]'), (0, '["unheard of"]'), (0, None)):
        roster = district().add("academic_sessions", sis_id="now", start_date="2025-08-18", end_date="2026-06-10")
        then = {"start_date": "2024-08-18", "end_date": "2025-06-10", "school_year": LAST_YEAR}
        roster.add("academic_sessions", sis_id="then", **then).section("m", "s1", session_sis_ids=named)
        merged = merge(roster, loaded(district()), as_of=DAY_2)
        assert merged.stats.other_year_rows == of_last_year
        here = (merged.frames["sections"].height, merged.frames["section_enrollments"].height)
        assert (here, events(merged)) == (((0, 0), []) if of_last_year else ((1, 1), [("section_add", "new_record")]))

        own = Roster(LAST_YEAR)
        own.rows = roster.rows
        assert merge(own).frames["sections"]["school_year"].to_list() == [LAST_YEAR]


def test_22_a_new_enrollment_at_the_same_school_the_next_day_is_a_correction() -> None:
    """A change of programme: the old row ends, a new one begins. Nobody left."""
    for entered in ("2025-10-01", "2025-10-02"):
        roster = changed(
            district(), "enrollments", "e-s1-1", exit_date="2025-10-01", exit_code="P1", status="withdrawn"
        ).stay("s1", "1", sis_id="again", entry_date=entered, entry_code="P2")
        merged = second_day(district(), roster)
        assert events(merged) == [("amend", "explicit_exit")]
        found = event(merged)
        assert (found["before"]["status"], found["after"]["entry_code"]) == ("active", "P2")
        assert found["after"]["other_stay"]["exit_code"] == "P1", "both rows are told"
        first = merge(district()).changes
        known = stays_known([Publication("1", first), Publication("2", merged.changes)])
        mine = sorted((key[3], stay.is_open) for key, stay in known.items() if key[0] == found["student_id"])
        assert mine == [(date(2025, 8, 18), False), (date.fromisoformat(entered), True)], "as of any day"
        assert merge(roster, publish(loaded(district()), merged), as_of=DAY_2).changes.is_empty()

    left = changed(district(), "enrollments", "e-s1-1", exit_date="2025-09-01", status="withdrawn")
    later = changed(left, "enrollments", "e-s1-1").stay("s1", "1", sis_id="again", entry_date="2025-10-02")
    assert events(second_day(left, later)) == [("re_enter", "new_record")], "who was away comes back"


def of_term(term: str, *students: str) -> Roster:
    """One section id, of mathematics in the fall and of art in the spring."""
    roster = district().add("courses", sis_id="t1-course").add("courses", sis_id="t2-course")
    roster.add("academic_sessions", sis_id="t1", start_date="2025-08-18", end_date="2025-12-20")
    roster.add("academic_sessions", sis_id="t2", start_date="2026-01-05", end_date="2026-06-10")
    roster.section("m", *students, session_sis_ids=f'["{term}"]', course_sis_id=f"{term}-course")
    for row in roster.rows["section_enrollments"]:
        row["begin_date"] = "2025-08-18" if term == "t1" else "2026-01-05"
    return roster


def test_24_a_section_id_that_is_used_again_is_another_section() -> None:
    day = date(2026, 1, 6)
    tables = loaded(of_term("t1", "s1", "s3"))
    merged = merge(of_term("t2", "s3", "s5"), tables, as_of=day)
    assert events(merged) == [("section_add", "new_record")] * 2, "two take art, nobody drops mathematics"
    assert merged.held == ()
    after = publish(tables, merged)
    sections = after["sections"].sort("start_date")
    assert (sections["section_id"].n_unique(), sections["course_id"].n_unique()) == (2, 2)
    assert sections["section_id"][0] == tables["sections"]["section_id"].item(), "the one of the fall keeps its id"

    fall, spring = sections["section_id"]
    seats = after["section_enrollments"].select("section_id", "person_id").rows()
    by_name = {name: student_of(tables, name) for name in ("s1", "s3", "s5")}
    assert set(seats) == {
        (fall, by_name["s1"]),
        (fall, by_name["s3"]),
        (spring, by_name["s3"]),
        (spring, by_name["s5"]),
    }
    again = merge(of_term("t2", "s3", "s5"), after, as_of=day)
    assert again.changes.is_empty()
    assert publish(after, again)["sections"].equals(after["sections"])


def of_two_districts(*published: tuple[str, Roster]) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, MergedRoster]]:
    """Districts that are merged apart, and their students and enrollments together."""
    merged = {name: merge_district(replace(roster.inputs(as_of=DAY_2), district=name)) for name, roster in published}
    tables = ("students", "enrollments")
    people, stays = (pl.concat([one.frames[table] for one in merged.values()]) for table in tables)
    return people, stays, merged


def test_21_a_transfer_to_another_district_is_paired_by_the_state_id_and_changes_neither_ledger() -> None:
    came = {"entry_date": "2025-10-02"}
    over = {"exit_date": "2025-10-01", "exit_code": "T2", "status": "withdrawn"}
    north = district(4).student("gone", ssid="77", first_name="Wren", stay=over)
    south = Roster().school("9").student("new", school="9", ssid="77", first_name="Wren", stay=came)
    people, stays, merged = of_two_districts(("north", north), ("south", south))
    links = same_children(people)
    assert rows(links, "district", "other_district", "decision") == [("north", "south", "match")]
    found = across_districts(links, stays, DAY_2)
    assert rows(found, "kind", "district", "exit_date", "other_district", "entry_date") == [
        ("transfer", "north", DAY_1, "south", DAY_2)
    ]
    two = {found["student_id"].item(), found["other_student_id"].item()}
    assert len(two) == 2, "a record in each district"
    assert "transfer" not in {kind for one in merged.values() for kind in one.changes["kind"]}, (
        "each tells its own half"
    )

    both = south.student("both", school="9", ssid="001", last_name="Name1", stay=came)
    people, stays, _ = of_two_districts(("north", north), ("south", both))
    found = across_districts(same_children(people), stays, DAY_2)
    assert rows(found, "kind", "district", "other_district") == [
        ("concurrent", "north", "south"),
        ("transfer", "north", "south"),
    ], "who is active in both is reported, and never moved"

    other = Roster().school("9").student("new", school="9", ssid="77", first_name="Robin", stay=came)
    people, stays, _ = of_two_districts(("north", north), ("south", other))
    links = same_children(people)
    assert rows(links, "decision") == ["near_match"], "a number alone makes nobody one child"
    assert across_districts(links, stays, DAY_2).is_empty()
