"""Skyward: one provider with three APIs behind the `api_flavor` setting, OneRoster by default.
The OneRoster flavor is `oneroster`'s; the others are in `skyward_sms` and `skyward_qmlativ`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import ClassVar

import pandas as pd

from sis_pipeline.providers.base import Capabilities, OAuth, Plan, Provider, RawSnapshot, Record, Source
from sis_pipeline.providers.oneroster import OneRoster
from sis_pipeline.providers.skyward_qmlativ import SkywardQmlativ
from sis_pipeline.providers.skyward_settings import SkywardSettings
from sis_pipeline.providers.skyward_sms import SkywardSms
from sis_pipeline.roster.school_year import SchoolYear


class SkywardOneRoster(OneRoster):
    """Skyward's OneRoster: the standard, at addresses of its own."""

    name: ClassVar[str] = "skyward"
    title: ClassVar[str] = "Skyward OneRoster"
    requests_per_minute: ClassVar[int] = 80


class Skyward(Provider):
    """Hands everything to the flavor that the settings name."""

    name: ClassVar[str] = "skyward"
    title: ClassVar[str] = "Skyward"
    Settings: ClassVar[type[SkywardSettings]] = SkywardSettings
    requests_per_minute: ClassVar[int] = 80

    settings: SkywardSettings

    @cached_property
    def flavor(self) -> Provider:
        flavors: dict[str, type[Provider]] = {
            "oneroster": SkywardOneRoster,
            "sms": SkywardSms,
            "qmlativ": SkywardQmlativ,
        }
        return flavors[self.settings.api_flavor](self.settings)

    @property
    def capabilities(self) -> Capabilities:
        return self.flavor.capabilities

    def authentication(self) -> OAuth | None:
        return self.flavor.authentication()

    def plan(self, source: Source, school_year: SchoolYear, last_rows: Mapping[str, int]) -> Plan:
        return self.flavor.plan(source, school_year, last_rows)

    def plan_delta(
        self, source: Source, school_year: SchoolYear, since: datetime, last_rows: Mapping[str, int]
    ) -> Plan:
        return self.flavor.plan_delta(source, school_year, since, last_rows)

    def encode(self, resource: str, records: Sequence[Record]) -> bytes:
        return self.flavor.encode(resource, records)

    def decode(self, resource: str, body: bytes) -> Sequence[Record]:
        return self.flavor.decode(resource, body)

    def standardise(self, raw: RawSnapshot) -> dict[str, pd.DataFrame]:
        return self.flavor.standardise(raw)

    def check(self, source: Source) -> str:
        return self.flavor.check(source)

    def whose(self, source: Source) -> frozenset[str]:
        """SMS 2.0 names no district anywhere; its address does (`API{district}STU`), and an address is a setting."""
        return self.flavor.whose(source)
