"""Reading only what changed: for every API that can, a full reading with later changes laid over it equals a full reading
of the last day, but for what vanished without a word. Real sockets; days pass by the systems' own clocks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.connect.errors import InternalError, SisError
from sis_pipeline.providers.base import Page, Plan, Provider, Record, Request, Resource
from sis_pipeline.providers.decoding import identity_of
from sis_pipeline.providers.deltas import OVERLAP, ServerClock, Unheeded, changes_of
from sis_pipeline.providers.infinite_campus import InfiniteCampus
from sis_pipeline.providers.layers import Layered
from sis_pipeline.providers.oneroster import OneRoster
from sis_pipeline.providers.oneroster_csv import OneRosterCsv, OneRosterCsvSettings
from sis_pipeline.providers.pagers import SinglePage
from sis_pipeline.providers.powerschool import CHANGE_COLUMNS, PowerSchool
from sis_pipeline.providers.reading import MemorySnapshot, read, verdict
from sis_pipeline.providers.skyward import Skyward
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.providers.sources import OverHttp, Script

YEAR = SchoolYear.on(datetime.now(UTC).date())
SYSTEMS = (
    System("or11", "oneroster_1.1", 40, {"page_cap": 25, "totals": False}),
    System("or12", "oneroster_1.2", 40, {"page_cap": 25}),
    System("campus", "infinite_campus", 40, {"page_cap": 25}),
    System("ps", "powerschool", 40, {"max_page_size": 25}),
    System("qm", "skyward_qmlativ", 40),
    System("deaf", "oneroster_1.2", 20, {"filters": "ignored"}),
    System("strict", "oneroster_1.2", 20, {"filters": "refused"}),
    System("bare", "powerschool", 20, {"no_access": ["section_enrollments_changed"]}),
)
PROVIDERS: dict[str, type[Provider]] = {
    "oneroster": OneRoster,
    "infinite_campus": InfiniteCampus,
    "powerschool": PowerSchool,
    "skyward": Skyward,
}
MORE = {"qm": {"page_size": 25}}
NAMES = ["or11", "or12", "campus", "ps", "qm"]
STAMPS = {"ModifiedTime", "transaction_date"}
"""Fields that only a reading of changes asks for."""


@dataclass
class Taken:
    """One reading: its pages, what they cost, and what the source's clock said."""

    pages: MemorySnapshot
    plan: Plan
    began: datetime
    calls: int
    rows: dict[str, int]
    unheeded: str


@dataclass
class Town:
    server: SandboxServer
    _full: dict[tuple[str, int], Taken] = field(default_factory=dict)
    _deltas: dict[str, tuple[Taken, Taken]] = field(default_factory=dict)

    def provider(self, name: str) -> Provider:
        handle = self.server.system(name)
        kind = PROVIDERS[handle.provider]
        return kind(kind.Settings.model_validate(handle.settings | MORE.get(name, {})))

    def full(self, name: str, day: int) -> Taken:
        if (name, day) not in self._full:
            self._full[name, day] = self._read(name, day, None)
        return self._full[name, day]

    def delta(self, name: str, day: int, before: Taken) -> Taken:
        return self._read(name, day, before)

    def _read(self, name: str, day: int, before: Taken | None) -> Taken:
        self.server.set_day(day)
        provider, handle = self.provider(name), self.server.system(name)
        oauth = provider.authentication()
        assert oauth is not None
        door, clock = OverHttp(handle.base_url, oauth, handle.client_secret), ServerClock()
        source = clock.listening(door)
        last_rows = self.full(name, 1).rows if before else {}
        self.server.set_day(day)
        plan = (
            provider.plan_delta(source, YEAR, before.began, last_rows)
            if before
            else provider.plan(source, YEAR, last_rows)
        )
        pages, unheeded = MemorySnapshot(YEAR), Unheeded(plan.since or datetime.now(UTC))

        def keep(resource: Resource, page: Page) -> None:
            pages(resource, page)
            unheeded.look(resource, page)

        readings = read(plan, source.send, provider.decode, keep)
        assert verdict(readings) == "complete", [one for one in readings if not one.complete]
        assert clock.first is not None
        rows = {one.resource: one.rows for one in readings}
        return Taken(pages, plan, clock.first, door.calls, rows, unheeded.in_words())

    def three_days(self, name: str) -> tuple[Taken, Taken, Layered]:
        """Changes of day 2, of day 3, and both laid over the full reading of day 1."""
        first = self.full(name, 1)
        if name not in self._deltas:
            second = self.delta(name, 2, first)
            self._deltas[name] = second, self.delta(name, 3, second)
        second, third = self._deltas[name]
        return second, third, Layered(self.provider(name), [first.pages, second.pages, third.pages])


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    world = World(seed=7, systems=SYSTEMS, school_year=YEAR.key)
    with SandboxServer(world, enforce_limits=False) as server:
        yield Town(server)


