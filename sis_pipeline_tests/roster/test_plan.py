"""What a plan says of literal rosters, and that it is exactly what a publication then does to the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl
import pytest

from sis_pipeline.roster.contract import IntegrationInput
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.frames import empty
from sis_pipeline.roster.guard import Ruling, Rulings
from sis_pipeline.roster.model import MERGED
from sis_pipeline.roster.near import near_match_id
from sis_pipeline.roster.plan import NEAR, Counts, Plan, Standing, StoredHold, plan_publication
from sis_pipeline_tests.roster.rosters import DAY_2, Roster, loaded, merge, of_year, publish, rows

NAMES = ("Bo", "Cy", "Di", "Ed", "Fay", "Gus", "Hal", "Ivy", "Jan", "Kim", "Lou", "Mia")


def day_1() -> Roster:
    """Twelve students at Pine, of whom `b` knows two as well and says another phone of one."""
    roster = Roster().school("1").school("2").school("1", "b")
    for place, name in enumerate(NAMES):
        roster.student(
            f"s{place}", first_name=name, ssid=f"{place:010d}", ssid_issuer="TX", birth_date=f"2012-03-{place + 1:02d}",
            local_id=f"L{place}", grade_level="05", phone="555-0100",
        )  # fmt: skip
    for place in (0, 1):
        roster.student(
            f"t{place}", integration="b", first_name=NAMES[place], ssid=f"{place:010d}", ssid_issuer="TX",
            birth_date=f"2012-03-{place + 1:02d}", phone="555-0199" if place else "555-0100",
        )  # fmt: skip
    return roster.section("math", "s0", "s1", title="Math 5")


def changed(roster: Roster, entity: str, sis_id: str, **values: Any) -> Roster:
    for row in roster.rows[entity]:
        if row["sis_id"] == sis_id:
            row.update(values)
    return roster


def day_2() -> Roster:
    """One left, one is new at Oak, one has a new grade and another name; the systems disagree about somebody else."""
    roster = day_1().without("s11")
    changed(roster, "schools", "school-2", name="Oak")
    changed(roster, "students", "s2", grade_level="06", last_name="Mossy")
    changed(roster, "students", "t0", phone="555-0111")
    changed(roster, "students", "t1", phone="555-0100")
    return roster.student("n1", school="2", first_name="Zoe", last_name="Ash", local_id="L99", birth_date="2013-05-06")


def planned(
    roster: Roster, tables: Mapping[str, pl.DataFrame], standing: Standing | None = None, *, first: int = 5, **rest: Any
) -> Plan:
    inputs = roster.inputs(tables, as_of=DAY_2, **rest)
    return plan_publication(inputs, merge_district(inputs), standing or Standing(), rows=first)


def done(before: Mapping[str, pl.DataFrame], after: Mapping[str, pl.DataFrame]) -> dict[str, Counts]:
    """By table, what became of its rows, told by comparing them one by one."""
    found = {}
    for name, table in MERGED.items():
        was, now = (
            dict(zip(side.select(table.key).iter_rows(), side.iter_rows(), strict=True))
            for side in (before.get(name, empty(table)), after[name])
        )
        counts = Counts(
            len(now.keys() - was.keys()),
            sum(1 for key in now.keys() & was.keys() if now[key] != was[key]),
            len(was.keys() - now.keys()),
        )
        if counts.total:
            found[name] = counts
    return found


def of(plan: Plan, table: str, school: str | None) -> Any:
    """The part of a table and school, by the school's name."""
    [part] = [it for it in plan.tables if it.table == table and plan.schools.get(it.school_id or "") == school]
    return part


ROSTERS = {"day 1": day_1, "day 2": day_2, "fewer": lambda: day_2().without("s0", "s1"), "nobody": Roster}


@pytest.mark.parametrize("roster", ROSTERS.values(), ids=ROSTERS.keys())
@pytest.mark.parametrize("tables", [dict, lambda: loaded(day_1()), lambda: loaded(day_2())], ids=["", "day 1", "day 2"])
def test_the_plan_is_what_a_publication_then_does(roster: Any, tables: Any) -> None:
    before = tables()
    merged = merge(roster(), before, as_of=DAY_2)
    plan = planned(roster(), before, first=2)
    assert plan.counts == done(of_year(before, "2025-2026"), publish(before, merged))
    assert plan.changes == dict(sorted(merged.stats.changes.items()))
    assert plan.held == merged.stats.held


