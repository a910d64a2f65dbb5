"""A reading that brought what the last one brought is not decoded again, and is judged anew once anything else counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sis_pipeline.connect.errors import TransientError
from sis_pipeline.defs import loading, unchanged
from sis_pipeline.defs.loading import RosterLoad, load_roster
from sis_pipeline.defs.merging import merge_districts, publish_districts
from sis_pipeline.providers.oneroster import OneRoster
from sis_pipeline.store.erasure import Erasing
from sis_pipeline.store.integrations import Integration
from sis_pipeline.store.locks import AlreadyRunningError
from sis_pipeline_tests.defs.conftest import YEAR, Installation
from sis_pipeline_tests.store.conftest import Read

KEY = "fern-or"
ACTIVE = {"status": "active", "dateLastModified": "2026-01-05T06:00:00Z"}
SETTINGS = {"base_url": "https://sis.example/ims", "token_url": "https://sis.example/token", "client_id": "c"}


def user(sis_id: str, **values: object) -> dict[str, object]:
    role = {"roleType": "primary", "role": "student", "org": {"sourcedId": "s1", "type": "org"}}
    named = {"givenName": "Ada", "familyName": "Null", "identifier": sis_id, "grades": ["07"], "roles": [role]}
    return {"sourcedId": sis_id, **ACTIVE, **named, **values}


def roster(*users: dict[str, object]) -> dict[str, list[dict[str, object]]]:
    session = {"title": YEAR.key, "type": "schoolYear", "schoolYear": str(YEAR.end)}
    days = {"startDate": f"{YEAR.start}-08-20", "endDate": f"{YEAR.end}-06-10"}
    return {
        "orgs": [{"sourcedId": "s1", **ACTIVE, "name": "Pine", "type": "school", "identifier": "1"}],
        "academicSessions": [{"sourcedId": "y", **ACTIVE, **session, **days}],
        "users": list(users),
        "demographics": [{"sourcedId": "u1", **ACTIVE, "birthDate": "2012-03-04"}],
    }


NAMELESS = user("u3", givenName="")
PAGES = roster(user("u1"), user("u2"), NAMELESS)


class Place:
    """One integration whose pages are given, and how often they were decoded."""

    def __init__(self, installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
        self.installation, self.roster, self.decoded = installation, installation.roster, 0
        decode = loading._standard

        def counted(*given: Any) -> Any:
            self.decoded += 1
            return decode(*given)

        monkeypatch.setattr(loading, "_standard", counted)
        self.roster.integrations.add(Integration(KEY, "oneroster", "fernhollow", settings=SETTINGS))

    def sync(
        self, pages: dict[str, list[dict[str, object]]] = PAGES, completeness: Any = "complete", *, full: bool = False
    ) -> RosterLoad:
        writer = self.roster.snapshots.begin(KEY, "oneroster", YEAR.key)
        for name, rows in pages.items():
            body = json.dumps({name: rows}).encode()
            writer.add_page(name, {"active_year": YEAR.key}, 1, body, len(rows))
        writer.finish([Read(name, len(rows)) for name, rows in pages.items()], completeness, 1, 0.1)
        return load_roster(self.roster, KEY, YEAR, "run", lambda _line: None, full=full)

    def columns(self, resource: str = "users") -> list[Path]:
        """Where columns of decoded pages are kept."""
        return sorted(Path(self.installation.settings.data_url).rglob(f"_decoded/{resource}.arrow"))

    def of(self, load: RosterLoad) -> list[Path]:
        return [path for path in self.columns() if load.snapshot.snapshot_id in path.parts]

    def kept(self, load: RosterLoad) -> dict[str, Any]:
        """All that is kept of a snapshot, but for its name."""
        store, snapshot = self.roster.snapshots, load.snapshot
        rejected = self.installation.rows(
            'select entity, "row", "column", reason, sis_id from sis.quarantine where snapshot_id = :id order by 1, 2, 3',
            id=snapshot.snapshot_id,
        )
        frames = {entity: store.read_roster(snapshot, entity).to_dicts() for entity in snapshot.rows}
        aside = {entity: store.read_quarantine(snapshot, entity).to_dicts() for entity in snapshot.quarantined}
        counts = (snapshot.verdict, snapshot.rows, snapshot.quarantined, snapshot.roster_hash)
        return {"rejected": rejected, "frames": frames, "aside": aside, "counts": counts}


@pytest.fixture
def place(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(installation, monkeypatch)


def test_the_same_pages_are_worth_what_they_were_without_being_decoded(place):
    first, second = place.sync(), place.sync()
    assert place.decoded == 1
    assert first.snapshot.snapshot_id != second.snapshot.snapshot_id
    assert place.kept(second) == place.kept(first)
    assert len(place.kept(first)["rejected"]) == 2  # the nameless one, and her enrollment
    assert (second.entities, second.references, second.unknown_codes) == (
        first.entities,
        first.references,
        first.unknown_codes,
    )
    assert place.kept(place.sync()) == place.kept(first)
    assert place.decoded == 1


def renamed(place: Place, _patch: pytest.MonkeyPatch) -> RosterLoad:
    return place.sync(roster(user("u1"), user("u2", givenName="Grace"), NAMELESS))


def read_in_part(place: Place, _patch: pytest.MonkeyPatch) -> RosterLoad:
    return place.sync(completeness="partial")


def set_otherwise(place: Place, _patch: pytest.MonkeyPatch) -> RosterLoad:
    changed = Integration(KEY, "oneroster", "fernhollow", settings={**SETTINGS, "state": "TX"})
    place.roster.integrations.add(changed, replace=True)
    return place.sync()


def upgraded(place: Place, patch: pytest.MonkeyPatch) -> RosterLoad:
    patch.setattr(unchanged, "_code", lambda _provider: "another version")
    return place.sync()


def erased_from(place: Place, _patch: pytest.MonkeyPatch) -> RosterLoad:
    snapshots = place.roster.snapshots
    path = f"{snapshots.latest(KEY, YEAR.key).path}/manifest.json"
    manifest = snapshots.files.read_json(path)
    snapshots.files.write_json(path, {**manifest, "erased": "an erasure"}, replace=True)
    return place.sync()


@pytest.mark.parametrize("otherwise", [renamed, read_in_part, set_otherwise, upgraded, erased_from])
def test_they_are_judged_anew_where_anything_else_counts(
    place: Place, monkeypatch: pytest.MonkeyPatch, otherwise: Callable[[Place, pytest.MonkeyPatch], RosterLoad]
) -> None:
    place.sync()
    otherwise(place, monkeypatch)
    assert place.decoded == 2


def test_who_was_born_in_the_future_may_be_born_by_now(place):
    pages = {**PAGES, "demographics": [{"sourcedId": "u1", **ACTIVE, "birthDate": f"{YEAR.end + 5}-03-04"}]}
    rejected = place.sync(pages)
    assert "birth_date: in the future" in rejected.entities["students"].reasons
    place.sync(pages)
    assert place.decoded == 2


def test_a_rejected_snapshot_is_nothing_to_take_over_from(place):
    pages = roster(NAMELESS)
    assert [place.sync(pages).snapshot.verdict for _ in range(2)] == ["rejected", "rejected"]
    assert place.decoded == 2


def test_what_was_taken_over_is_a_copy(place):
    first, second = place.sync(), place.sync()
    files = place.roster.snapshots.files
    files.delete(f"{first.snapshot.folder('roster')}/students.parquet")
    students = place.roster.snapshots.read_roster(second.snapshot, "students")
    assert isinstance(students, pl.DataFrame)
    assert students.height == 2


# --- records that come again on other pages ---


@pytest.fixture
def read_users(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the users that are decoded, in order; a page's first and last are always looked at."""
    found: list[str] = []
    decode = OneRoster.decode

    def listening(provider: OneRoster, resource: str, body: bytes) -> Any:
        records = decode(provider, resource, body)
        found.extend(record["sourcedId"] for record in records if resource == "users")
        return records

    monkeypatch.setattr(OneRoster, "decode", listening)
    return found


