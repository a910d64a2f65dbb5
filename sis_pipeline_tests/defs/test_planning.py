"""A dry run against real tables: it writes nothing at all, and what it says is what the next publication does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sis_pipeline.db.tables import guard_settings, metadata
from sis_pipeline.defs import planning
from sis_pipeline.defs.merging import merge_districts, publish_districts
from sis_pipeline.defs.planning import DistrictPlan, plan_districts
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.plan import Plan
from sis_pipeline.store.accounts import Accounts
from sis_pipeline.store.holds import Holds
from sis_pipeline.store.publish import Published
from sis_pipeline_tests.defs.conftest import THIS_YEAR, YEAR, Installation
from sis_pipeline_tests.store.conftest import SCHOOL, add_integration, good_snapshot, sis_student

NAMES = ("Bo", "Cy", "Di", "Ed", "Fay", "Gus", "Hal", "Ivy", "Jan", "Kim", "Lou", "Mia")


def unheard(_line: str) -> None:
    """Progress is nobody's concern here."""


def town(*places: int, **more: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Students by number, each with an enrollment; `more` by first name changes what a student says."""
    students = [
        sis_student(
            f"s{place}",
            **{"first_name": NAMES[place], "birth_date": f"2012-03-{place + 1:02d}", **more.get(NAMES[place], {})},
        )
        for place in places
    ]
    enrollments = [
        {
            "sis_id": f"e{place}",
            "student_sis_id": f"s{place}",
            "school_sis_id": "1",
            "school_year": THIS_YEAR,
            "entry_date": YEAR.first_day.isoformat(),
            "entry_date_source": "sis",
            "enrollment_type": "primary",
            "status": "active",
            "record_status": "active",
        }
        for place in places
    ]
    about = {"school_sis_id": "1", "record_status": "active"}
    staff = [
        {"sis_id": f"t{place}", "first_name": "Teo", "last_name": NAMES[place], "role": "teacher", **about}
        for place in places[::2]
    ]
    section = {"sis_id": "m", "kind": "scheduled", "title": "Math", "teacher_sis_id": staff[-1]["sis_id"], **about}
    people = {"students": students, "staff": staff}
    return {"schools": [SCHOOL], **people, "sections": [section], "enrollments": enrollments}


def read(installation: Installation, integration: str, rows: Mapping[str, Any]) -> None:
    good_snapshot(installation.roster.snapshots, integration, year=THIS_YEAR, **rows)


@pytest.fixture
def published(installation: Installation) -> Installation:
    """Eleven students of one system; a second one knows Bo, and a Cy who may be the same or another. Who leaves loses the
    account at once."""
    rules = {"student.username": "{first_name}{last_name}", "staff.username": "{last_name}"}
    at_once = {"student.grace_days": 0, "staff.grace_days": 0}
    Accounts(installation.engine).set("lincoln", {**rules, **at_once}, actor="ada", reason="the year begins")
    for priority, key in enumerate(("lincoln-ps", "lincoln-ic")):
        add_integration(installation.engine, key, priority=priority)
    first_day(installation)
    publish(installation)
    return installation


def publish(installation: Installation) -> Published:
    for merged in merge_districts(installation.roster, THIS_YEAR, "run", unheard):
        assert merged.trouble is None, merged.trouble
    [done] = publish_districts(installation.roster, THIS_YEAR, "run", unheard)
    assert done.trouble is None, done.trouble
    assert done.published is not None
    return done.published


def planned(installation: Installation) -> Plan:
    [found] = plan_districts(installation.roster, THIS_YEAR, rows=3)
    assert found.trouble is None, found.trouble
    assert found.plan is not None
    return found.plan


def first_day(installation: Installation) -> None:
    read(installation, "lincoln-ps", town(*range(11), Bo={"ssid": "1"}))
    read(installation, "lincoln-ic", town(0, 1, Bo={"ssid": "1", "phone": "555-0100"}))


def next_day(installation: Installation) -> None:
    """One system misses ten of eleven; the two disagree about Bo, and each has a new Mia, who may be one or two."""
    bo = {"ssid": "1", "phone": "555-0101", "last_name": "Nil"}
    read(installation, "lincoln-ps", town(0, 11, Bo=bo))
    read(installation, "lincoln-ic", town(0, 1, 11, Bo={"ssid": "1", "phone": "555-0100"}, Mia={"last_name": "Nulls"}))


def everything(installation: Installation) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, as text."""
    return {
        table.name: installation.rows(f"select t::text from {table.fullname} t order by 1")
        for table in metadata.sorted_tables
    }


def files(installation: Installation) -> dict[Path, int]:
    data = installation.roster.settings.root
    return {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}


def test_a_plan_writes_nothing_anywhere(published: Installation) -> None:
    next_day(published)
    before, kept = everything(published), files(published)
    assert any("manifest" in path.name for path in kept), "the data folder is looked at"
    plan = planned(published)
    assert plan.holds
    assert plan.near_matches
    assert plan.opening_conflicts == {"last_name": 1, "phone": 1}
    assert everything(published) == before
    assert files(published) == kept
    assert published.roster.merges.stale_districts(THIS_YEAR) == ["lincoln"]


def waiting(installation: Installation) -> tuple[set[Any], set[Any]]:
    """The open holds by what they hold, and the near matches that wait."""
    return tuple(
        {row[0] for row in installation.rows(f"select {name} from sis.{table} where status = 'open'")}
        for table, name in (("holds", "fingerprint"), ("near_matches", "near_match_id::text"))
    )  # type: ignore[return-value]


def holds_after(plan: Plan) -> set[str]:
    return {one.hold.kept or one.hold.fingerprint for one in plan.holds}


def follows(installation: Installation) -> Plan:
    """The plan, once it has been compared with what the publication then did."""
    _, queue = waiting(installation)
    plan = planned(installation)
    done = publish(installation)
    assert {name: (it.added, it.changed, it.removed) for name, it in plan.counts.items()} == {
        name: (it.inserted, it.updated, it.deleted) for name, it in done.applied.items() if it.written
    }
    assert (plan.changes, plan.held, plan.accounts) == (done.changes, done.held, done.accounts)
    holds, near = waiting(installation)
    assert holds == holds_after(plan)
    assert near == (queue | {one.near_match_id for one in plan.near_matches}) - set(plan.withdrawing)
    [after] = plan_districts(installation.roster, THIS_YEAR, rows=3)
    assert after.plan is not None
    assert after.plan.nothing
    assert len(after.waiting) == len(holds)
    return plan


def test_what_is_planned_is_what_is_then_published(published: Installation) -> None:
    """A day with a hold, near matches and conflicts; its release; and the day on which all are back."""
    next_day(published)
    first = follows(published)
    assert (first.changes["enroll"], first.held) == (2, 10)
    assert first.accounts["suspended"] == 5, "of the staff, who are not held"

    [held] = Holds(published.engine).list("lincoln", "open")
    Holds(published.engine).release(held.hold_id, "ada", "they left together")
    released = follows(published)
    assert (released.applying, released.changes) == ((held.hold_id,), {"withdraw": 10})
    assert released.accounts["suspended"] == 9, "Cy, who may be Bo, never had one"
    assert [(row.says["becomes"], row.name is not None) for row in released.first_accounts] == [("suspended", True)] * 3

    first_day(published)
    back = follows(published)
    assert back.resolving_conflicts == {"last_name": 1}, "one of the two cleared the phone that the other has"
    assert back.withdrawing
    assert back.accounts["restored"] >= 10


def test_a_hold_that_is_no_longer_pending_would_be_closed(published: Installation) -> None:
    next_day(published)
    publish(published)
    read(published, "lincoln-ps", town(*range(12), Bo={"ssid": "1"}))
    [held] = Holds(published.engine).list("lincoln", "open")
    assert follows(published).closing == (held.hold_id,)


def test_a_first_load_is_planned_too(installation: Installation) -> None:
    add_integration(installation.engine, "lincoln-ps")
    read(installation, "lincoln-ps", town(0, 1, 2))
    assert follows(installation).changes == {"enroll": 3}
    [after] = plan_districts(installation.roster, THIS_YEAR, rows=3)
    assert (after.due, after.plan) == (False, Plan("lincoln", THIS_YEAR))


def test_a_publication_in_between_is_planned_upon(published: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    next_day(published)
    came: list[int] = []

    def merge(inputs: Any) -> Any:
        merged = merge_district(inputs)
        if not came:
            came.append(1)
            publish(published)
        return merged

    monkeypatch.setattr(planning, "merge_district", merge)
    assert planned(published).nothing


def test_who_publishes_all_the_time_is_told_so(published: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    next_day(published)
    monkeypatch.setattr(planning, "published_epochs", lambda *_: {"another": 1})
    [found] = plan_districts(published.roster, THIS_YEAR, rows=3)
    assert found.plan is None
    assert found.trouble is not None
    assert found.trouble.code == "transient.superseded"


def test_a_district_that_cannot_be_planned_stops_no_other(published: Installation) -> None:
    add_integration(published.engine, "franklin-ps", "franklin")
    read(published, "franklin-ps", town(0))
    broken = {"settings": {"district": {"exit_floor": "many"}, "schools": {}}, "set_by": "x", "reason": "x"}
    with published.engine.begin() as connection:
        connection.execute(guard_settings.insert().values(district="lincoln", version=1, **broken))
    franklin, lincoln = plan_districts(published.roster, THIS_YEAR, rows=3)
    assert franklin.plan is not None
    assert franklin.plan.counts["students"].added == 1
    assert lincoln == DistrictPlan("lincoln", THIS_YEAR, None, trouble=lincoln.trouble)
    assert lincoln.trouble is not None
    assert "exit_floor takes a whole number" in lincoln.trouble.message
    assert [one.district for one in plan_districts(published.roster, THIS_YEAR, rows=3, districts={"franklin"})] == [
        "franklin"
    ]
