"""Keeps what is measured apart: an empty home with a database server of its own, and a process of its own.
What is measured there is in the other modules."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sis_pipeline.db import embedded

SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def emptied_home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sis-bench-", ignore_cleanup_errors=True) as home:
        Path(home).chmod(0o755)
        try:
            yield Path(home)
        finally:
            embedded.stop(Path(home) / "postgres")


def alone(work: Callable[..., Any], *given: Any) -> Any:
    """The result of work in a process of its own."""
    with ProcessPoolExecutor(1, SPAWN) as pool:
        return pool.submit(work, *given).result()
