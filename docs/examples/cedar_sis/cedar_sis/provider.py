"""The provider for Cedar SIS: what it needs to know, what it reads, and what the answers mean.
Renames are in cedar.yaml; reading, proving and checking are sis_pipeline's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pandas as pd
from pydantic import Field

from sis_pipeline.providers.base import (
    Capabilities,
    HttpSettings,
    OAuth,
    Plan,
    Provider,
    RawSnapshot,
    Record,
    Request,
    Resource,
    Source,
)
from sis_pipeline.providers.decoding import json_body, member, records
from sis_pipeline.providers.mapping import Mapping as Renames
from sis_pipeline.providers.mapping import day_after
from sis_pipeline.providers.pagers import PageNumberPager
from sis_pipeline.roster.school_year import SchoolYear

LARGEST_PAGE = 200
"""Cedar's manual: larger pages are refused, smaller ones are always filled."""


class CedarSettings(HttpSettings):
    """One Cedar server."""

    campus: str = Field(description="the campus code in Cedar's addresses", pattern=r"^[a-z]+$")


class Cedar(Provider):
    """Cedar SIS: JSON over HTTP, pages by number, one list of pupils with their present stay."""

    name: ClassVar[str] = "cedar"
    title: ClassVar[str] = "Cedar SIS"
    Settings: ClassVar[type[CedarSettings]] = CedarSettings
    requests_per_minute: ClassVar[int] = 120

    settings: CedarSettings

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            entities=frozenset({"schools", "students", "enrollments"}),
            historical_years=True,
            delta=False,
            tombstones=False,
            counts=True,
            exit_dates="inclusive",
        )

    def authentication(self) -> OAuth:
        return OAuth(
            token_url=self.settings.token_url or f"{self.settings.base_url.rstrip('/')}/token",
            client_id=self.settings.client_id,
            client_auth="post",
        )

    def plan(self, source: Source, school_year: SchoolYear, last_rows: Mapping[str, int]) -> Plan:  # noqa: ARG002 Cedar needs no call to plan
        size = min(self.settings.page_size or LARGEST_PAGE, LARGEST_PAGE)
        return Plan(
            resources=tuple(
                Resource(
                    name=name,
                    request=self._request(name, school_year),
                    pager=PageNumberPager(size, maximum=LARGEST_PAGE, size_param="per_page"),
                    identity=(identity,),
                    expected_rows=last_rows.get(name),
                    count=self._request(f"{name}/count", school_year),
                )
                for name, identity in (("schools", "code"), ("pupils", "pupilId"))
            ),
            basis="last_snapshot" if last_rows else "first_read",
        )

    def decode(self, resource: str, body: bytes) -> Sequence[Record]:
        what = f"The {resource} page"
        return records(member(json_body(body, what), (resource,), what), what)

    def standardise(self, raw: RawSnapshot) -> dict[str, pd.DataFrame]:
        renames = Renames.load(Path(__file__).parent / "cedar.yaml", {"students": self.settings.custom_fields})
        frames = {
            entity: renames.gather(entity, self._batches(raw, renames.resources(entity)))
            for entity in sorted(self.capabilities.entities)
        }
        if self.exit_dates == "inclusive":
            frames["enrollments"]["exit_date"] = day_after(frames["enrollments"]["exit_date"])
        renames.annotate(frames)
        return frames

    def check(self, source: Source) -> str:
        schools = self.decode("schools", source.send(self._request("schools")).body)
        return f"Cedar answers for campus {self.settings.campus}: {len(schools)} schools on the first page."

    def _batches(self, raw: RawSnapshot, names: Sequence[str]) -> Iterator[tuple[dict[str, str], Sequence[Record]]]:
        for name in names:
            for about, body in raw.bodies(name):
                yield {**about, "school_year": raw.school_year.key}, self.decode(name, body)

    def _request(self, what: str, school_year: SchoolYear | None = None) -> Request:
        params = {"year": str(school_year.start)} if school_year else {}
        return Request(f"/{self.settings.campus}/{what}", params, template=f"/{{campus}}/{what}")