def raw(provider: Provider, plan: Plan, pages: Any) -> dict[str, dict[str, Record]]:
    """By resource and id the records, without the fields that only one kind of reading asks for."""
    identities = {resource.name: resource.identity for resource in plan.resources}
    return {
        name: {
            identity_of(record, identities[name]) or json.dumps(record, sort_keys=True): {
                key: value for key, value in record.items() if key not in STAMPS
            }
            for _, body in pages.bodies(name)
            for record in provider.decode(name, body)
        }
        for name in pages.resources
    }


@pytest.mark.parametrize("name", NAMES)
def test_records_equal_a_full_reading_but_for_what_vanished(town: Town, name: str) -> None:
    second, _, laid = town.three_days(name)
    provider, plan = town.provider(name), town.full(name, 1).plan
    asked = {resource.name for resource in second.plan.resources if resource.modified}
    effective = raw(provider, plan, laid)
    by_day = {day: raw(provider, plan, town.full(name, day).pages) for day in (1, 2, 3)}
    assert effective.keys() == by_day[3].keys()
    changed = 0
    for resource, records in by_day[3].items():
        vanished = (by_day[1][resource].keys() | by_day[2][resource].keys()) - records.keys()
        assert effective[resource].keys() - records.keys() == (vanished if resource in asked else set())
        assert {key: effective[resource][key] for key in records} == records
        changed += records != by_day[1][resource]
    assert changed > 1, "nothing happened in these days, so nothing was proven"


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    values = frame.set_index("sis_id").drop(columns="modified_at", errors="ignore").astype(object)
    return values.where(values.notna(), None).sort_index()


@pytest.mark.parametrize("name", NAMES)
def test_standard_frames_equal_those_of_a_full_reading_but_for_what_vanished(town: Town, name: str) -> None:
    """Exactly, save one thing that follows from it: the entry date that Campus does not have is worked out from class
    enrollments, so it is older where one of those has vanished."""
    _, _, laid = town.three_days(name)
    provider = town.provider(name)
    frames = {day: provider.standardise(town.full(name, day).pages) for day in (1, 2, 3)}
    effective = provider.standardise(laid)
    had = set(frames[1]["section_enrollments"]["sis_id"]) | set(frames[2]["section_enrollments"]["sis_id"])
    gone = had - set(frames[3]["section_enrollments"]["sis_id"])
    seats = effective["section_enrollments"]
    robbed = set(seats.loc[seats["sis_id"].isin(gone), "person_sis_id"])
    for entity in frames[3]:
        now, past = comparable(effective[entity]), {day: comparable(frames[day][entity]) for day in frames}
        assert now.index.is_unique
        vanished = (set(past[1].index) | set(past[2].index)) - set(past[3].index)
        extra = set(now.index) - set(past[3].index)
        if name == "ps":  # what is not read whole does not vanish there
            assert extra == set(), entity
        elif entity in {"students", "section_enrollments"}:  # one row per record, so exactly those
            assert extra == vanished, entity
        else:  # worked out from several records, some of which did say that they changed
            assert extra <= vanished, entity
        same, expected = now.loc[past[3].index], past[3]
        if entity == "enrollments" and name == "campus":
            excused = expected["student_sis_id"].isin(robbed)
            assert (expected.loc[excused, "entry_date"] >= same.loc[excused, "entry_date"]).all()
            same, expected = same[~excused], expected[~excused]
        pd.testing.assert_frame_equal(same, expected[same.columns], check_dtype=False)


def test_tombstones_reach_the_frames(town: Town) -> None:
    _, _, laid = town.three_days("or11")
    frames = town.provider("or11").standardise(laid)
    gone = {
        row.sis_id
        for row in town.server.world.view("or11", 3).students
        if row.tombstone and row.record.gone and row.record.gone > town.server.world.date(1)
    }
    assert gone
    students = frames["students"].set_index("sis_id")["record_status"]
    assert set(students[students == "to_be_deleted"].index) >= gone
    ended = frames["enrollments"]
    assert set(ended.loc[ended["record_status"] == "to_be_deleted", "student_sis_id"]) >= gone