def test_the_same_again_is_no_plan() -> None:
    plan = planned(day_1(), loaded(day_1()))
    assert plan.nothing
    assert (plan.tables, plan.events, plan.holds, plan.total) == ((), {}, (), Counts())


def test_json_that_the_database_writes_its_own_way_is_no_change() -> None:
    tables = loaded(day_1())
    conflicts = tables["conflicts"]
    assert conflicts.height
    said = [json.dumps(json.loads(text), indent=1, sort_keys=True) for text in conflicts["candidates"]]
    tables["conflicts"] = conflicts.with_columns(candidates=pl.Series(said))
    assert tables["conflicts"]["candidates"].to_list() != conflicts["candidates"].to_list()
    assert planned(day_1(), tables).nothing
    other = [text.replace("555-0199", "555-0198") for text in said]
    tables["conflicts"] = conflicts.with_columns(candidates=pl.Series(other))
    assert planned(day_1(), tables).counts == {"conflicts": Counts(changed=1)}


def test_changes_are_told_by_school_with_the_columns_and_the_first_rows() -> None:
    plan = planned(day_2(), loaded(day_1()))
    [zoe] = of(plan, "students", "Oak").first
    assert (zoe.what, zoe.local_id, zoe.name) == ("add", "L99", "Zoe Ash")
    pine = of(plan, "students", "Pine")
    assert pine.counts == Counts(changed=1)
    assert pine.columns == {"last_name": 1}
    assert [(it.what, it.local_id, it.name, it.columns) for it in pine.first] == [
        ("change", "L2", "Di Mossy", ("last_name",))
    ]
    stays = of(plan, "enrollments", "Pine")
    assert (stays.counts, stays.columns) == (Counts(changed=1), {"exit_date": 1, "status": 1})
    assert [(it.name, it.local_id, it.says) for it in stays.first] == [
        ("Mia Moss", "L11", {"entry_date": "2025-08-18"})
    ]
    assert {(plan.schools[school or ""], kind): count for (school, kind), count in plan.events.items()} == {
        ("Oak", "enroll"): 1,
        ("Pine", "grade_change"): 1,
        ("Pine", "withdraw"): 1,
    }
    assert of(plan, "schools", "Oak").columns == {"name": 1}


def test_no_value_but_ids_and_names_is_in_a_plan() -> None:
    told = repr(planned(day_2(), loaded(day_1()), first=100))
    for value in ("555-0100", "555-0111", "2013-05-06", "2012-03-03", "0000000002"):
        assert value not in told


def test_conflicts_open_and_are_resolved() -> None:
    plan = planned(day_2(), loaded(day_1()))
    assert (plan.opening_conflicts, plan.resolving_conflicts) == ({"phone": 1}, {"phone": 1})


def test_only_the_first_rows_of_each_kind_are_named() -> None:
    everything = planned(day_1(), {}, first=3)
    pine = of(everything, "students", "Pine")
    assert (pine.counts.added, len(pine.first)) == (12, 3)
    assert everything.counts == planned(day_1(), {}, first=0).counts
    assert all(part.first == () for part in planned(day_1(), {}, first=0).tables)


def test_a_row_that_goes_is_named_by_what_is_published() -> None:
    tables = loaded(day_1())
    gone = day_1()
    gone.rows["sections"] = []
    gone.rows["section_enrollments"] = []
    gone.section("art", "s3", title="Art 5")
    plan = planned(gone, tables)
    removed = [it for it in of(plan, "sections", "Pine").first if it.what == "remove"]
    dropped = [it for it in of(plan, "section_enrollments", "Pine").first if it.what != "add"]
    assert {it.says["title"] for it in (*removed, *of(plan, "sections", "Pine").first)} >= {"Art 5"}
    assert {(it.name, it.says["section"]) for it in dropped} == {("Bo Moss", "Math 5"), ("Cy Moss", "Math 5")}


