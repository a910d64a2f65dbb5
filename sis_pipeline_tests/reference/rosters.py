"""Small rosters made to be nasty, two days each: systems that contradict each other about few people who are much alike.
They are only made here; what they come to is `district`'s, and the engine's, to say."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import polars as pl
from hypothesis import strategies as st

from sis_pipeline.roster.district import DistrictInputs, IntegrationInput
from sis_pipeline_tests.roster.rosters import Roster

Row = dict[str, Any]
DAYS = (date(2025, 10, 1), date(2025, 10, 20))


def _mostly(value: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([value] * (len(others) + 1) + list(others))


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "first_name": st.sampled_from(
        ["Ada", "Adá", "ada maria", "Bea", "William", "Bill", "Maria", "Marta", "Katherine", "-"]
    ),
    "last_name": st.sampled_from(["Moss", "MÓSS", "Moss-Hill", "Hill", "O'Hill", "Garcia-Lopez", "Gracia Lopez"]),
    "birth_date": st.sampled_from(["2012-03-04", "2012-03-04", "2012-04-03", "2012-03-05", "2011-11-21", None]),
    "preferred_first_name": _mostly(None, "Lee", "Ada", "Bill"),
    "preferred_last_name": _mostly(None, "Hill"),
    "ssid": st.sampled_from(["1", "2", " 1", None, None]),
    "ssid_issuer": _mostly(None, "TX", "OK"),
    "local_id": st.sampled_from(["5", "6", "05", None, None]),
    "local_id_issuer": _mostly(None, "north", "south"),
    "email": st.sampled_from(["home@example.org", "Home@example.org ", "ada@example.org", "none", None]),
    "phone": _mostly(None, "(512) 555-0100", "5125550111"),
    "mobile_phone": _mostly(None, "+1 512 555 0100", "512-555-0111 x4"),
    "grade_level": _mostly("05", "06", None),
    "modified_at": _mostly("2025-09-01T00:00:00+00:00", "2025-09-02T00:00:00+00:00", None),
}
record = st.fixed_dictionaries({"integration": st.sampled_from("abc"), "school": st.sampled_from("12"), **VALUES})
edits = st.dictionaries(st.sampled_from(sorted(VALUES)), st.none(), min_size=1, max_size=3)
fate = st.sampled_from(["stays"] * 4 + ["edited"] * 3 + ["gone", "gone", "tombstone", "quarantined"])


@st.composite
def edited(draw: st.DrawFn, row: Row) -> Row:
    """The record with a few of its values drawn anew."""
    return row | {name: draw(VALUES[name]) for name in draw(edits)}


@st.composite
def two_days(draw: st.DrawFn, most: int = 9) -> tuple[Row, Row]:
    """Two deliveries, the second made of the first."""
    first = [row | {"sis_id": str(n)} for n, row in enumerate(draw(st.lists(record, min_size=1, max_size=most)))]
    second, lost = [], []
    for row in draw(st.permutations(first)):
        became = draw(fate)
        if became == "quarantined":
            lost.append(row)
        elif became != "gone":
            changed = draw(edited(row)) if became == "edited" else row
            second.append(changed | ({"record_status": "to_be_deleted"} if became == "tombstone" else {}))
    fresh = draw(st.lists(record, max_size=3))
    second += [row | {"sis_id": f"n{n}"} for n, row in enumerate(fresh)]
    priorities = draw(st.permutations([1, 2, 2]))
    complete = {name: draw(_mostly("complete", "partial", "delta")) for name in "abc"}
    return (
        {"rows": first, "priorities": priorities, "completeness": dict.fromkeys("abc", "complete"), "lost": []},
        {"rows": second, "priorities": priorities, "completeness": complete, "lost": lost},
    )


def inputs(day: Row, existing: Mapping[str, pl.DataFrame], as_of: date, **rest: Any) -> DistrictInputs:
    """A day's delivery as the engine takes it."""
    roster = Roster()
    for integration in "abc":
        for number in "12":
            roster.school(number, integration)
    for row in day["rows"]:
        roster.student(row["sis_id"], **{name: value for name, value in row.items() if name != "sis_id"})
    parts = {
        name: IntegrationInput(rank, day["completeness"][name], as_of - timedelta(days=1))
        for name, rank in zip("abc", day["priorities"], strict=True)
    }
    rejected = [(row["integration"], row["sis_id"]) for row in day["lost"]]
    quarantined = pl.DataFrame(rejected, schema=dict.fromkeys(("integration", "sis_id"), pl.String), orient="row")
    return roster.inputs(existing, as_of=as_of, integrations=parts, quarantined={"students": quarantined}, **rest)
