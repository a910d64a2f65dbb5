"""Real pages of every flavor, recorded from the sandbox, cut small, and brought through decoding, mapping and validation.
How they are spoilt is each test's business; what must come out untouched is worked out here."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sis_pipeline.providers.base import Provider, Record
from sis_pipeline.providers.infinite_campus import InfiniteCampus
from sis_pipeline.providers.mapping import text
from sis_pipeline.providers.oneroster import OneRoster
from sis_pipeline.providers.oneroster_csv import OneRosterCsv, OneRosterCsvSettings
from sis_pipeline.providers.powerschool import PowerSchool
from sis_pipeline.providers.reading import MemorySnapshot, read
from sis_pipeline.providers.skyward import Skyward
from sis_pipeline.roster.model import ENTITIES
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.validate import Validated, quarantine_dangling, validate
from sis_pipeline.sandbox.oneroster_csv import write_bundle
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.providers.sources import OverHttp

YEAR = SchoolYear.on(datetime.now(UTC).date())
KINDS: dict[str, tuple[str, type[Provider]]] = {
    "powerschool": ("powerschool", PowerSchool),
    "oneroster 1.1": ("oneroster_1.1", OneRoster),
    "oneroster 1.2": ("oneroster_1.2", OneRoster),
    "infinite campus": ("infinite_campus", InfiniteCampus),
    "skyward sms": ("skyward_sms", Skyward),
    "skyward qmlativ": ("skyward_qmlativ", Skyward),
    "skyward oneroster": ("skyward_oneroster", Skyward),
    "oneroster csv": ("oneroster_csv", OneRosterCsv),
}
FLAVORS = [
    name
    if name in {"powerschool", "oneroster 1.2", "skyward qmlativ"}
    else pytest.param(name, marks=pytest.mark.faults)
    for name in KINDS
]
"""All of them in `make faults`; in `make test` one of each kind."""

DERIVED: dict[tuple[str, str], set[str]] = {
    ("skyward sms", "sections"): {"academic_sessions"},
    ("skyward sms", "schools"): {"academic_sessions"},
    ("skyward qmlativ", "Scheduling-Section"): {"academic_sessions"},
    ("skyward qmlativ", "Enrollment-GradeLevel"): {"schools"},
    ("skyward qmlativ", "Enrollment-EntitySchool"): {"schools"},
    ("skyward qmlativ", "Staff-StaffEntityYear"): {"staff"},
    ("skyward qmlativ", "Scheduling-Meet"): {"staff"},
    ("skyward qmlativ", "Scheduling-StaffMeet"): {"staff"},
    ("skyward qmlativ", "Enrollment-EntryCode"): {"enrollments"},
    ("skyward qmlativ", "Enrollment-WithdrawalCode"): {"enrollments"},
    ("powerschool", "terms"): {"academic_sessions"},
}
"""(flavor, resource) -> entities whose rows are worked out from the whole of that list."""

Json = Any
Key = tuple[str, str]
"""(entity, sis_id)."""


@dataclass(frozen=True)
class RecordedPage:
    """A page as it came."""

    resource: str
    about: Mapping[str, str]
    body: bytes

    @property
    def is_csv(self) -> bool:
        return not self.body.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"{", b"["))


@dataclass
class Outcome:
    """What came of a set of pages: the good rows with dangling references taken out, and what was set aside."""

    validated: dict[str, Validated]
    frames: dict[str, pd.DataFrame]

    @cached_property
    def rows(self) -> dict[Key, tuple[Any, ...]]:
        """Every good row as plain values, without the time at which it was read."""
        return {
            (entity, values[0]): values
            for entity, frame in self.frames.items()
            for values in frame.astype(object).where(frame.notna(), None).itertuples(index=False, name=None)
        }

    @property
    def rejected(self) -> int:
        return sum(one.rejected_rows for one in self.validated.values())

    @property
    def duplicates(self) -> int:
        return sum(one.duplicates for one in self.validated.values())


@dataclass
class Flavor:
    """One flavor: its provider and its recorded pages, small ones."""

    name: str
    provider: Provider
    identities: Mapping[str, tuple[str, ...]]
    pages: Sequence[RecordedPage]
    truth: Outcome = field(init=False)

    def __post_init__(self) -> None:
        self.truth = self.bring_in(self.pages)

    def bring_in(self, pages: Iterable[RecordedPage]) -> Outcome:
        """Standardise and validate pages. Raises what the provider raises."""
        snapshot = MemorySnapshot(YEAR)
        for page in pages:
            snapshot.add(page.resource, page.body, **page.about)
        frames = self.provider.standardise(snapshot)
        validated = {name: validate(name, frame) for name, frame in frames.items()}
        good = quarantine_dangling({name: checked.frame for name, checked in validated.items()})
        return Outcome(validated, good.frames)

    def identity(self, resource: str, record: Record) -> str | None:
        value: Any = record
        for step in self.identities[resource]:
            value = value.get(step) if isinstance(value, Mapping) else None
        return None if value in (None, "") else str(value)

    def decoded(self, page: RecordedPage) -> Sequence[Record]:
        """The records of a page. Raises ContractError for a body that is not what the API allows."""
        return self.provider.decode(page.resource, page.body)

    def touched(self, records: Iterable[tuple[str, Record]], outcome: Outcome) -> set[Key]:
        """The rows that depend on some records: those with their ids, of the people they name, all that refer to such
        rows, in the truth and in what came out, and the school enrollments worked out from such seats."""
        people = {key[1] for key in self.truth.rows if key[0] in {"students", "staff"}}
        ids: set[str] = set()
        derived: set[str] = set()
        for resource, record in records:
            own = self.identity(resource, record)
            ids |= {one for one in scalars(record) if one in people} | ({own} if own else set()) | own_ids(record)
            ids |= {person for name in self._names(record) for person in self._people_by_name.get(name, ())}
            derived |= DERIVED.get((self.name, re.sub(r"-\d+$", "", resource)), set())
        links = [*self._links(self.truth), *self._links(outcome)]
        marked: set[Key] = set()
        while found := {key for key, refers in links if key not in marked and (key[1] in ids or refers & ids)}:
            marked |= found
            ids |= {key[1] for key in found}
        seats = (refers for key, refers in links if key in marked and key[0] == "section_enrollments")
        seated = people & set().union(*seats)
        worked_out = {key for key, refers in links if _worked_out(key, refers, seated, derived)}
        return marked | worked_out

    def _names(self, record: Record) -> set[str]:
        """Qmlativ keeps a person's addresses and logins by the id of a name, and addresses by one of their own."""
        name, address = str(record.get("NameID") or ""), str(record.get("AddressID") or "")
        return {name} | self._names_by_address.get(address, set())

    @cached_property
    def _people_by_name(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for resource in ("Student-Student", "Staff-Staff"):
            for record in self._all(resource):
                found.setdefault(str(record.get("NameID")), set()).add(self.identity(resource, record) or "")
        return found

    @cached_property
    def _names_by_address(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for record in self._all("Demographics-NameAddress"):
            found.setdefault(str(record.get("AddressID")), set()).add(str(record.get("NameID")))
        return found

    @cached_property
    def words(self) -> dict[str, set[str]]:
        """By id, all that the records with it hold."""
        found: dict[str, set[str]] = {}
        for page in self.pages:
            for record in self.decoded(page):
                found.setdefault(self.identity(page.resource, record) or "", set()).update(scalars(record))
        return found

    def _all(self, resource: str) -> list[Record]:
        return [record for page in self.pages if page.resource == resource for record in self.decoded(page)]

    @staticmethod
    def _links(outcome: Outcome) -> list[tuple[Key, set[str]]]:
        links = []
        for entity, frame in outcome.frames.items():
            columns = [frame.columns.get_loc(column.name) for column in ENTITIES[entity] if column.refers]
            for key, values in outcome.rows.items():
                if key[0] == entity:
                    links.append((key, {str(values[at]) for at in columns if values[at] is not None}))
        return links


def _worked_out(key: Key, refers: set[str], seated: set[str], derived: set[str]) -> bool:
    """What is worked out from seats (school enrollments, homerooms) or from whole lists (sessions and their parents)."""
    entity, sis_id = key
    if entity == "enrollments":
        return bool(refers & seated)
    return entity in derived or (entity in {"students", "staff"} and sis_id in seated)


def own_ids(record: Record) -> set[str]:
    """Everything by which a record is named: vendors have several ids, and which one counts differs by list."""
    return {
        str(value)
        for name, value in record.items()
        if name.rpartition(".")[2].casefold() in {"id", "dcid", "sourcedid"} and isinstance(value, str | int)
    }


def scalars(value: Json) -> Iterable[str]:
    """Every text and number in a record, as the text that a column would hold."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from scalars(one)
    elif value is not None and not isinstance(value, bool):
        yield text(value) or ""


@cache
def flavor(name: str, students: int = 40, size: int = 3) -> Flavor:
    """A flavor of the sandbox, read once, its pages cut to `size` records."""
    dialect, kind = KINDS[name]
    world = World(seed=23, systems=(System("sis", dialect, students, {"bad_rows": False}),), school_year=YEAR.key)
    if kind is OneRosterCsv:
        with tempfile.TemporaryDirectory() as folder:
            bundle = write_bundle(world.view("sis", 1), Path(folder) / "set")
            return _recorded(name, OneRosterCsv(OneRosterCsvSettings(path=bundle)), None, size)
    with SandboxServer(world, enforce_limits=False) as server:
        handle = server.system("sis")
        provider = kind(kind.Settings.model_validate(handle.settings))
        oauth = provider.authentication()
        assert oauth is not None
        source = OverHttp(handle.base_url, oauth, handle.client_secret)
        return _recorded(name, provider, source, size, server.url.encode())


def _recorded(name: str, provider: Provider, source: Any, size: int, served_at: bytes = b"http://localhost") -> Flavor:
    """Links in the pages get an address that is the same in every run: what is spoilt depends on where things stand."""
    snapshot = MemorySnapshot(YEAR)
    plan = provider.plan(source, YEAR, {})
    read(plan, source.send if source else None, provider.decode, snapshot)  # type: ignore[arg-type]
    identities = {resource.name: resource.identity for resource in plan.resources}
    pages = [
        RecordedPage(resource, dict(about), part)
        for resource in snapshot.resources
        for about, body in snapshot.bodies(resource)
        for part in cut(body.replace(served_at, b"https://sis.example.org"), size)
    ]
    return Flavor(name, provider, identities, pages)


def cut(body: bytes, size: int) -> list[bytes]:
    """A page as several of at most `size` records each."""
    if not body.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"{", b"[")):
        head, *lines = body.splitlines(keepends=True)
        return [head + b"".join(lines[at : at + size]) for at in range(0, max(1, len(lines)), size)]
    document = json.loads(body)
    found = records_in(document)
    if found is None or len(found) <= size:
        return [body]
    parts = []
    for at in range(0, len(found), size):
        part = copy.deepcopy(document)
        records_in(part)[:] = found[at : at + size]  # type: ignore[index]
        parts.append(json.dumps(part).encode())
    return parts


def records_in(document: Json) -> list[Json] | None:
    """The list of a page's records, in whatever envelope: the first list of objects, outermost first."""
    waiting = [document]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, list) and one and all(isinstance(element, dict) for element in one):
            return one
        if isinstance(one, dict):
            waiting.extend(one.values())
    return None
