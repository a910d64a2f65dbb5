"""What the data folder knows of the tables: a school year's are as its last publication left them, unless somebody wrote
to them beside the pipeline. Which publication that is, `merged` says; the tables themselves are read by `bulk`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import polars as pl
import structlog
from sqlalchemy import Connection, Text, func, select

from sis_pipeline.connect.errors import DataError
from sis_pipeline.db.tables import table_writes
from sis_pipeline.roster.contract import PUBLICATION
from sis_pipeline.roster.frames import is_of
from sis_pipeline.roster.model import Table
from sis_pipeline.store.files import DataFolder

log = structlog.get_logger(__name__)

KNOWN: Final = tuple(name for name, way in PUBLICATION.items() if way == "year" and name != "conflicts")
"""Those of which a trigger notes who else writes to them. What the years share is read anew for each merge, `students` being
where people edit; and conflicts are few, and given up by age."""
WRITES: Final = "table_writes"
"""Key of an operation's summary: the mark of the writes beside the pipeline that its publication knew."""


def writes_mark(connection: Connection) -> str:
    """Of all statements that wrote to a school year's tables beside the pipeline, as far as they are committed.

    Which is the newest does not tell them: one may be committed after another that has a higher number.
    """
    entry = table_writes.c.entry
    newest = func.coalesce(func.max(entry), 0).cast(Text)
    found: str = connection.execute(select(newest + " of " + func.count().cast(Text))).scalar_one()
    return found


class KeptFrames(Mapping[str, pl.DataFrame]):
    """The frames of an operation, each read anew when it is asked for: together they are the largest thing there is.

    Raises DataError, then, for a file that is gone or was changed since.
    """

    def __init__(self, files: DataFolder, path: str, hashes: Mapping[str, str]) -> None:
        self._files, self._path, self._hashes = files, path, hashes

    def __getitem__(self, name: str) -> pl.DataFrame:
        return self._files.read_frame(f"{self._path}/{name}.parquet", self._hashes[name])

    def __contains__(self, name: object) -> bool:
        return name in self._hashes

    def __iter__(self) -> Iterator[str]:
        return iter(self._hashes)

    def __len__(self) -> int:
        return len(self._hashes)


class KnownTables:
    """Tables of which the rows that a publication owns are known without asking PostgreSQL."""

    def __init__(self, frames: Mapping[str, pl.DataFrame]) -> None:
        self._frames = frames

    def __contains__(self, name: object) -> bool:
        return name in self._frames

    def frame(self, table: Table) -> pl.DataFrame | None:
        """A table's rows; None where they are to be read from the table."""
        if table.name not in self._frames:
            return None
        try:
            frame = self._frames[table.name]
        except DataError as error:  # the table has them too
            log.warning("known_table.unreadable", table=table.name, code=error.code)
            return None
        return frame if is_of(frame, table) else None


NOTHING_KNOWN: Final = KnownTables({})
