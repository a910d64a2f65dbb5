"""Skyward's OneRoster 1.2: the standard without its `/rostering/` segment.
Everything else of OneRoster is `oneroster`'s."""

from __future__ import annotations

from typing import ClassVar

from sis_pipeline.sandbox.dialects.api import Json
from sis_pipeline.sandbox.dialects.oneroster import OneRosterApi


class SkywardOneRosterApi(OneRosterApi):
    """Options of OneRoster."""

    prefix: ClassVar[dict[str, str]] = {"1.2": "/ims/oneroster/v1p2"}

    def settings(self) -> Json:
        return {**super().settings(), "api_flavor": "oneroster"}