def test_removals_that_would_wait_are_told_with_the_hold_that_has_them() -> None:
    tables, emptied = loaded(day_1()), day_1().without(*(f"s{place}" for place in range(2, 12)))
    plan = planned(emptied, tables)
    [new] = [it for it in plan.holds if it.hold.entity == "enrollments"]
    assert (new.hold_id, new.hold.removals, plan.held) == (None, 10, 10)
    assert [it.ids["student_id"] for it in new.first] == [key[0] for key in new.hold.keys[:5]]
    assert {it.name for it in new.first} < {f"{name} Moss" for name in NAMES[2:]}
    assert {(it.what, it.says["entry_date"]) for it in new.first} == {("remove", "2025-08-18")}
    assert new.hold.reason == "more absences than the district's limit"
    assert not plan.nothing

    open_now = {new.hold.fingerprint: StoredHold("h1", "open"), "of others": StoredHold("h2", "open")}
    again = planned(emptied, tables, Standing(holds=open_now))
    assert ([it.hold_id for it in again.holds], again.closing) == (["h1"], ("h2",))

    released = Ruling.about(new.hold)
    through = planned(
        emptied, tables, Standing(holds={released.fingerprint: StoredHold("h1", "released")}),
        rulings=Rulings(released=(released,)),
    )  # fmt: skip
    assert (through.holds, through.applying, through.changes) == ((), ("h1",), {"withdraw": 10})


def test_what_a_person_keeps_is_not_closed_by_a_reading_that_proves_nothing() -> None:
    kept = Ruling("kept", "absence", "enrollments", frozenset({("nobody", "nowhere", "2025-08-18")}))
    standing = Standing(holds={"kept": StoredHold("h1", "open")})
    for completeness, closing in (("complete", ("h1",)), ("partial", ())):
        parts = {"a": IntegrationInput(completeness=completeness), "b": IntegrationInput(1)}  # type: ignore[arg-type]
        plan = planned(
            day_1(), loaded(day_1()), standing, integrations=parts, rulings=Rulings(waiting=(kept,))
        )  # fmt: skip
        assert plan.closing == closing


def near_roster() -> Roster:
    return (
        Roster()
        .school("1").school("1", "b")
        .student("1", first_name="Jon", last_name="Smythe", birth_date="2012-03-04")
        .student("2", integration="b", first_name="John", last_name="Smythe", birth_date="2012-03-04")
    )  # fmt: skip


def test_near_matches_begin_to_wait_and_are_withdrawn() -> None:
    merged = merge(near_roster())
    [pair] = rows(merged.near_matches, "student_id", "other_student_id")
    named = near_match_id("d1", *pair)
    [new] = planned(near_roster(), {}).near_matches
    assert (new.near_match_id, set(new.sides)) == (named, {"a/1", "b/2"})

    def queue(status: str, year: str = "2025-2026", name: str = named) -> Standing:
        return Standing(near_matches=pl.DataFrame([(name, year, status, *pair)], schema=NEAR, orient="row"))

    assert planned(near_roster(), {}, queue("open")).near_matches == ()
    assert len(planned(near_roster(), {}, queue("gone")).near_matches) == 1
    assert planned(near_roster(), {}, queue("gone", "2026-2027")).near_matches == ()
    assert planned(near_roster(), {}, queue("open", name="other")).withdrawing == ("other",)
    assert planned(near_roster(), {}, queue("open", "2024-2025", "other")).withdrawing == ()


def test_students_that_turn_out_to_be_one_are_joined() -> None:
    twice = changed(near_roster(), "students", "2", first_name="Jon")
    tables = loaded(twice)
    ssid = {"ssid": "0000000042", "ssid_issuer": "TX"}
    known = changed(changed(twice, "students", "1", **ssid), "students", "2", **ssid)
    known.student("3", integration="a", first_name="Jon", last_name="Smythe", birth_date="2012-03-04", **ssid)
    plan = planned(known, tables)
    merged = merge(known, tables, as_of=DAY_2)
    assert len(plan.joined) == 1
    assert plan.joined == merged.retired
    assert plan.counts["students"].removed == 1
    assert (plan.matched, plan.moved, plan.restored) == (1, 0, ())
