"""Cedar under the conformance test of sis_pipeline: `pytest tests`."""

# ruff: noqa: S101 a test asserts
from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest
import requests
from cedar_server import serve
from cedar_sis.provider import Cedar, CedarSettings
from pytest_httpserver import HTTPServer

from sis_pipeline.providers.base import Answer, Request
from sis_pipeline.providers.conformance import ProviderConformance


class OverHttp:
    """The smallest source: one token, no retries, no limits. The product's own does all that."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        token = requests.post(f"{base_url}/token", data={"grant_type": "client_credentials"}, timeout=5).json()[
            "access_token"
        ]
        self.headers = {"Authorization": f"Bearer {token}"}

    def send(self, request: Request) -> Answer:
        answer = requests.get(
            self.base_url + request.path, params=dict(request.params), headers=self.headers, timeout=5
        )
        answer.raise_for_status()
        return Answer(
            answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, answer.content
        )


class TestCedar(ProviderConformance):
    minimum_rows: ClassVar[Mapping[str, int]] = {"schools": 2, "students": 450, "enrollments": 450}

    @pytest.fixture
    def provider(self, httpserver: HTTPServer) -> Cedar:
        settings = {"base_url": httpserver.url_for("").rstrip("/"), "client_id": "key", "campus": "oak"}
        return Cedar(CedarSettings.model_validate(settings))

    @pytest.fixture
    def source(self, httpserver: HTTPServer) -> OverHttp:
        serve(httpserver, pupils=450)
        return OverHttp(httpserver.url_for("").rstrip("/"))

    def test_the_last_day_becomes_the_first_day_away(self, frames):
        left = frames["enrollments"].set_index("sis_id").loc["stay-5"]
        assert (left["exit_date"], left["status"], left["exit_code"]) == ("2025-10-04", "withdrawn", "MOVED")

    def test_a_pupil_called_null_survives(self, frames):
        assert frames["students"].set_index("sis_id").loc["P0007", "last_name"] == "Null"