MORE = [user(f"u{number}") for number in range(4, 9)]
CHANGED = roster(
    *MORE[3:], user("u2", givenName="Grace"), *MORE[:2], NAMELESS, user("u1", grades=["Klingon"]), user("u0")
)


def test_only_records_that_are_new_are_decoded_and_all_is_as_if_all_were(place, read_users):
    place.sync(roster(user("u1"), user("u2"), NAMELESS, *MORE))
    read_users.clear()
    changed = place.sync(CHANGED)
    assert read_users == [MORE[3]["sourcedId"], "u0", "u2", "u1", "u0"]
    read_users.clear()
    anew = place.sync(CHANGED, full=True)
    assert len(read_users) == 2 + len(CHANGED["users"])
    assert place.kept(changed) == place.kept(anew)
    assert (changed.entities, changed.references) == (anew.entities, anew.references)
    assert changed.unknown_codes == anew.unknown_codes
    assert changed.unknown_codes["students.grade_level"] == {"other": 1}


def test_full_judges_the_same_pages_anew(place):
    place.sync()
    place.sync(full=True)
    assert place.decoded == 2


def test_columns_are_kept_of_the_last_good_snapshot_only(place):
    first = place.sync()
    assert place.columns() == place.of(first)
    second = place.sync(CHANGED)
    assert place.columns() == place.of(second)
    place.sync(roster(NAMELESS))
    assert place.columns() == place.of(second)  # the third was rejected
    fourth = place.sync(CHANGED)
    assert place.decoded == 3
    assert place.columns() == place.of(fourth)
    assert len(place.of(fourth)) == 1