@pytest.mark.parametrize(
    ("name", "at_most"), [("or11", 0.4), ("or12", 0.3), ("campus", 0.5), ("ps", 0.85), ("qm", 0.7)]
)
def test_changes_take_fewer_calls_and_rows(town: Town, name: str, at_most: float) -> None:
    second, third, _ = town.three_days(name)
    first = town.full(name, 1)
    for delta in (second, third):
        assert delta.calls <= at_most * first.calls
        assert sum(delta.rows.values()) < sum(first.rows.values()) / 1.3  # PowerSchool reads its small lists whole
        assert delta.plan.calls <= delta.calls
        assert delta.unheeded == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_day_without_changes_lays_nothing_over(town: Town, name: str) -> None:
    """What changed within the overlap comes once more, and changes nothing."""
    first = town.full(name, 1)
    again = town.delta(name, 1, first)
    laid = Layered(town.provider(name), [first.pages, again.pages])
    plan = first.plan
    assert raw(town.provider(name), plan, laid) == raw(town.provider(name), plan, first.pages)


def test_the_clock_is_the_servers(town: Town) -> None:
    """The systems' clocks are weeks away from ours; changes since our own time would be none at all."""
    first = town.full("or12", 1)
    assert first.began == datetime.combine(town.server.world.date(1), datetime.min.time(), UTC).replace(hour=12)
    assert abs(datetime.now(UTC) - first.began) > timedelta(days=2)
    second, _, _ = town.three_days("or12")
    assert second.plan.since == first.began - OVERLAP
    ours = replace(first, began=datetime.now(UTC))
    assert town.delta("or12", 2, ours).rows["enrollments"] == 0 < second.rows["enrollments"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("or12", timedelta(hours=1)), ("qm", timedelta(hours=13)), ("ps", timedelta(days=1, hours=12))],
)
def test_how_far_back_is_asked(town: Town, name: str, expected: timedelta) -> None:
    """An hour; half a day more where times have no zone; from the midnight a day before where there are only dates."""
    first = town.full(name, 1)
    assert first.began - town.delta(name, 2, first).plan.since == expected  # type: ignore[operator]


def test_a_change_that_was_committed_late_is_caught_by_the_overlap(town: Town) -> None:
    """Stamped half an hour before the last reading began, which did not see it yet."""
    first = town.full("or12", 1)
    second_day = datetime.combine(town.server.world.date(2), datetime.min.time(), UTC).replace(hour=6, minute=15)
    before = replace(first, began=second_day + timedelta(minutes=30))
    assert town.delta("or12", 2, before).rows["users"] > 0
    assert town.delta("or12", 2, replace(first, began=second_day + OVERLAP)).rows["users"] == 0


def test_what_can_not_be_asked_for_changes_is_read_whole(town: Town) -> None:
    second, _, _ = town.three_days("ps")
    asked = [resource.name for resource in second.plan.resources if resource.modified]
    assert asked == ["section_enrollments"]
    assert second.rows["students"] == town.full("ps", 2).rows["students"]
    assert any("everything else whole" in note for note in second.plan.notes)
    second, _, _ = town.three_days("qm")
    whole = {resource.name for resource in second.plan.resources if not resource.modified}
    assert {"Scheduling-Section", "Staff-Staff"} <= whole
    assert "Student-Student" not in whole


def test_a_plugin_without_the_query_of_changes_is_read_whole(town: Town) -> None:
    delta = town.delta("bare", 2, town.full("bare", 1))
    assert (delta.plan.delta, delta.plan.since) == (False, None)
    assert delta.rows == town.full("bare", 2).rows
    assert any("no PowerQuery of changes" in note for note in delta.plan.notes)


def test_a_server_that_ignores_the_question_is_noticed_and_still_right(town: Town) -> None:
    first = town.full("deaf", 1)
    delta = town.delta("deaf", 2, first)
    assert delta.rows["users"] == town.full("deaf", 2).rows["users"]
    assert "ignores the question" in delta.unheeded
    assert "users" in delta.unheeded
    laid = Layered(town.provider("deaf"), [first.pages, delta.pages])
    effective = raw(town.provider("deaf"), first.plan, laid)
    expected = raw(town.provider("deaf"), first.plan, town.full("deaf", 2).pages)
    assert all(effective[name].items() >= records.items() for name, records in expected.items())


def test_a_server_that_refuses_the_question_says_400(town: Town) -> None:
    with pytest.raises(SisError) as refused:
        town.delta("strict", 2, town.full("strict", 1))
    assert refused.value.context["status"] == 400


