"""The worked example of docs/plugins.md does what the page says: found by its entry point, and up to the contract."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.providers.base import Provider
from sis_pipeline.providers.conformance import ProviderConformance
from sis_pipeline.providers.reading import verdict
from sis_pipeline.providers.registry import load_providers, make
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline_tests.providers.sources import OverHttp, pull

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "cedar_sis"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
SETTINGS = {"base_url": "https://cedar.example", "client_id": "key", "campus": "oak"}


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As `pip install -e docs/examples/cedar_sis` would leave it."""
    project = PROJECT["project"]
    info = tmp_path / "cedar_sis_for_sis_pipeline-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text(points)
    for folder in (tmp_path, EXAMPLE, EXAMPLE / "tests"):
        monkeypatch.syspath_prepend(str(folder))
    yield
    for module in [name for name in sys.modules if name.partition(".")[0] in {"cedar_sis", "cedar_server"}]:
        del sys.modules[module]


def test_the_plugin_is_found_by_its_entry_point():
    registry = load_providers()
    assert registry.providers["cedar"].title == "Cedar SIS"
    assert not [failure for failure in registry.failures if failure.name == "cedar"]
    cedar = make("cedar", SETTINGS)
    assert cedar.rate == 120
    assert cedar.exit_dates == "inclusive"


def test_its_settings_are_checked_in_words():
    with pytest.raises(ConfigError, match="campus"):
        make("cedar", {**SETTINGS, "campus": "Oak 7"})


def test_without_its_package_it_is_only_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(EXAMPLE)])
    registry = load_providers()
    assert "cedar" not in registry.providers
    assert [failure.name for failure in registry.failures] == ["cedar"]


@pytest.mark.parametrize(("pupils", "calls"), [(3, 2), (450, 6), (400, 5), (200, 3)])
def test_a_whole_sync_with_few_calls(httpserver: HTTPServer, pupils: int, calls: int):
    """Schools fit one page; from the second page of pupils on they are counted before and after."""
    cedar, source = _connected(httpserver, pupils)
    found = pull(cedar, source, SchoolYear.parse("2025-2026"))
    assert verdict(found.readings) == "complete"
    assert source.calls == calls
    assert len(found.good("students")) == len(found.good("enrollments")) == pupils
    assert all(checked.rejected.empty for checked in found.validated.values())


def _connected(httpserver: HTTPServer, pupils: int) -> tuple[Provider, OverHttp]:
    from cedar_server import serve

    serve(httpserver, pupils)
    base = httpserver.url_for("").rstrip("/")
    cedar = make("cedar", {**SETTINGS, "base_url": base})
    oauth = cedar.authentication()
    assert oauth is not None
    return cedar, OverHttp(base, oauth, "secret")


class TestConformance(ProviderConformance):
    """The example, found through the registry, over a real socket."""

    @pytest.fixture
    def _connected(self, httpserver: HTTPServer) -> tuple[Provider, OverHttp]:
        return _connected(httpserver, 450)

    @pytest.fixture
    def provider(self, _connected: tuple[Provider, OverHttp]) -> Provider:
        return _connected[0]

    @pytest.fixture
    def source(self, _connected: tuple[Provider, OverHttp]) -> OverHttp:
        return _connected[1]

    def test_the_last_day_becomes_the_first_day_away(self, frames):
        left = frames["enrollments"].set_index("sis_id").loc["stay-5"]
        assert (left["exit_date"], left["status"]) == ("2025-10-04", "withdrawn")


def test_the_page_shows_the_code_that_is_tested():
    """Every code block of the page that names a file is in that file."""
    page = (DOCS / "plugins.md").read_text()
    shown = re.findall(r"`(examples/cedar_sis/[\w./]+)`[^\n]*\n\n```\w+\n(.*?)```", page, flags=re.DOTALL)
    assert len(shown) >= 4
    for file, block in shown:
        text = (DOCS / file).read_text()
        for part in block.split("# ...\n"):
            assert part.strip("\n") in text, f"{file} does not hold what docs/plugins.md shows of it"
