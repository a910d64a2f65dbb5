"""Which code something was made by, as a hash of its sources: what it made is not taken over after an upgrade.
What is kept, and taken over, is the callers'."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from sis_pipeline.store.files import digest

SUFFIXES = (".py", ".yaml")


def hash_of_sources(places: Iterable[Path], tools: Iterable[str]) -> str:
    """Hash of the sources in these folders and files, and of the versions of the packages `tools`."""
    parts = [[name, version(name)] for name in tools]
    parts += [[file.name, digest(file.read_bytes())] for place in sorted(set(places)) for file in _sources(place)]
    return digest(json.dumps(parts).encode())


def _sources(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    yield from sorted(file for file in place.rglob("*") if file.suffix in SUFFIXES)
