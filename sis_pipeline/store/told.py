"""What the statistics of a merge tell, in words for people and without anybody's value.
They are counted in `roster.district` and kept with the merge by `merged`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def way_in_words(stats: Mapping[str, Any]) -> str | None:
    """How much of a roster was merged anew, by a merge's statistics; None where they do not say."""
    if stats.get("students_merged") is None:
        return None
    asked = ", whole as it was asked for" if stats["whole"] else ""
    seats = f"{stats['seats_merged']:,} of {stats['section_enrollments']:,} section enrollments"
    return f"{stats['students_merged']:,} of {stats['students']:,} students and {seats} anew{asked}"


def unsupplied_in_words(stats: Mapping[str, Any]) -> str:
    """Which systems stopped supplying an attribute, by a merge's statistics; empty where none did."""
    lost = [
        f"{integration} stopped supplying {attribute} of {records:,} records at once"
        for integration, attributes in stats.get("unsupplied", {}).items()
        for attribute, records in attributes.items()
    ]
    return f"{'; '.join(lost)}: not taken for cleared." if lost else ""


def undecided_in_words(stats: Mapping[str, Any]) -> str:
    """What waits for a person's word on who is who, by a merge's statistics, and what to do; empty where nothing does."""
    words = {
        "recycled": "set aside, as their ids seem to be given to somebody else",
        "cut_chains": "not joined, as two different state ids or a person's decision are in the way",
    }
    waits = [
        f"{integration}: {number:,} records {words[what]}"
        for integration, counts in stats.get("undecided", {}).items()
        for what, number in counts.items()
    ]
    return f"{'; '.join(waits)}. See them with `sis links review`." if waits else ""


IRREGULAR = {
    "overlapping": "of {students} an enrollment overlaps another one at the same school",
    "second_primary": "of {students} a second enrollment is called primary, at another school",
}


def irregular_in_words(stats: Mapping[str, Any]) -> str:
    """Enrollments that can't all be right, by a merge's statistics; empty where there are none."""
    told = [
        f"{integration}: {IRREGULAR[what].format(students=_students(number))}"
        for integration, counts in stats.get("irregular", {}).items()
        for what, number in counts.items()
    ]
    return f"{'; '.join(told)}. One is published as primary." if told else ""


def _students(number: int) -> str:
    return f"{number:,} student{'s' if number != 1 else ''}"
