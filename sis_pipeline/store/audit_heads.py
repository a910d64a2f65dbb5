"""The heads of the audit log's chains, kept as files below SIS_DATA_DIR: whoever can rewrite the database can't rewrite
these, too. How a chain is computed and walked is `db.audit`'s business.

Each export is a file of its own, written once, so that a bucket with object lock can hold it; it has only the chains
that grew since the one before.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine

from sis_pipeline.db import audit
from sis_pipeline.db.audit import Chain, Head
from sis_pipeline.store.files import DataFolder

FOLDER = "audit/heads"


@dataclass(frozen=True, slots=True)
class Exported:
    """`chains`: what was walked. `heads`: how many heads were new and are kept now, in `file`."""

    chains: tuple[Chain, ...]
    heads: int
    file: str | None

    @property
    def broken(self) -> tuple[Chain, ...]:
        return tuple(chain for chain in self.chains if chain.broken)


def known(files: DataFolder) -> list[Head]:
    """Every head that was ever exported, in the order of export."""
    return [
        Head(**head)
        for name in files.names(FOLDER)
        if name.endswith(".json")
        for head in files.read_json(f"{FOLDER}/{name}")["heads"]
    ]


def export(engine: Engine, files: DataFolder, *, dry_run: bool = False) -> Exported:
    """Walk what was added to every chain since its last head, and keep the new heads of those that are whole.

    A broken chain keeps the head it had: its next verification starts before the break again. `dry_run` keeps none.
    """
    before = known(files)
    with audit.standing_still(engine) as connection:
        chains = tuple(audit.verify(connection, heads=before, newest_only=True))
        current = audit.heads(connection)
    broken = {chain.district for chain in chains if chain.broken}
    new = [head for head in current if head.district not in broken and head not in set(before)]
    file = f"{FOLDER}/{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.json" if new and not dry_run else None
    if file:
        files.write_json(file, {"heads": [asdict(head) for head in new]})
    return Exported(chains, len(new), file)
