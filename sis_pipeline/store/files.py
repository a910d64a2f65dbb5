"""The data folder, local or any fsspec URL: whole files written privately and at once, Parquet and JSON in and out.
Which files there are, and where, is decided by `snapshots` and `merged`."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from upath import UPath

from sis_pipeline.connect.errors import DataError, InternalError

FILE_MODE = 0o600
FOLDER_MODE = 0o700


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class DataFolder:
    """Files by their path below SIS_DATA_DIR. A local file is 0600 in folders 0700, and on disk when `write` returns."""

    def __init__(self, data_url: str) -> None:
        root = UPath(data_url)
        self._root = root
        self._local = Path(root.path).absolute() if root.protocol in {"", "file", "local"} else None

    def write(self, path: str, body: bytes, *, replace: bool = False) -> None:
        """Write a whole file; readers never see a part of it. Raises InternalError if it exists, unless `replace`."""
        if not replace and self.exists(path):
            raise InternalError(f"{path} exists already; written files are never changed.")
        if self._local is None:
            (self._root / path).write_bytes(body)
            return
        target = self._local / path
        _make_private(target.parent)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        with open(part, "wb", opener=_private) as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)

    def read(self, path: str) -> bytes:
        """Raises DataError where the file is gone."""
        try:
            return bytes((self._local / path if self._local else self._root / path).read_bytes())
        except FileNotFoundError:
            raise DataError(
                f"{path} is missing in the data folder.", advice="Restore it from a backup, or sync again."
            ) from None

    def exists(self, path: str) -> bool:
        return bool((self._local / path if self._local else self._root / path).exists())

    def delete(self, path: str) -> None:
        (self._local / path if self._local else self._root / path).unlink()

    def write_json(self, path: str, content: Mapping[str, Any], *, replace: bool = False) -> None:
        self.write(path, json.dumps(content, indent=1, ensure_ascii=False).encode(), replace=replace)

    def read_json(self, path: str) -> dict[str, Any]:
        return dict(json.loads(self.read(path)))

    def write_frame(self, path: str, frame: pl.DataFrame, *, replace: bool = False) -> str:
        """Write a frame as Parquet (zstd); the hash of the file."""
        out = io.BytesIO()
        frame.write_parquet(out, compression="zstd")
        self.write(path, out.getvalue(), replace=replace)
        return digest(out.getvalue())

    def read_frame(self, path: str, expected: str | None = None) -> pl.DataFrame:
        """Raises DataError where the file is gone, or is not the one with the `expected` hash."""
        body = self.read(path)
        if expected is not None and digest(body) != expected:
            raise DataError(
                f"{path} was changed after it was written.", advice="Restore it from a backup, or merge again."
            )
        return pl.read_parquet(body)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_TRUNC, FILE_MODE)


def _make_private(folder: Path) -> None:
    """The folder and the missing ones above it; `mkdir(parents=True)` would give those the default mode."""
    if folder.is_dir():
        return
    _make_private(folder.parent)
    folder.mkdir(FOLDER_MODE, exist_ok=True)
