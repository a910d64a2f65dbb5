"""What came and what was there before, as plain rows: the usable records, who is missing, and what that proves.
What follows from it for a student or a stay is found in `people`, `values` and `stays`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sis_pipeline.roster.contract import DistrictInputs
from sis_pipeline.roster.ids import derived_id
from sis_pipeline.roster.model import ENTITIES

Key = tuple[str, str]
Row = dict[str, Any]


CLEARABLE = {
    **{name: (name,) for name in ("preferred_first_name", "preferred_middle_name", "preferred_last_name")},
    **{name: (name,) for name in ("email", "phone", "mobile_phone")},
    **{f"{kind}_address": tuple(f"{kind}_{part}" for part in ("street", "city", "state", "postal_code")) for kind in ("home", "mailing")},
}  # fmt: skip
"""What a source can take away, with its columns."""


def key_of(row: Mapping[str, Any]) -> Key:
    return row["integration"], row["sis_id"]


class Delivery:
    """The inputs of a merge as rows; a frame that is left out is empty."""

    def __init__(self, inputs: DistrictInputs) -> None:
        self.inputs = inputs
        self.district, self.year = inputs.district, inputs.school_year
        self.all: dict[str, list[Row]] = {name: [] for name in ENTITIES}
        self.all |= {name: frame.to_dicts() for name, frame in inputs.records.items()}
        self._existing = {name: frame.to_dicts() for name, frame in inputs.existing.items()}
        self.lowest = max((part.priority for part in inputs.integrations.values()), default=0) + 1
        self.school_of = self._schools()

    def existing(self, table: str) -> list[Row]:
        return self._existing.get(table, [])

    def active(self, entity: str) -> list[Row]:
        """The records that are there, of this school year where a row names its own."""
        return [
            row
            for row in self.all[entity]
            if row["record_status"] == "active" and row.get("school_year", self.year) == self.year
        ]

    def priority(self, integration: str) -> int:
        """Lower wins; an integration that takes no part comes last."""
        part = self.inputs.integrations.get(integration)
        return self.lowest if part is None else part.priority

    def taken_on(self, integration: str) -> Any:
        """The day of its snapshot."""
        part = self.inputs.integrations.get(integration)
        return part and (part.taken_on or self.inputs.as_of)

    def fates(
        self, entity: str, usable: Iterable[Key], also_deleted: Iterable[Key] = (), spared: Iterable[Key] = ()
    ) -> Fates:
        return Fates(self, entity, usable, also_deleted, spared)

    def _schools(self) -> dict[Key, str]:
        """A school is known by the number that its district gave it, else by its state's id, else it is its system's own."""
        found = {key_of(row): row["school_id"] for row in self.existing("schools")}
        for row in self.active("schools"):
            if row["school_number"] is not None:
                named = ("number", row["school_number"])
            elif row["state_school_id"] is not None:
                named = ("state_id", row["state_school_id"])
            else:
                named = (f"record:{row['integration']}", row["sis_id"])
            found[key_of(row)] = derived_id("school", self.district, row["kind"], *named)
        return found


class Fates:
    """What became of the records published before: only a complete snapshot proves that one is absent."""

    def __init__(
        self, now: Delivery, entity: str, usable: Iterable[Key], also_deleted: Iterable[Key], spared: Iterable[Key]
    ) -> None:
        self._parts = now.inputs.integrations
        self._usable, self._spared = set(usable), set(spared)
        rows, rejected = now.all[entity], now.inputs.quarantined.get(entity)
        self._deleted = {key_of(row) for row in rows if row["record_status"] == "to_be_deleted"} | set(also_deleted)
        self._present = {key_of(row) for row in rows if row["record_status"] == "active"}
        self._present |= set() if rejected is None else {key_of(row) for row in rejected.to_dicts()}

    def is_there(self, row: Mapping[str, Any]) -> bool:
        """Whether its row came, readable or not."""
        return key_of(row) in self._present

    def is_spared(self, row: Mapping[str, Any]) -> bool:
        """Whether it was said of a child whose id is another one's by now: whatever came, nothing was said of it."""
        return key_of(row) in self._spared

    def of(self, row: Mapping[str, Any]) -> str:
        key = key_of(row)
        if key in self._spared:
            return "carried"
        if key in self._deleted:
            return "tombstone"
        if key in self._usable:
            return "delivered"
        if key in self._present:
            return "carried"
        part = self._parts.get(row["integration"])
        return "absence" if part is not None and part.completeness == "complete" else "carried"


