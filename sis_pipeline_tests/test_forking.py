"""What the tests' child processes are forked from: it may have imported Polars, and not have used it."""

from __future__ import annotations

import os
from pathlib import Path

from sis_pipeline_tests.defs.children import run


def threads_of_the_server() -> list[str]:
    tasks = Path(f"/proc/{os.getppid()}/task").iterdir()
    return [(task / "comm").read_text(encoding="ascii").strip() for task in tasks]


def test_importing_the_product_starts_no_thread_that_a_fork_would_lose() -> None:
    """A frame that was worked on at import had started them, and one child in a hundred waited for ever."""
    told = run(threads_of_the_server).value
    assert told
    assert not [name for name in told if name.startswith(("polars-0", "tokio", "async-executor"))]
