"""What the pages of a snapshot were decoded to, kept beside them, so that a record that comes again need not be decoded
again. A cache: where it is lost, damaged, or of other code or settings, everything is decoded; who asks is `loading`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pyarrow as pa
import xxhash

from sis_pipeline.connect.errors import DataError
from sis_pipeline.store.files import DataFolder
from sis_pipeline.store.snapshots import Snapshot

FOLDER = "_decoded"
"""No resource can be named like this; what deletes the pages of a snapshot deletes it with them."""
INDEX = "index.json"
COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")


class Decoded:
    """The columns of one snapshot as they are made, and those of the snapshots before it (a `providers.columns.Memory`).

    `judged_by`: what must be equal for a record to be decoded alike. `last`: the last good snapshot; `full`: decode all.
    """

    def __init__(
        self, files: DataFolder, snapshot: Snapshot, judged_by: str, last: Snapshot | None, *, full: bool
    ) -> None:
        self._files, self._judged_by = files, judged_by
        self._mine = _folder(snapshot)
        self._last = _folder(last) if last else None
        self._known = {} if full else self._index(self._mine) or self._index(self._last)
        self._kept: dict[str, str] = {}

    def _index(self, folder: str | None) -> dict[str, tuple[str, str]]:
        """By resource the file and the hash of its columns; empty where there are none that hold."""
        with suppress(DataError, ValueError, TypeError, KeyError, AttributeError):
            found: dict[str, Any] = self._files.read_json(f"{folder}/{INDEX}")
            if found["judged_by"] == self._judged_by:
                return {name: (f"{folder}/{name}.arrow", hashed) for name, hashed in found["columns"].items()}
        return {}

    def recall(self, resource: str) -> pa.Table | None:
        path, expected = self._known.get(resource, ("", ""))
        with suppress(DataError):
            if path and xxhash.xxh3_128_hexdigest(body := self._files.read(path)) == expected:
                return pa.ipc.open_file(body).read_all()
        return None

    def keep(self, resource: str, columns: pa.Table) -> None:
        out = pa.BufferOutputStream()
        with pa.ipc.new_file(out, columns.schema, options=COMPRESSED) as file:
            file.write_table(columns)
        body = out.getvalue().to_pybytes()
        self._files.write(f"{self._mine}/{resource}.arrow", body, replace=True)
        self._kept[resource] = xxhash.xxh3_128_hexdigest(body)

    def settle(self, *, good: bool) -> None:
        """Keep the columns of a good snapshot in place of those before it; a rejected one leaves those as they were."""
        if good and self._kept:
            index = {"judged_by": self._judged_by, "columns": self._kept}
            self._files.write_json(f"{self._mine}/{INDEX}", index, replace=True)
        if out_of_date := self._last if good else self._mine:
            self._files.delete_folder(out_of_date)


def hand_on(files: DataFolder, snapshot: Snapshot, last: Snapshot | None) -> None:
    """Give a snapshot that need not be decoded the columns of the last good one, where those are of the same pages. Else
    they go: no value outlives the pages it came on."""
    if last is None:
        return
    if last.base_snapshot_id is not None or last.content_hash != snapshot.content_hash:
        files.delete_folder(_folder(last))
    elif files.exists(f"{_folder(last)}/{INDEX}"):
        files.move_folder(_folder(last), _folder(snapshot))


def discard(files: DataFolder, snapshot: Snapshot) -> None:
    """Give up the columns of a snapshot."""
    files.delete_folder(_folder(snapshot))


def _folder(snapshot: Snapshot) -> str:
    return f"{snapshot.path}/{FOLDER}"
