"""Records that come twice: on a page, across pages, with blanks around their id, older or newer. One row each, always the same."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sis_pipeline.providers.base import End, Page, Plan, Request, Resource
from sis_pipeline.providers.pagers import HeldPages
from sis_pipeline.providers.reading import read
from sis_pipeline_tests.faults.pages import FLAVORS, Flavor, RecordedPage, flavor, records_in
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    22,
    "the same record twice on a page, on two pages, with blanks around its id, and as an older or newer version",
    "one row, the newest version wins in whatever order they come, what was left out is counted",
    1_000,
    "duplicates",
)

Change = Callable[[dict[str, Any]], None]


def edited(page: RecordedPage, change: Callable[[list[Any]], None]) -> RecordedPage:
    """A page whose list of records was changed, be it JSON or CSV."""
    if page.is_csv:
        reader = csv.DictReader(io.StringIO(page.body.decode("utf-8-sig")))
        records = [dict(line) for line in reader]
        change(records)
        out = io.StringIO()
        writer = csv.DictWriter(
            out,
            list(dict.fromkeys(name for line in records for name in line)),
            lineterminator="\n",
            quoting=csv.QUOTE_ALL,  # the writer would leave a lone carriage return bare, which ends a line
        )
        writer.writeheader()
        writer.writerows(records)
        return replace(page, body=out.getvalue().encode())
    document = json.loads(page.body)
    found = records_in(document)
    if found is not None:
        change(found)
    return replace(page, body=json.dumps(document).encode())


def with_one_twice(spoil: Flavor, page: RecordedPage, chance: random.Random, *, blanks: bool) -> RecordedPage:
    def change(records: list[Any]) -> None:
        if records:
            at = chance.randrange(len(records))
            twin = copy.deepcopy(records[at])
            path = spoil.identities[page.resource]
            if blanks and isinstance(twin.get(path[0]), str):
                twin[path[0]] = f" {twin[path[0]]} "
            records.insert(chance.randint(at + 1, len(records)), twin)

    return edited(page, change)


def counted_by_the_reading(spoil: Flavor, pages: list[RecordedPage]) -> int:
    """The duplicates that a reading of these pages reports."""
    resources = []
    for name, identity in spoil.identities.items():
        of_it = [page for page in pages if page.resource == name]
        held = tuple(
            Page(number, page.body, spoil.decoded(page), end=End.WHOLE_FILE if number == len(of_it) else None)
            for number, page in enumerate(of_it, start=1)
        )
        resources.append(Resource(name, Request("/held"), HeldPages(held), identity))
    plan = Plan(tuple(resources), basis="first_read")
    readings = read(plan, lambda _: pytest.fail("nothing is to be sent"), spoil.provider.decode, lambda *_: None)
    return sum(reading.duplicates for reading in readings)


@pytest.mark.parametrize("name", FLAVORS)
def test_copies_change_nothing(name: str, count: Count, chance: random.Random, row: Recorder) -> None:
    spoil, made, exact, counted = flavor(name, students=count(full=40, part=14)), 0, 0, 0
    wanted = count(full=130, part=40)
    while made < wanted:
        pages, later = [], []
        for page in spoil.pages:
            kind = chance.choice(["", "", "", "page", "across", "blanks"]) if made < wanted else ""
            twice = with_one_twice(spoil, page, chance, blanks=kind == "blanks") if kind in {"page", "blanks"} else page
            later += [page] if kind == "across" else []
            pages.append(twice)
            exact += (len(spoil.decoded(twice)) - len(spoil.decoded(page))) if kind == "page" else 0
            made += len(spoil.decoded(twice)) - len(spoil.decoded(page))
        chance.shuffle(later)
        copies = sum(len(spoil.decoded(page)) for page in later)
        made, exact = made + copies, exact + copies
        # "The first the source lists" decides some things, so copies come behind what they copy.
        assert spoil.bring_in([*pages, *later]).rows == spoil.truth.rows
        counted += counted_by_the_reading(spoil, [*pages, *later])
    assert counted >= exact > 0, "what was left out is counted"
    row.happened(made)
    row.ran(made)


VERSIONED = [
    "oneroster 1.2",
    *(
        pytest.param(name, marks=pytest.mark.faults)
        for name in ("oneroster 1.1", "infinite campus", "skyward oneroster", "oneroster csv")
    ),
]
"""Their records say when they were last changed."""


@pytest.mark.parametrize("name", VERSIONED)
@pytest.mark.parametrize("newer", [True, False])
def test_the_newest_version_wins(name: str, newer: bool, count: Count, chance: random.Random, row: Recorder) -> None:
    """A second version of every student's record, with another name, before or after the first."""
    spoil = flavor(name, students=count(full=40, part=14))
    stamp = "2031-01-01T00:00:00.000Z" if newer else "2001-01-01T00:00:00.000Z"

    def other_version(records: list[Any]) -> None:
        records += [{**record, "familyName": "Changed", "dateLastModified": stamp} for record in records]

    for _ in range(count(full=3, part=1)):
        users = [page for page in spoil.pages if page.resource == "users"]
        pages = [page for page in spoil.pages if page.resource != "users"]
        for page in users:
            other = edited(page, other_version)
            versions = [page, edited(other, lambda records: records.__delitem__(slice(0, len(records) // 2)))]
            chance.shuffle(versions)
            pages += versions
        names = set(spoil.bring_in(pages).frames["students"]["last_name"])
        assert (names == {"Changed"}) == newer
        assert ("Changed" in names) == newer
        made = sum(len(spoil.decoded(page)) for page in users)
        row.happened(made)
        row.ran(made)
