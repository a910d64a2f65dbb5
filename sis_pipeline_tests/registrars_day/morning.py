"""What a registrar finds in the morning: two systems of the sandbox, of which one delivered what needs a decision.
What the registrar then does is in docs/registrars-day.md."""

from __future__ import annotations

import csv
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import URL

from sis_pipeline.defs.loading import load_roster
from sis_pipeline.defs.merging import merge_districts, publish_districts
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.truth.chain import YEAR, Town, read, town, unheard

SIS, LEARNING = "powerschool", "learning"
SYSTEMS = (
    System(SIS, "powerschool", 60, {"max_page_size": 200, "bad_rows": False}),
    System(LEARNING, "oneroster_csv", 60, {"version": "1.2", "bad_rows": False}),
)
MISSPELT, COUSIN = "90F0D9775E6656E39CFC79AF9C2CB392", "3DD84F44C12954B6BBA2BB210876725F"
"""Students of learning, by their ids there."""
CLOSED, SHORT = "0204", "0201"
Row = dict[str, str]


@contextmanager
def morning(postgres: URL, template: str, home: Path) -> Iterator[Town]:
    """A town after two nights: the first load, and the night in which learning's export lost students."""
    world = World(seed=1, systems=SYSTEMS, school_year=YEAR.key, shared=0.1)
    with town(world, postgres, template, home) as place:
        place.connect()
        folder = place.files / LEARNING
        _make_alike(place, folder)
        _night(place)
        _lose_students(place, folder)
        _night(place)
        yield place


def _night(place: Town) -> None:
    run = uuid.uuid4().hex
    for system in SYSTEMS:
        read(place.roster, system.name, YEAR, run)
        load_roster(place.roster, system.name, YEAR, run, unheard)
    assert [it.trouble for it in merge_districts(place.roster, YEAR.key, run, unheard)] == [None]
    assert [it.trouble for it in publish_districts(place.roster, YEAR.key, run, unheard)] == [None]


def _rewrite(file: Path, change: Callable[[list[Row]], list[Row]]) -> None:
    with file.open(encoding="utf-8", newline="") as opened:
        reader = csv.DictReader(opened)
        rows, columns = list(reader), list(reader.fieldnames or ())
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, columns, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(change(rows))


def _make_alike(place: Town, folder: Path) -> None:
    """Two children of learning look like two of the SIS: one by a misspelt name, one by a name, a birthday and the
    household's email that they share with a cousin."""
    of_sis = {row.sis_id: row.values for row in place.world.view(SIS, 1).students}

    def as_child(row: Row, child: Mapping[str, object], **more: str) -> Row:
        known = {"givenName": "first_name", "familyName": "last_name", "birthDate": "birth_date"}
        same = {column: str(child[name]) for column, name in known.items() if column in row}
        return {**row, **same, **{column: value for column, value in more.items() if column in row}}

    def change(rows: list[Row]) -> list[Row]:
        made = {
            MISSPELT: lambda row: as_child(
                row, of_sis["402"], familyName="Lockart", userIds="", userMasterIdentifier=""
            ),
            COUSIN: lambda row: as_child(
                row, of_sis["406"], email=str(of_sis["406"]["email"]), userIds="", userMasterIdentifier=""
            ),
        }
        return [made.get(row["sourcedId"], lambda row: row)(row) for row in rows]

    for name in ("users", "demographics"):
        _rewrite(folder / f"{name}.csv", change)


def _lose_students(place: Town, folder: Path) -> None:
    """Everybody of one school, which closed and nobody said so, and some of another, who are missing by mistake."""
    there = [
        row for row in place.world.view(LEARNING, 1).students if not row.person.shared and row.stint_in(YEAR.start)
    ]
    closed = [row.sis_id for row in there if row.latest.school == CLOSED]
    mistaken = [row.sis_id for row in there if row.latest.school == SHORT][:4]
    gone = {*closed, *mistaken}
    for name, column in (
        ("users", "sourcedId"),
        ("demographics", "sourcedId"),
        ("roles", "userSourcedId"),
        ("enrollments", "userSourcedId"),
    ):
        _rewrite(folder / f"{name}.csv", lambda rows, column=column: [row for row in rows if row[column] not in gone])