def test_no_columns_are_kept_beside_pages_that_never_had_them(place):
    for pages in (PAGES, CHANGED, PAGES, PAGES):
        place.sync(pages)
    assert (place.decoded, place.columns()) == (2, [])


def test_without_columns_that_hold_everything_is_decoded(place, read_users):
    """How they may fail to hold is the store's to test."""
    place.sync()
    [path] = place.columns()
    path.write_bytes(path.read_bytes()[:-20])
    read_users.clear()
    changed = place.sync(CHANGED)
    assert len(read_users) == 2 + len(CHANGED["users"])
    assert place.kept(changed) == place.kept(place.sync(CHANGED, full=True))


def test_nobody_is_erased_while_it_is_judged_what_was_read(place, monkeypatch):
    """Else who was erased would be in frames that are written after the erasure had looked at all."""
    roster_of, keep_out = place.roster, loading.without_erased
    pages = roster(user("u1"), user("u2", familyName="Feather"))
    place.sync(pages)
    merge_districts(roster_of, YEAR.key, "run", print)
    publish_districts(roster_of, YEAR.key, "run", print)
    student = str(place.installation.scalar("select student_id from sis.students where last_name = 'Feather'"))
    erase = partial(
        Erasing(roster_of.engine, roster_of.snapshots.files, lambda: roster_of.vault).erase, student, "ada", "asked", force=True
    )  # fmt: skip

    def refused(*given: Any) -> Any:
        with pytest.raises(AlreadyRunningError, match=f"{KEY} is being judged"):
            erase()
        return keep_out(*given)

    monkeypatch.setattr(loading, "without_erased", refused)
    changed = place.sync(roster(user("u1", grades=["08"]), user("u2", familyName="Feather")))
    assert "Feather" in str(place.kept(changed))
    erase()
    assert "Feather" not in str(place.kept(changed))


def test_what_was_judged_goes_where_a_student_was_erased_meanwhile_all_the_same(place, monkeypatch):
    """The lock is gone with its connection where PostgreSQL started anew."""
    known = iter([frozenset[str](), frozenset({"a mark"})])
    with monkeypatch.context() as patch:
        patch.setattr(loading, "marks", lambda *_: next(known))
        with pytest.raises(TransientError, match="was erased while what was read was judged"):
            place.sync()
    snapshot = place.roster.snapshots.latest(KEY, YEAR.key)
    assert (snapshot.verdict, snapshot.rows) == ("pending", {})
    folder = Path(place.roster.settings.data_url) / snapshot.path
    assert {path.name for path in folder.iterdir()} == {*PAGES, "manifest.json"}, "the pages stay"
    assert place.installation.scalar("select count(*) from sis.quarantine") == 0
    assert place.sync().snapshot.verdict == "complete"


def test_an_erasure_takes_the_columns_with_the_pages(place):
    """A student is known by what was published; here nobody was, so the pages are deleted as an erasure does it."""
    place.sync()
    files, store = place.roster.snapshots.files, place.roster.snapshots
    erasing = Erasing(place.roster.engine, files, lambda: place.roster.vault)
    assert place.columns()
    assert list(erasing._raw(store.latest(KEY, YEAR.key), "an erasure", do=True))
    assert not place.columns()
