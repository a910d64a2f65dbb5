"""The columns of decoded pages: recalled while they hold, and nothing where they do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from sis_pipeline.store.decoded import Decoded, hand_on
from sis_pipeline.store.files import DataFolder

COLUMNS = pa.table({"name": ["Ada", "Bo"] * 500, "terms": [["y1"], None] * 500})


def snapshot(number: int, pages: str = "A", base: str | None = None) -> Any:
    """As much of one as is asked for."""
    return SimpleNamespace(path=f"raw/fern/2026-2027/{number}", content_hash=pages, base_snapshot_id=base)


class Shelf:
    """A data folder, and what is made of its snapshots."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, DataFolder(str(folder))

    def decoded(self, number: int, last: int | None = None, judged_by: str = "code", *, full: bool = False) -> Decoded:
        before = None if last is None else snapshot(last)
        return Decoded(self.files, snapshot(number), judged_by, before, full=full)

    def keep(self, number: int, last: int | None = None, *, good: bool = True) -> None:
        made = self.decoded(number, last)
        made.keep("users", COLUMNS)
        made.settle(good=good)

    def kept(self) -> list[str]:
        return sorted(path.parent.parent.name for path in self.folder.rglob("users.arrow"))

    @property
    def file(self) -> Path:
        [path] = self.folder.rglob("users.arrow")
        return path


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_the_next_snapshot_recalls_what_was_kept_with_the_last_one(shelf):
    shelf.keep(1)
    assert shelf.decoded(2, last=1).recall("users") == COLUMNS
    assert shelf.decoded(2, last=1).recall("classes") is None
    assert shelf.decoded(2).recall("users") is None
    assert shelf.decoded(1).recall("users") == COLUMNS  # judged once more
    assert shelf.file.stat().st_mode & 0o777 == 0o600


def test_a_good_snapshot_takes_the_place_of_the_last_one_and_a_rejected_one_does_not(shelf):
    shelf.keep(1)
    shelf.keep(2, last=1, good=False)
    assert shelf.kept() == ["1"]
    shelf.keep(3, last=1)
    assert shelf.kept() == ["3"]


def test_a_snapshot_with_the_same_pages_is_given_them(shelf):
    shelf.keep(1)
    hand_on(shelf.files, snapshot(2), snapshot(1))
    hand_on(shelf.files, snapshot(3), None)
    assert shelf.kept() == ["2"]
    assert shelf.decoded(4, last=2).recall("users") == COLUMNS


@pytest.mark.parametrize("last", [snapshot(1, "B"), snapshot(1, base="0")], ids=["others", "laid over others"])
def test_columns_of_other_pages_go(shelf: Shelf, last: Any) -> None:
    shelf.keep(1)
    hand_on(shelf.files, snapshot(2), last)
    assert shelf.kept() == []


def lost(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def altered(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(bytes(body))


def without_index(path: Path) -> None:
    (path.parent / "index.json").unlink()


def with_index(content: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path.parent / "index.json").write_text(content)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lost,
        cut,
        altered,
        without_index,
        *map(with_index, ["", "[", "[]", "5", "{}", json.dumps({"judged_by": "code"})]),
    ],
)
def test_what_does_not_hold_is_as_if_it_were_not_there(shelf: Shelf, damage: Callable[[Path], None]) -> None:
    shelf.keep(1)
    damage(shelf.file)
    assert shelf.decoded(2, last=1).recall("users") is None


@pytest.mark.parametrize("asked", [{"judged_by": "other code"}, {"full": True}])
def test_nothing_is_recalled_where_it_would_be_decoded_otherwise_or_all_is_to_be(shelf: Shelf, asked: Any) -> None:
    shelf.keep(1)
    assert shelf.decoded(2, last=1, **asked).recall("users") is None


def test_what_was_not_settled_is_not_used(shelf):
    shelf.decoded(1).keep("users", COLUMNS)
    assert shelf.decoded(2, last=1).recall("users") is None
