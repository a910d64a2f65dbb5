"""What PostgreSQL holds after a day against the sandbox's truth, each thing exactly.
Which days are lived, and what is expected where a day was not read as it should be, is said by the tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.truth import SisRecord, Truth
from sis_pipeline.sandbox.views import as_published
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.truth.chain import Lived
from sis_pipeline_tests.truth.tables import Event

UNSAID = {"skyward_sms": {"graduation_year"}, "oneroster_csv 1.1": {"pronouns", "preferred_first_name"}}
"""In SMS 2.0 the graduation year is how the grade is written, so the grade stands for it; CSV 1.1 has no column for
preferred names and pronouns."""
COUNTED = {"students", "enrollments", "section_enrollments", "sections", "staff", "schools", "courses"}
"""What is not promised to be counted (contacts, teachers' rows) is left out on both sides."""


def prove_same(what: str, found: Any, true: Any) -> None:
    """Says what differs of two sets or mappings; pytest does so for the asserts of test modules only."""
    assert found == true, f"{what}: {_difference(found, true)}"


def _difference(found: Any, true: Any) -> str:
    if isinstance(found, Mapping):
        keys = [key for key in {*found, *true} if found.get(key) != true.get(key)]
        return "; ".join(f"{key}: {found.get(key)} instead of {true.get(key)}" for key in keys)
    return f"too much {found - true}, missing {true - found}"


def prove_what_was_planned_was_published(seen: Lived) -> None:
    """Row for row by table, with every event of the ledger and every removal that waits."""
    planned = {name: (it.added, it.changed, it.removed) for name, it in seen.plan.counts.items()}
    applied = {name: it for name, it in seen.published.applied.items() if it.written}
    prove_same("rows planned", planned, {name: (it.inserted, it.updated, it.deleted) for name, it in applied.items()})
    prove_same("events planned", seen.plan.changes, seen.published.changes)
    assert seen.plan.held == seen.published.held


def prove_nobody_is_lost_or_invented(seen: Lived) -> None:
    """Also over the years: who was here before is the same student, and who left is still known."""
    prove_same("people", Counter(seen.tables.groups.values()), Counter(seen.tables.known.values()))
    prove_same("students", seen.tables.students, set(seen.tables.groups))


def prove_disagreements(seen: Lived) -> None:
    """In a year that is over, systems keep the grade then or the grade now: the truth does not say who is right."""
    over = seen.truth.school_year != seen.truth.world.school_year
    found = {key: who for key, who in seen.tables.conflicts.items() if not (over and key[1] == "grade_level")}
    true = {(person, _merged_as(name)): frozenset(who) for (person, name), who in seen.truth.disagreements.items()}
    prove_same("conflicts", found, true)


def _merged_as(attribute: str) -> str:
    """An address is chosen as a whole, never put together from two systems."""
    kind = attribute.partition("_")[0]
    return f"{kind}_address" if kind in {"home", "mailing"} else attribute


def prove_ledger(found: Counter[Event], true: Counter[Event]) -> None:
    """Every event once, of the right kind, at the right place, on the right day, and nothing else."""
    prove_same("ledger", found, true)


def true_seats(world: World, number: int) -> set[tuple[int, SisRecord]]:
    today = world.date(number)
    return {
        (row.student.person.key, (system.name, system.sis_id("section", row.seat.section)))
        for system in world.systems
        for row in world.view(system.name, number).seats
        if row.seat.year == world.year and row.end > today and not (row.bad or row.tombstone or row.never)
    }


def flavour(system: System) -> str:
    """Its dialect, and the version where it may be one of several."""
    return f"{system.dialect} {system.options.get('version', '')}".strip()


def prove_own_values(values: Mapping[int, Mapping[str, Any]], truth: Truth) -> int:
    """Who is in one system only has that system's values; how many were compared."""
    world, wrong, compared = truth.world, [], 0
    for system in world.systems:
        for student in world.view(system.name, truth.day).students:
            if student.person.shared or student.bad or student.tombstone or not student.stint_in(world.year):
                continue
            for attribute in system.carries - UNSAID.get(flavour(system), set()):
                compared += 1
                if values[student.person.key][attribute] != as_published(student.values, attribute):
                    wrong.append((system.name, attribute, student.sis_id))
    assert wrong == [], wrong
    return compared


def quarantined(seen: Lived) -> Mapping[tuple[str, str], int]:
    """(system, entity) -> rows that were set aside, after proof that those were the bad ones and no others."""
    found = _counted({name: dict(rows) for name, rows in seen.tables.quarantined.items()})
    true = _counted({name: {entity: rows.bad for entity, rows in it.items()} for name, it in seen.truth.rows.items()})
    prove_same("quarantined rows", found, true)
    return found


def _counted(rows: Mapping[str, Mapping[str, int]]) -> dict[tuple[str, str], int]:
    return {
        (system, entity): number
        for system, of_system in rows.items()
        for entity, number in of_system.items()
        if entity in COUNTED and number
    }


def prove_again_writes_nothing(seen: Lived) -> None:
    prove_same("events of the same day again", seen.again.changes, {})
    prove_same(
        "rows of the same day again", {name: it.written for name, it in seen.again.applied.items() if it.written}, {}
    )