def test_an_optional_object_that_was_not_there_is_not_asked_for_changes(town: Town) -> None:
    """So that a refused condition can't pass for an object that is not offered."""
    rows = {name: count for name, count in town.full("qm", 1).rows.items() if name != "Security-User"}
    provider = town.provider("qm")
    metadata = json.dumps({"System": {"Districts": [{"EntityID": 1, "Code": "FERN", "SchoolYearCurrent": {
        "SchoolYearID": 12, "NumericYear": YEAR.end}}]}}).encode()  # fmt: skip
    source = Script({"/Custom/GetSystemMetadata": json.loads(metadata)})
    plan = provider.plan_delta(source, YEAR, datetime(2026, 10, 5, tzinfo=UTC), rows)
    by_name = {resource.name: resource for resource in plan.resources}
    assert by_name["Security-User"].request.method == "GET"
    assert by_name["Demographics-NameEmail"].request.method == "POST"
    assert 400 not in by_name["Demographics-NameEmail"].optional
    assert 403 in by_name["Demographics-NameEmail"].optional


def test_who_can_not_tell_changes_says_so(tmp_path: Any) -> None:
    provider = OneRosterCsv(OneRosterCsvSettings(path=tmp_path))
    assert not provider.capabilities.delta
    with pytest.raises(InternalError):
        provider.plan_delta(Script({}), YEAR, datetime.now(UTC), {})
    with pytest.raises(InternalError):
        provider.encode("users", [])


# --- the pieces ----------------------------------------------------------------------------------------------------


class Plain:
    """A provider as far as layers need one: pages are JSON lists of records."""

    def decode(self, _resource: str, body: bytes) -> Sequence[Record]:
        decoded: list[Record] = json.loads(body)
        return decoded

    def encode(self, _resource: str, records: Sequence[Record]) -> bytes:
        return json.dumps(list(records)).encode()


RECORDS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 99)), max_size=6)


@given(
    full=st.lists(RECORDS, min_size=1, max_size=3),
    changes=st.lists(st.lists(RECORDS, min_size=1, max_size=2), max_size=4),
)
def test_of_every_id_the_newest_layer_counts(
    full: list[list[tuple[int, int]]], changes: list[list[list[tuple[int, int]]]]
) -> None:
    """Against a plain model, with ids that come twice in one reading, empty pages and records without an id."""

    def layer(pages: Sequence[Sequence[tuple[int, int]]], **about: str) -> MemorySnapshot:
        snapshot = MemorySnapshot(YEAR)
        for page in pages:
            records = [{"id": {"n": key or None}, "value": value} for key, value in page]
            snapshot.add("things", json.dumps(records).encode(), **about)
        return snapshot

    laid = Layered(Plain(), [layer(full), *(layer(pages, changes_by="id.n") for pages in changes)])  # type: ignore[arg-type]
    found = [record for _, body in laid.bodies("things") for record in json.loads(body)]

    state: dict[int, list[int]] = {}
    nameless: Counter[int] = Counter()
    for pages in [full, *changes]:
        of_layer: dict[int, list[int]] = {}
        for key, value in (pair for page in pages for pair in page):
            if key:
                of_layer.setdefault(key, []).append(value)
            else:
                nameless[value] += 1
        state |= of_layer
    assert Counter((one["id"]["n"], one["value"]) for one in found if one["id"]["n"]) == Counter(
        (key, value) for key, values in state.items() for value in values
    )
    assert Counter(one["value"] for one in found if not one["id"]["n"]) == nameless


def test_a_resource_that_a_later_layer_read_whole_counts_from_there() -> None:
    old, new, changes = MemorySnapshot(YEAR), MemorySnapshot(YEAR), MemorySnapshot(YEAR)
    old.add("terms", b'[{"id": 1}, {"id": 2}]')
    old.add("seats", b'[{"id": 7}]')
    new.add("terms", b'[{"id": 2, "new": true}]')
    changes.add("terms", b'[{"id": 3}]', changes_by="id")
    laid = Layered(Plain(), [old, new, changes])  # type: ignore[arg-type]
    assert [body for _, body in laid.bodies("terms")] == [b'[{"id": 2, "new": true}]', b'[{"id": 3}]']
    assert [body for _, body in laid.bodies("seats")] == [b'[{"id": 7}]'], "what a layer skipped stays"
    assert laid.resources == ["terms", "seats"]


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("Mon, 05 Oct 2026 12:00:00 GMT", datetime(2026, 10, 5, 12, tzinfo=UTC)),
        ("Mon, 05 Oct 2026 14:00:00 +0200", datetime(2026, 10, 5, 12, tzinfo=UTC)),
        ("yesterday", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -1200", None),
        ("", None),
    ],
)
def test_a_clock_hears_the_first_answer_that_says_the_time(said: str, heard: datetime | None) -> None:
    clock = ServerClock()
    for text in (said, "Tue, 06 Oct 2026 12:00:00 GMT"):
        clock.hear(SimpleNamespace(headers={"date": text}))  # type: ignore[arg-type]
    assert clock.first == (heard or datetime(2026, 10, 6, 12, tzinfo=UTC))


