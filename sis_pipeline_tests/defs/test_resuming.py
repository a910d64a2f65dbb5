"""A reading that is killed goes on where it was: real child processes, real HTTP, real PostgreSQL, and counters at the
server that tell what was asked for again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from sis_pipeline.connect import source as source_module
from sis_pipeline.connect.errors import AuthExpiredError, AuthRevokedError, ConfigError, TransientError
from sis_pipeline.connect.retry import Backoff
from sis_pipeline.defs.resources import Roster
from sis_pipeline.sandbox.server import Handle, SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline.store.integrations import Integration
from sis_pipeline.store.locks import AlreadyRunningError
from sis_pipeline.store.snapshots import SnapshotWriter
from sis_pipeline_tests.defs.children import Ended, Loaded, load, run
from sis_pipeline_tests.truth.chain import YEAR, fresh_database, installation, read

PAGE = 50
SYSTEMS = (
    System("or", "oneroster_1.1", 16),
    System("ps", "powerschool", 16, {"max_page_size": PAGE}),
    System("sms", "skyward_sms", 16),
    System("qm", "skyward_qmlativ", 16),
)
HELD = {"or": {"academicSessions"}, "ps": {"metadata", "schools"}}
"""System -> resources that are read while planning, so anew by every run."""


@dataclass
class Place:
    """An installation and the systems around it; every test connects an integration of its own."""

    roster: Roster
    server: SandboxServer
    files: Path
    numbers: Iterator[int] = field(default_factory=count)
    undisturbed: dict[str, tuple[Loaded, int]] = field(default_factory=dict)

    def connect(self, system: str, **settings: Any) -> str:
        handle = self.server.system(system)
        given = {**handle.settings, "page_size": PAGE, "requests_per_minute": 6_000, **settings}
        key = f"{system}-{next(self.numbers)}"
        self.roster.integrations.add(Integration(key, handle.provider, "fernhollow", settings=given))
        self.roster.vault.put(key, "client_secret", handle.client_secret)
        return key

    def handle(self, key: str) -> Handle:
        return self.server.system(key.partition("-")[0])

    def load(self, key: str, crash_at: str | None = None, **more: Any) -> tuple[Ended[Loaded], int]:
        """A load in a child, and the calls the server saw of it, token calls not among them."""
        handle = self.handle(key)
        before = handle.stats()["total_calls"]
        ended = run(partial(load, **more), key, YEAR.key, crash_at=crash_at)
        return ended, handle.stats()["total_calls"] - before

    def plain(self, system: str) -> tuple[Loaded, int]:
        """A reading of a system that nothing disturbed, and its calls."""
        if system not in self.undisturbed:
            ended, calls = self.load(self.connect(system))
            assert ended.value is not None, ended.error
            self.undisturbed[system] = ended.value, calls
        return self.undisturbed[system]

    def rows(self, query: str, **values: object) -> list[Any]:
        with self.roster.engine.connect() as connection:
            return list(connection.execute(text(query), values))

    def kept(self, key: str) -> Counter[str]:
        """Committed pages by resource of the readings under way."""
        query = "select resource, count(*) from sis.snapshot_pages where integration = :key group by 1"
        held = HELD.get(key.partition("-")[0], set())
        return Counter({name: pages for name, pages in self.rows(query, key=key) if name not in held})

    def pages(self, snapshot_id: str) -> dict[str, int]:
        """Pages by resource of a reading that is done, those that were read while planning not among them."""
        snapshot = self.roster.snapshots.get(snapshot_id)
        held = HELD.get(snapshot.integration.partition("-")[0], set())
        return {name: reading["pages"] for name, reading in snapshot.evidence.items() if name not in held}

    def remaining(self, system: str, kept: Counter[str]) -> int:
        """The calls it takes to go on: all but the pages kept, and one more for a list that was left in its middle."""
        loaded, calls = self.plain(system)
        whole = self.pages(loaded.snapshot_id)
        in_the_middle = [name for name, pages in kept.items() if pages < whole[name]]
        return calls - kept.total() + len(in_the_middle)

    def prove_equal(self, key: str, loaded: Loaded) -> None:
        """The same content as an undisturbed reading's, and nothing left over."""
        assert loaded.content_hash == self.plain(key.partition("-")[0])[0].content_hash
        assert loaded.completeness == "complete"
        self.prove_tidy(key, loaded)

    def prove_tidy(self, key: str, loaded: Loaded) -> None:
        folder = self.files / "data" / "raw" / key / YEAR.key / loaded.snapshot_id
        manifest = json.loads((folder / "manifest.json").read_text())
        listed = {page["file"] for about in manifest["resources"].values() for page in about["pages"]}
        there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert there == listed | {"manifest.json"}
        assert self.rows("select 1 from sis.snapshot_pages where integration = :key", key=key) == []
        open_ones = "select 1 from sis.snapshots where integration = :key and finished_at is null"
        assert self.rows(open_ones, key=key) == []
        raw = self.roster.snapshots.open_raw(loaded.snapshot_id)
        assert sum(1 for name in raw.resources for _ in raw.bodies(name)) == len(listed)


