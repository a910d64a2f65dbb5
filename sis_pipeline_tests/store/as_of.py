"""The obvious way to say what the ledger knows: event after event, operation after operation.
What the product answers with is SQL; this is what it is compared to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl

Key = tuple[str, str, str, date]
"""student, school, school year, entry date"""


@dataclass(frozen=True)
class Publication:
    """An operation's ledger events, and the operation that it undoes."""

    operation_id: str
    events: pl.DataFrame
    undoes: str | None = None


@dataclass(frozen=True)
class Stay:
    entry_code: str | None
    exit_date: date | None
    exit_code: str | None
    is_open: bool
    over_on: date | None


def stays_known(publications: Sequence[Publication]) -> dict[Key, Stay]:
    """Every stay after these publications, which are in the order in which they were made."""
    stays: dict[Key, Stay] = {}
    for one in _standing(publications):
        events = [event for event in one.events.iter_rows(named=True) if _is_of_stay(event)]
        for event in events:
            for shown in _shown(event["before"]):
                stays.pop(_key(event, shown), None)
        for event in events:
            stays |= {_key(event, shown): _stay(event, shown) for shown in _shown(event["after"])}
    return stays


def enrolled(stays: Mapping[Key, Stay], day: date) -> dict[Key, Stay]:
    """The stays that contain a day."""
    year = day.year if day.month >= 7 else day.year - 1
    return {
        key: stay
        for key, stay in stays.items()
        if key[2] == f"{year}-{year + 1}" and key[3] <= day and (stay.over_on is None or day < stay.over_on)
    }


def _standing(publications: Sequence[Publication]) -> list[Publication]:
    undone: set[str] = set()
    for one in reversed(publications):
        if one.undoes and one.operation_id not in undone:
            undone.add(one.undoes)
    return [one for one in publications if one.operation_id not in undone and not one.undoes]


def _is_of_stay(event: Mapping[str, Any]) -> bool:
    return event["section_id"] is None and event["kind"] != "grade_change"


def _shown(side: str | None) -> Iterable[dict[str, Any]]:
    found = json.loads(side) if side else None
    return [stay for stay in (found, found and found.get("other_stay")) if stay and stay.get("entry_date")]


def _key(event: Mapping[str, Any], shown: Mapping[str, Any]) -> Key:
    entered = date.fromisoformat(shown["entry_date"])
    return event["student_id"], shown["school_id"], event["school_year"], entered


def _stay(event: Mapping[str, Any], shown: Mapping[str, Any]) -> Stay:
    status, entered = shown["status"], date.fromisoformat(shown["entry_date"])
    left = date.fromisoformat(shown["exit_date"]) if shown["exit_date"] else None
    is_open = status in {"pre_registered", "active"}
    seen_out = event["effective_date"] if event["kind"] in {"withdraw", "graduate"} else entered
    over_on = left if is_open else entered if status == "no_show" else left or seen_out
    return Stay(shown["entry_code"], left, shown["exit_code"], is_open, over_on)