def test_only_records_that_are_older_by_a_day_count_as_not_asked_for() -> None:
    since = datetime(2026, 10, 5, 12, tzinfo=UTC)
    plain = Resource("users", Request("/users"), SinglePage(), ("id",))
    asked = changes_of(plain, plain.request, ("at", "last"))
    stamps = ["2026-10-04T11:59:59Z", "2026-10-04T12:00:01Z", "2026-10-04T06:00:00-07:00", "2026-10-01", "soon", None]
    records = [{"id": str(n), "at": {"last": stamp}} for n, stamp in enumerate(stamps)]
    unheeded = Unheeded(since)
    unheeded.look(plain, Page(1, b"", records))
    assert unheeded.in_words() == ""
    unheeded.look(asked, Page(1, b"", records))
    unheeded.look(asked, Page(2, b"", records))
    assert "(4 in users)" in unheeded.in_words()
    unheeded.look(asked, Page(1, b"", []))
    assert unheeded.in_words() == "", "a resource that is read again starts over"


def test_a_plan_of_changes_expects_nothing_of_the_last_full_reading() -> None:
    plain = Resource("users", Request("/users"), SinglePage(), ("id",), expected_rows=5_000)
    plan = Plan((plain, changes_of(plain, plain.request, ("at",))), "last_snapshot").after({"users": 7})
    assert [(one.expected_rows, one.last_pages) for one in plan.resources] == [(5_000, 7), (None, 0)]


def test_every_page_that_is_written_is_read_back(town: Town) -> None:
    for name in NAMES:
        provider, taken = town.provider(name), town.full(name, 1)
        second, _, _ = town.three_days(name)
        for resource in second.plan.resources:
            if resource.modified:
                records = [one for _, body in taken.pages.bodies(resource.name)
                           for one in provider.decode(resource.name, body)]  # fmt: skip
                for some in (records, records[:1], []):
                    again = provider.decode(resource.name, provider.encode(resource.name, some))
                    assert list(again) == list(some), (name, resource.name)


def test_settings_are_refused_that_make_no_sense() -> None:
    good: Mapping[str, Any] = {"base_url": "https://sis.example/api", "client_id": "x"}
    settings = PowerSchool.Settings.model_validate({**good, "reads": "delta", "full_read_days": 3})
    assert (settings.reads, settings.full_read_days) == ("delta", 3)  # type: ignore[attr-defined]
    for wrong in ({"reads": "some"}, {"full_read_days": 0}, {"full_read_days": 32}):
        with pytest.raises(ValueError, match=r"reads|full_read_days"):
            PowerSchool.Settings.model_validate({**good, **wrong})


def test_the_plugins_query_of_changes_gives_what_the_provider_reads() -> None:
    """The columns of the whole query, the day of the last change, and nothing that plugin.xml does not ask for."""
    folder = Path(__file__).parents[2] / "docs" / "powerschool_plugin"
    (query,) = ElementTree.parse(folder / "queries_root" / "sis_pipeline_changes.named_queries.xml").getroot()
    settings = PowerSchool.Settings.model_validate({"base_url": "https://sis.example", "client_id": "x"})
    assert query.get("name") == settings.changed_section_enrollments_query  # type: ignore[attr-defined]
    columns = query.findall("columns/column")
    assert tuple(column.text for column in columns) == CHANGE_COLUMNS
    named = [str(column.get("column")).lower() for column in columns]
    selected = str(query.findtext("sql")).split("FROM")[0].split("SELECT")[1].replace("\n", " ").split(",")
    assert [name.strip() for name in selected] == named
    space = {"p": "http://plugin.powerschool.pearson.com"}
    fields = ElementTree.parse(folder / "plugin.xml").getroot().findall("p:access_request/p:field", space)
    assert set(named) <= {f"{field.get('table')}.{field.get('field')}" for field in fields}
    assert [argument.get("name") for argument in query.findall("args/arg")] == ["yearid", "since"]
