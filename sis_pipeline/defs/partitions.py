"""The two dimensions everything is partitioned by, and the keys made of them.
Which integrations exist is the registry's knowledge (store.integrations); sensors carry it over to Dagster."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import dagster as dg

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.roster.school_year import SchoolYear, school_years
from sis_pipeline.settings import Settings
from sis_pipeline.store.integrations import check_key

INTEGRATION = "integration"
SCHOOL_YEAR = "school_year"

INTEGRATION_TAG = f"dagster/partition/{INTEGRATION}"
"""Dagster tags every run of a multi-partition with these two; limits and look-ups rest on them."""
SCHOOL_YEAR_TAG = f"dagster/partition/{SCHOOL_YEAR}"
PARTITION_TAG = "dagster/partition"


def today(settings: Settings, now: datetime | None = None) -> SchoolYear:
    """The school year that is current in the installation's time zone."""
    return SchoolYear.on((now or datetime.now(UTC)).astimezone(ZoneInfo(settings.time_zone)).date())


def school_year_partitions(settings: Settings) -> dg.StaticPartitionsDefinition:
    """Every school year from the first configured one to the one after the current, as `2025-2026`.

    Static keys, fixed when the code is loaded: the year ahead is among them, so that a code server has to run for more
    than a year before the current one is missing.
    """
    day = datetime.now(ZoneInfo(settings.time_zone)).date()
    return dg.StaticPartitionsDefinition([year.key for year in school_years(settings.first_school_year, day)])


def integrations_name(provider: str) -> str:
    """The name under which Dagster keeps the integrations of a provider."""
    return f"{provider}_integrations"


def roster_partitions(provider: str, years: dg.StaticPartitionsDefinition) -> dg.MultiPartitionsDefinition:
    """Integration by school year, of one provider."""
    return dg.MultiPartitionsDefinition(
        {INTEGRATION: dg.DynamicPartitionsDefinition(name=integrations_name(provider)), SCHOOL_YEAR: years}
    )


def by_school_year() -> dg.MultiToSingleDimensionPartitionMapping:
    """A school year depends on every integration of that year."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # Dagster infers the same mapping; stated, it can be read
        return dg.MultiToSingleDimensionPartitionMapping(SCHOOL_YEAR)


def roster_key(integration: str, school_year: str) -> dg.MultiPartitionKey:
    """The partition key of an integration's school year. Raises ConfigError for a key that is no slug or no year."""
    return dg.MultiPartitionKey({INTEGRATION: check_key(integration), SCHOOL_YEAR: check_school_year(school_year).key})


def read_roster_key(key: str | dg.MultiPartitionKey) -> tuple[str, SchoolYear]:
    """(integration, school year) of a partition key, by dimension name, checked again: whoever reaches the UI can add
    any text as a partition, and these become folder names. Raises ConfigError."""
    if not isinstance(key, dg.MultiPartitionKey):
        raise ConfigError(
            "The run has no integration and school year.", code="config.partition", advice="Choose a partition of both."
        )
    dimensions = key.keys_by_dimension
    return check_key(dimensions[INTEGRATION]), check_school_year(dimensions[SCHOOL_YEAR])


def check_school_year(key: str) -> SchoolYear:
    try:
        return SchoolYear.parse(key)
    except ValueError as error:
        raise ConfigError(str(error), code="config.school_year", advice="Write it as 2025-2026.") from None
