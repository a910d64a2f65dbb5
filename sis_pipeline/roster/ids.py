"""Permanent ids: UUIDs derived from what they name (RFC 9562 version 5), so that the same thing always has the same id.
Which thing gets which name is decided by its module; this one only computes."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable

NAMESPACE = uuid.UUID("5f0c0f5e-6d1b-5c55-9c1e-2f3d6a0b7e41")

_SEPARATOR = "\x1f"
"""Between the parts of a name: no part can hold it unnoticed, so `a` + `bc` and `ab` + `c` are two names."""


def derived_id(*parts: str | None) -> str:
    """The version 5 UUID of the parts."""
    digest = bytearray(hashlib.sha1(NAMESPACE.bytes + name(*parts).encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def derived_ids(rows: Iterable[tuple[str | None, ...]], *prefix: str) -> list[str]:
    return [derived_id(*prefix, *row) for row in rows]


def name(*parts: str | None) -> str:
    return _SEPARATOR.join("\x00" if part is None else part for part in parts)
