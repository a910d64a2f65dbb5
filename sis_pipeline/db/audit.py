"""Appending to the audit log, in the transaction of the effect it records. Reading and verifying it is done elsewhere."""

from __future__ import annotations

import getpass
from collections.abc import Mapping

from sqlalchemy import Connection

from sis_pipeline.db.tables import audit_log


def append(
    connection: Connection,
    action: str,
    subject: str,
    *,
    district: str = "*",
    actor: str | None = None,
    details: Mapping[str, object] | None = None,
) -> None:
    """Record who did what to what. `details` carries counts and ids, never a secret or a student's value."""
    connection.execute(
        audit_log.insert().values(
            district=district,
            actor=actor or current_actor(),
            action=action,
            subject=subject,
            details=dict(details or {}),
        )
    )


def current_actor() -> str:
    """The operating-system user, or the numeric id where it has no name (containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        import os

        return f"uid {os.getuid()}"
