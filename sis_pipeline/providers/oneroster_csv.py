"""OneRoster CSV sets, 1.1 and 1.2, bulk and delta, from a folder or a zip: settings and what is read.
How files are found and checked is `oneroster_bundle`'s business, what their rows mean `oneroster_records`'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal

import pandas as pd
from pydantic import Field

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.providers.base import (
    Capabilities,
    Plan,
    Provider,
    ProviderSettings,
    RawSnapshot,
    Record,
    Request,
    Resource,
    Source,
)
from sis_pipeline.providers.columns import Reader
from sis_pipeline.providers.oneroster import active_year, districts_among
from sis_pipeline.providers.oneroster_bundle import Bundle, WholeFile, records_of, without_quotes
from sis_pipeline.providers.oneroster_frames import ENTITIES, standard_frames
from sis_pipeline.providers.oneroster_records import RosterSettings, session_years
from sis_pipeline.roster.school_year import SchoolYear


class OneRosterCsvSettings(ProviderSettings, RosterSettings):
    """Where the set lies. Nothing else is needed: version, encoding and bulk or delta are read from the set."""

    path: Path = Field(description="the folder or .zip that holds the CSV files")
    version: Literal["1.1", "1.2"] | None = Field(
        None, description="the OneRoster version; as manifest.csv says, else 1.2 if there is a roles.csv, where unset"
    )


class OneRosterCsv(Provider):
    """A OneRoster CSV set. The raw pages of its snapshots are the files, byte for byte."""

    name: ClassVar[str] = "oneroster_csv"
    title: ClassVar[str] = "OneRoster CSV"
    Settings: ClassVar[type[OneRosterCsvSettings]] = OneRosterCsvSettings
    requests_per_minute: ClassVar[int] = 6_000

    settings: OneRosterCsvSettings

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(entities=ENTITIES, historical_years=True, delta=False, tombstones=True, counts=False)

    def authentication(self) -> None:
        return None

    def plan(self, source: Source, school_year: SchoolYear, last_rows: Mapping[str, int]) -> Plan:  # noqa: ARG002 files
        bundle = self._bundle()
        notes = tuple(bundle.notes())
        active = self._active_year(bundle, school_year)
        about = {
            "version": bundle.version,
            "active_year": active.key,
            "delta": str(bundle.delta).lower(),
            "quotes_formulas": str(bundle.quotes_formulas).lower(),
        }
        return Plan(
            resources=tuple(
                Resource(
                    name,
                    Request(f"/{name}.csv", template=f"/{name}.csv"),
                    WholeFile(bundle, name),
                    ("sourcedId",),
                    expected_rows=last_rows.get(name),
                    about=about,
                )
                for name in bundle.names
            ),
            basis="last_snapshot" if last_rows else "first_read",
            notes=notes,
            delta=bundle.delta,
        )

    def decode(self, resource: str, body: bytes) -> Sequence[Record]:
        return records_of(body, resource)

    def standardise(self, raw: RawSnapshot) -> dict[str, pd.DataFrame]:
        return standard_frames(raw, Reader(self._rows), self.settings, self.exit_dates, self.settings.custom_fields)

    def _rows(self, resource: str, body: bytes, about: Mapping[str, str]) -> Sequence[Record]:
        rows = self.decode(resource, body)
        return [without_quotes(row) for row in rows] if about.get("quotes_formulas") == "true" else rows

    def check(self, source: Source) -> str:  # noqa: ARG002 files
        bundle = self._bundle()
        notes = " ".join(bundle.notes())
        kind = "delta" if bundle.delta else "bulk"
        return f"{self.title} {bundle.version}: a {kind} set of {len(bundle.names)} files can be read. {notes}".rstrip()

    def whose(self, source: Source) -> frozenset[str]:  # noqa: ARG002 files
        bundle = self._bundle()
        return districts_among(records_of(bundle.read("orgs"), "orgs")) if "orgs" in bundle.names else frozenset()

    def _bundle(self) -> Bundle:
        return Bundle(self.settings.path, self.settings.version)

    def _active_year(self, bundle: Bundle, school_year: SchoolYear) -> SchoolYear:
        """The year that memberships speak of. Raises ConfigError for a year that the sessions of the set do not show."""
        today = datetime.now(UTC).date()
        if "academicSessions" not in bundle.names:
            return SchoolYear.on(today)
        exposed = session_years(records_of(bundle.read("academicSessions"), "academicSessions"))
        if school_year not in exposed and not bundle.delta:
            shown = ", ".join(year.key for year in sorted(exposed)) or "no school year at all"
            raise ConfigError(
                f"Planning the school year {school_year}: the CSV set {bundle.path.name} holds {shown}.",
                code="config.school_year",
                advice="Choose a year the set holds, or have the set of that year delivered.",
            )
        return active_year(exposed, today) if exposed else SchoolYear.on(today)
