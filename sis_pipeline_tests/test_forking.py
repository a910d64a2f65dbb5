"""What the tests' child processes are forked from: it may have imported Polars, and not have used it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sis_pipeline_tests.forking import PRELOADED

THREADS = """
import importlib, sys
from pathlib import Path
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted((task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()))
"""


def test_importing_the_product_starts_no_thread_that_a_fork_would_lose() -> None:
    """A frame that was worked on at import had started them, and one child in a hundred waited for ever."""
    asked = [sys.executable, "-c", THREADS, *PRELOADED]
    told = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]).stdout
    assert not [name for name in told.split() if name.startswith(("polars-0", "tokio", "async-executor"))]
