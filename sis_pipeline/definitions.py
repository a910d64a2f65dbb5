"""What Dagster loads. Everything is put together in `defs`; importing this opens no database and no network."""

from __future__ import annotations

from sis_pipeline.defs.assembly import build_defs

__all__ = ["build_defs", "defs"]

defs = build_defs()