@pytest.fixture(scope="module")
def place(postgres: URL, _template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("resuming")
    world = World(systems=SYSTEMS, school_year=YEAR.key)
    with (
        fresh_database(postgres, _template) as url,
        installation(url, home) as roster,
        SandboxServer(world, enforce_limits=False) as server,
    ):
        yield Place(roster, server, home)


@pytest.fixture(autouse=True)
def _calm(place: Place) -> Iterator[None]:
    yield
    place.server.faults.clear()
    place.server.set_day(1)


@pytest.mark.parametrize(
    "point",
    [
        "read.page_received:1", "read.page_received:9", "read.page_written:1", "read.page_written:9",
        "read.page_committed:1", "read.page_committed:9", "read.before_finish", "read.manifest_written",
    ],
)  # fmt: skip
def test_a_killed_reading_goes_on_where_it_was(place: Place, point: str) -> None:
    key = place.connect("or")
    died, _ = place.load(key, crash_at=point)
    assert died.killed
    kept = place.kept(key)
    assert kept.total() > 0 or point.endswith(":1")
    left = place.roster.snapshots.latest(key, YEAR.key)
    assert left is not None
    assert (left.verdict, left.finished_at) == ("pending", None)

    ended, calls = place.load(key, run_id="second")
    assert ended.value is not None, ended.error
    place.prove_equal(key, ended.value)
    assert calls == place.remaining("or", kept)
    if kept.total():
        assert (ended.value.snapshot_id, ended.value.resumed) == (left.snapshot_id, 1)
        assert sum(ended.value.kept.values()) == kept.total()
    assert place.roster.snapshots.get(ended.value.snapshot_id).run_id == "second"


def test_a_reading_that_was_closed_before_the_kill_is_whole(place: Place) -> None:
    key = place.connect("or")
    died, _ = place.load(key, crash_at="read.finished")
    assert died.killed
    done = place.roster.snapshots.latest(key, YEAR.key)
    assert done is not None
    assert done.content_hash == place.plain("or")[0].content_hash
    ended, calls = place.load(key)
    assert ended.value is not None
    assert ended.value.snapshot_id != done.snapshot_id
    assert (ended.value.resumed, calls) == (0, place.plain("or")[1])
    place.prove_equal(key, ended.value)


@pytest.mark.parametrize("system", ["ps", "sms", "qm"])
def test_every_way_of_paging_goes_on(place: Place, system: str) -> None:
    """Page numbers with counts, cursors within one token, next paths in the body."""
    key = place.connect(system)
    pages = sum(place.pages(place.plain(system)[0].snapshot_id).values())
    died, _ = place.load(key, crash_at=f"read.page_committed:{pages // 2}")
    assert died.killed
    kept = place.kept(key)
    ended, calls = place.load(key)
    assert ended.value is not None, ended.error
    place.prove_equal(key, ended.value)
    assert sum(ended.value.kept.values()) == kept.total()
    assert ended.value.restarted == {}
    seams = 0 if system == "sms" else 1  # a cursor is no place in a list, which might have moved
    assert calls <= place.plain(system)[1] - kept.total() + seams


def test_a_reading_killed_again_and_again_comes_to_its_end(place: Place) -> None:
    key = place.connect("or")
    deaths = 0
    for point in ("read.page_committed:4", "read.page_written:2", "read.page_committed:5", "read.page_received:3"):
        died, _ = place.load(key, crash_at=point)
        assert died.killed
        deaths += 1
    kept = place.kept(key)
    ended, calls = place.load(key)
    assert ended.value is not None
    place.prove_equal(key, ended.value)
    assert ended.value.resumed == deaths
    assert calls == place.remaining("or", kept)
    assert place.rows("select count(*) from sis.snapshots where integration = :key", key=key) == [(1,)]


def test_a_cursor_of_another_token_is_not_used(place: Place) -> None:
    key = place.connect("sms", page_size=15)
    whole, _ = place.load(place.connect("sms", page_size=15))
    assert whole.value is not None
    pages = place.pages(whole.value.snapshot_id)
    died, _ = place.load(key, crash_at="read.page_committed:6")
    assert died.killed
    kept = place.kept(key)
    (middle,) = [name for name, number in kept.items() if number < pages[name]]
    place.handle(key).expire_tokens()

    ended, _ = place.load(key)
    assert ended.value is not None, ended.error
    assert ended.value.content_hash == whole.value.content_hash
    assert list(ended.value.restarted) == [middle]
    assert "token" in ended.value.restarted[middle]
    assert any(line.startswith(f"{middle}: read anew") for line in ended.value.said)
    evidence = place.roster.snapshots.get(ended.value.snapshot_id).evidence[middle]
    assert (evidence["kept"], evidence["attempts"]) == (0, 2)
    assert "token" in evidence["restarted"]
    place.prove_tidy(key, ended.value)


def test_a_list_that_moved_meanwhile_starts_over(place: Place) -> None:
    key = place.connect("or")
    pages = place.pages(place.plain("or")[0].snapshot_id)
    names = list(place.plain("or")[0].kept)
    behind = sum(pages.get(name, 0) for name in names[: names.index("enrollments")]) + 1  # the sessions are held
    died, _ = place.load(key, crash_at=f"read.page_committed:{behind + 2}")
    assert died.killed
    assert 0 < place.kept(key)["enrollments"] < pages["enrollments"]
    place.server.set_day(2)
    ended, _ = place.load(key)
    assert ended.value is not None
    assert set(ended.value.restarted) == {"enrollments"}
    evidence = place.roster.snapshots.get(ended.value.snapshot_id).evidence["enrollments"]
    fresh, _ = place.load(place.connect("or"))
    assert fresh.value is not None
    there = place.roster.snapshots.get(fresh.value.snapshot_id).evidence["enrollments"]
    assert (evidence["complete"], evidence["rows"], evidence["kept"]) == (True, there["rows"], 0)
    place.prove_tidy(key, ended.value)


def test_a_page_that_was_changed_on_disk_starts_its_resource_over(place: Place) -> None:
    key = place.connect("or")
    died, _ = place.load(key, crash_at="read.page_committed:9")
    assert died.killed
    kept = place.kept(key)
    victim = max(kept, key=lambda name: kept[name])
    snapshot = place.roster.snapshots.latest(key, YEAR.key)
    assert snapshot is not None
    page = place.files / "data" / snapshot.path / victim / "00001.json.zst"
    page.write_bytes(page.read_bytes()[:-3])
    ended, _ = place.load(key)
    assert ended.value is not None
    assert ended.value.restarted == {victim: "a page is not as it was kept"}
    place.prove_equal(key, ended.value)


def test_what_is_too_old_or_was_changed_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    key = place.connect("or")
    place.load(key, crash_at="read.page_committed:9")
    monkeypatch.setenv("SIS_RESUME_HOURS", "0")
    ended, calls = place.load(key, crash_at="read.page_committed:9")
    assert ended.killed
    monkeypatch.delenv("SIS_RESUME_HOURS")
    changed = place.roster.integrations.get(key)
    settings = {**changed.settings, "read_timeout": 77}
    place.roster.integrations.add(Integration(key, changed.provider, "fernhollow", settings=settings), replace=True)
    ended, calls = place.load(key)
    assert ended.value is not None
    assert (ended.value.resumed, calls) == (0, place.plain("or")[1])
    place.prove_equal(key, ended.value)
    reasons = place.rows(
        "select evidence->>'abandoned' from sis.snapshots where integration = :key and verdict = 'rejected' order by started_at",
        key=key,
    )
    assert [reason for (reason,) in reasons] == ["it was too old to go on with", "the integration was changed since"]


def test_a_full_disk_leaves_the_reading_to_be_gone_on_with(place: Place) -> None:
    key = place.connect("or")
    folder = place.files / "data" / place.roster.snapshots.get(place.plain("or")[0].snapshot_id).path
    largest = max(path.stat().st_size for path in folder.rglob("*.zst"))
    full, _ = place.load(key, largest_file=largest - 1)
    assert full.value is None
    assert "could not be written: File too large" in (full.error or "")
    assert "next sync goes on from there" in (full.error or "")
    assert place.roster.integrations.get(key).status == "degraded"
    kept = place.kept(key)
    assert kept.total() > 0
    ended, calls = place.load(key)
    assert ended.value is not None
    place.prove_equal(key, ended.value)
    assert calls == place.remaining("or", kept)


@pytest.mark.parametrize("status", [503, 403])
def test_a_passing_failure_leaves_its_pages_and_a_lasting_one_does_not(
    place: Place, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "Backoff", partial(Backoff, attempts=2, base=0.01))
    key = place.connect("or")
    fault = place.server.faults.add("status", system="or", path="enrollments", times=None, status=status)
    expected = TransientError if status == 503 else (AuthRevokedError, ConfigError)
    with pytest.raises(expected) as caught:
        read(place.roster, key, YEAR, "run")
    assert fault.fired
    place.server.faults.clear()
    left = place.roster.snapshots.latest(key, YEAR.key)
    assert left is not None
    kept = place.kept(key)
    if status == 503:
        assert "the next sync goes on from there" in caught.value.message
        assert caught.value.message == place.roster.integrations.get(key).status_reason
        assert left.evidence["interrupted"]
        assert left.evidence["pages"] >= kept.total() > 0
    else:
        assert (left.verdict, kept.total()) == ("rejected", 0)
    ended, calls = place.load(key)
    assert ended.value is not None
    place.prove_equal(key, ended.value)
    assert calls == place.remaining("or", kept)


def test_a_token_refused_at_the_last_attempt_leaves_the_pages(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """After failures that pass: its own policy says to try again, so nothing is said against what was read."""
    monkeypatch.setattr(source_module, "Backoff", partial(Backoff, attempts=2, base=0.01))
    key = place.connect("or")
    for status in (503, 401):
        place.server.faults.add("status", system="or", path="enrollments", times=1, status=status)
    with pytest.raises(AuthExpiredError, match="the next sync goes on from there"):
        read(place.roster, key, YEAR, "run")
    kept = place.kept(key)
    assert kept.total() > 0
    ended, calls = place.load(key)
    assert ended.value is not None, ended.error
    place.prove_equal(key, ended.value)
    assert (ended.value.resumed, calls) == (1, place.remaining("or", kept))


def test_a_database_that_was_restarted_leaves_one_reading(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock ends with its connection, in the middle of a reading; the next sync goes on with it, and the first one,
    which is still at it, finds out and changes nothing."""
    key, second = place.connect("or"), []
    add_page = SnapshotWriter.add_page

    def restarted(writer: SnapshotWriter, resource: str, *page: Any, **more: Any) -> None:
        if resource == "enrollments" and not second:
            cut = (
                "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()"
            )
            assert place.rows(cut), "nobody held the lock"
            second.append(place.load(key, run_id="second")[0])
        add_page(writer, resource, *page, **more)

    monkeypatch.setattr(SnapshotWriter, "add_page", restarted)
    with pytest.raises(AlreadyRunningError, match="took the reading over or ended it"):
        read(place.roster, key, YEAR, "first")
    (other,) = second
    assert other.value is not None, other.error
    place.prove_equal(key, other.value)
    snapshot = place.roster.snapshots.get(other.value.snapshot_id)
    assert (snapshot.run_id, snapshot.resumed, snapshot.verdict) == ("second", 1, "pending")
    assert place.roster.integrations.get(key).failures == 0


@pytest.mark.parametrize("system", ["or", "ps"])
def test_collections_read_at_once_give_the_same_snapshot(place: Place, system: str) -> None:
    key = place.connect(system, concurrency=4)
    died, _ = place.load(key, crash_at="read.page_committed:11")
    assert died.killed
    ended, _ = place.load(key)
    assert ended.value is not None, ended.error
    place.prove_equal(key, ended.value)
    assert ended.value.resumed == 1

    at_once, calls = place.load(place.connect(system, concurrency=8))
    assert at_once.value is not None
    assert (at_once.value.content_hash, calls) == (ended.value.content_hash, place.plain(system)[1])


def test_collections_read_at_once_keep_the_one_limit(place: Place) -> None:
    """The server enforces its limit, thirty times as fast as the vendor's."""
    world = World(systems=(System("even", "powerschool", 16, {"max_page_size": PAGE}),), school_year=YEAR.key)
    with SandboxServer(world, rate_scale=30) as server:
        handle = server.system("even")
        given = {**handle.settings, "requests_per_minute": 60 * 30, "concurrency": 8}
        place.roster.integrations.add(Integration("even", handle.provider, "fernhollow", settings=given))
        place.roster.vault.put("even", "client_secret", handle.client_secret)
        loaded = read(place.roster, "even", YEAR, "run")
        stats = handle.stats()
    assert loaded.snapshot.completeness == "complete"
    assert (stats["refused"], loaded.throttled, set(stats["statuses"])) == (0, 0, {"200"})
    assert loaded.calls == stats["total_calls"] + stats["token_calls"]
