"""Infinite Campus: the token URL and its appName, the one year it shows, and next links that lead nowhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from sis_pipeline.connect.contract import Answer, Request
from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.providers.infinite_campus import InfiniteCampus, InfiniteCampusSettings
from sis_pipeline.providers.reading import verdict
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline_tests.providers.sources import YEAR, Script, pull
from sis_pipeline_tests.providers.test_oneroster import SESSIONS, roster, served, student

BASE = {
    "base_url": "https://fernhollow.infinitecampus.example/campus/api/oneroster/v1p2/fernhollow/ims/oneroster/rostering/v1p2",
    "token_url": "https://fernhollow.infinitecampus.example/campus/oauth2/token?appName=fernhollow",
    "client_id": "abc",
}
BARE_TOKEN_URL = "https://fernhollow.infinitecampus.example/campus/oauth2/token"
ONE_YEAR = [session for session in SESSIONS if session["schoolYear"] == "2026"]


def provider(**settings: Any) -> InfiniteCampus:
    return InfiniteCampus(InfiniteCampusSettings(**BASE | settings))


class TestSettings:
    def test_the_app_name_comes_with_the_token_url_or_by_itself(self) -> None:
        assert provider().authentication().token_url == BASE["token_url"]
        by_itself = provider(token_url=BARE_TOKEN_URL, app_name="fernhollow").authentication()
        assert by_itself.token_url == BASE["token_url"]

    @pytest.mark.parametrize(("url", "name"), [(BARE_TOKEN_URL, None), (BASE["token_url"], "elsewhere")])
    def test_without_it_or_with_two_the_settings_are_refused(self, url: str, name: str | None) -> None:
        with pytest.raises(ValidationError, match=r"appName|app_name"):
            provider(token_url=url, app_name=name)

    def test_no_scope_and_both_refusals_may_mean_the_token(self) -> None:
        oauth = provider().authentication()
        assert (oauth.scope, oauth.scope_fallbacks, oauth.refused_token_statuses) == (None, (), frozenset({401, 403}))

    def test_pages_of_up_to_50_000(self) -> None:
        assert provider(page_size=50_000).settings.page_size == 50_000
        with pytest.raises(ValidationError):
            provider(page_size=50_001)


class TestYear:
    def test_only_the_year_that_is_exposed(self) -> None:
        server = served(roster(academicSessions=ONE_YEAR))
        with pytest.raises(ConfigError, match="Infinite Campus at this address shows 2025-2026"):
            provider().plan(server, SchoolYear.parse("2024-2025"), {})
        assert not provider().capabilities.historical_years

    def test_it_is_the_active_one_whatever_the_date(self) -> None:
        plan = provider().plan(served(roster(academicSessions=ONE_YEAR)), YEAR, {})
        assert plan.resources[0].about == {"active_year": "2025-2026"}


@pytest.mark.parametrize("link", ["malformed", "itself"])
def test_next_links_are_hints_only(link: str) -> None:
    """Campus writes `?&limit=`, and on the last page a next that is the page itself."""
    students = [student(f"u{n}", "310") for n in range(5)]

    def users(request: Request) -> Answer:
        offset, size = int(request.params["offset"]), 2  # type: ignore[arg-type]
        following = offset if link == "itself" and offset + size >= len(students) else offset + size
        header = f'<{BASE["base_url"]}/users?&limit={size}&offset={following}>; rel="next"'
        more = link == "itself" or offset + size < len(students)
        return Answer(
            200, {"link": header} if more else {}, json.dumps({"users": students[offset : offset + size]}).encode()
        )

    server = served(roster(academicSessions=ONE_YEAR))
    script = Script({**server.answers, "/users": users})
    found = pull(provider(page_size=2), script)
    assert verdict(found.readings) == "complete"
    assert len(found.good("students")) == 5
    assert sum(request.path == "/users" for request in script.sent) <= 5