def student_records(now: Delivery) -> list[Row]:
    """The student records of now, with `school_id`. One of a partial snapshot has its published values where it has none
    now, unless it comes under another name: such a snapshot adds and changes, and takes nothing away. With the attributes
    that it `cleared`, proven by a complete reading, and those that it lost without proof, `emptied`; of attributes that
    more than two records lost, and more than a tenth of those that had it, nothing is proven. Another child who was given
    the id took nothing away."""
    before = {key_of(row): row for row in now.existing("student_sources")}
    rows = list(_filled(now, before))
    mine = [_of_same_child(row, before.get(key_of(row), {})) for row in rows]
    lost = [_lost(row, was) for row, was in zip(rows, mine, strict=True)]
    gone = Counter((row["integration"], name) for row, names in zip(rows, lost, strict=True) for name in names)
    there = Counter((row["integration"], name) for row in rows for name in CLEARABLE if _has(row, name))
    found = []
    for row, was, names in zip(rows, mine, lost, strict=True):
        source = row["integration"]
        part = now.inputs.integrations.get(source)
        is_complete = part is not None and part.completeness == "complete"
        few = {it for it in names if gone[source, it] <= max(2, 0.1 * (gone[source, it] + there[source, it]))}
        told = few if is_complete else set()
        told |= {it for it in listed(was, "cleared") if not _has(row, it)}
        found.append(_placed(now, row) | {"cleared": _list(told), "emptied": _list(names - told)})
    return found


def listed(row: Mapping[str, Any], column: str) -> set[str]:
    return set(json.loads(row.get(column) or "[]"))


def _list(names: Iterable[str]) -> str | None:
    return json.dumps(sorted(names)) if names else None


def _has(row: Mapping[str, Any], attribute: str) -> bool:
    return any(row.get(name) is not None for name in CLEARABLE[attribute])


def _of_same_child(row: Row, was: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the record said before, unless birth date and a name, all known, are others now."""
    other = {it for it in ("birth_date", "first_name", "last_name") if None is not row[it] != was.get(it) is not None}
    return {} if "birth_date" in other and len(other) > 1 else was


def _lost(row: Row, was: Mapping[str, Any]) -> set[str]:
    """What it had before, and has not now, and is not known to be cleared."""
    had = listed(was, "emptied") | {it for it in CLEARABLE if _has(was, it)}
    return {it for it in had - listed(was, "cleared") if not _has(row, it)}


def _filled(now: Delivery, before: Mapping[Key, Row]) -> Iterator[Row]:
    own = {"sis_id", "first_name", "last_name", "record_status", "modified_at"}
    values = [name for name in ENTITIES["students"].names if name not in own]
    for row in now.active("students"):
        was = before.get(key_of(row))
        part = now.inputs.integrations.get(row["integration"])
        is_partial = part is not None and part.completeness == "partial"
        if was and is_partial and (was["first_name"], was["last_name"]) == (row["first_name"], row["last_name"]):
            yield row | {name: was[name] for name in values if row[name] is None}
        else:
            yield row


def _placed(now: Delivery, row: Row) -> Row:
    return row | {"school_id": now.school_of.get((row["integration"], row["school_sis_id"]))}


def published_records(now: Delivery) -> list[Row]:
    """The student records published before, with `school_id` and `fate`."""
    fates = now.fates("students", (key_of(row) for row in now.active("students")))
    return [_placed(now, row) | {"fate": fates.of(row)} for row in now.existing("student_sources")]
