"""Infinite Campus: OneRoster 1.2 with its own token URL, one exposed school year and tokens refused with 401 or 403.
Everything else is `oneroster`."""

from __future__ import annotations

from typing import ClassVar, Literal, Self
from urllib.parse import parse_qs, urlsplit, urlunsplit

from pydantic import Field, model_validator

from sis_pipeline.providers.base import Capabilities
from sis_pipeline.providers.oneroster import OneRoster, OneRosterSettings

LARGEST_PAGE = 50_000


class InfiniteCampusSettings(OneRosterSettings):
    """Token URL, base URL, client id and secret come from one screen in Campus; none is derived from another."""

    version: Literal["1.1", "1.2"] = Field("1.2", description="1.2; 1.1 only for districts on the legacy base URL")
    page_size: int | None = Field(
        None, ge=1, le=LARGEST_PAGE, description="rows asked for per page; 5,000 where unset, Campus allows 50,000"
    )
    app_name: str | None = Field(
        None, min_length=1, description="the Campus application name, where the token URL does not carry `appName`"
    )

    @model_validator(mode="after")
    def _app_name_is_known(self) -> Self:
        in_url = parse_qs(urlsplit(self.token_url).query).get("appName", [""])[0]
        if not (in_url or self.app_name):
            raise ValueError(
                "the token URL must end in ?appName=…, or app_name must be set: Campus refuses it otherwise"
            )
        if in_url and self.app_name and in_url != self.app_name:
            raise ValueError("app_name differs from the appName in the token URL; leave one of them out")
        return self

    @property
    def full_token_url(self) -> str:
        parts = urlsplit(self.token_url)
        if "appName" in parse_qs(parts.query):
            return self.token_url
        query = "&".join(part for part in (parts.query, f"appName={self.app_name}") if part)
        return urlunsplit(parts._replace(query=query))


class InfiniteCampus(OneRoster):
    """Campus shows the active school year only; when the district flips it, everything switches at once."""

    name: ClassVar[str] = "infinite_campus"
    title: ClassVar[str] = "Infinite Campus"
    Settings: ClassVar[type[InfiniteCampusSettings]] = InfiniteCampusSettings
    requests_per_minute: ClassVar[int] = 100
    refused_token_statuses: ClassVar[frozenset[int]] = frozenset({401, 403})

    settings: InfiniteCampusSettings

    @property
    def capabilities(self) -> Capabilities:
        rest = super().capabilities
        return Capabilities(
            rest.entities, historical_years=False, delta=rest.delta, tombstones=rest.tombstones, counts=rest.counts
        )

    @property
    def token_url(self) -> str:
        return self.settings.full_token_url

    def _scopes(self) -> tuple[str | None, tuple[str | None, ...]]:
        """Most clients of Campus send no scope: what a key may read is set in Campus."""
        return self.settings.scope or None, ()
