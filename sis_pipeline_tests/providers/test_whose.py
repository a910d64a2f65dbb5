"""Whose data a system gives: every dialect names its district, the same one every day, and another one as another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sis_pipeline.providers.base import Provider, district_id
from sis_pipeline.providers.registry import make
from sis_pipeline.sandbox.oneroster_csv import write_bundle
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.providers.sources import OverHttp, Script

SYSTEMS = (
    System("ps", "powerschool", 20),
    System("ic", "infinite_campus", 20),
    System("or", "oneroster_1.1", 20, {"page_cap": 5}),
    System("sky", "skyward_oneroster", 20),
    System("sms", "skyward_sms", 20),
    System("qm", "skyward_qmlativ", 20),
    System("csv", "oneroster_csv", 20),
)
HTTP = [system.name for system in SYSTEMS if system.dialect != "oneroster_csv"]
Whose = Callable[[SandboxServer, str], frozenset[str]]


@pytest.fixture(scope="module")
def here() -> Iterator[SandboxServer]:
    with SandboxServer(World(systems=SYSTEMS), enforce_limits=False) as running:
        yield running


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[SandboxServer]:
    """The same systems, the same people, another district."""
    with SandboxServer(World(systems=SYSTEMS, district="cedarfalls"), enforce_limits=False) as running:
        yield running


def provider_of(sandbox: SandboxServer, system: str) -> Provider:
    handle = sandbox.system(system)
    return make(handle.provider, handle.settings)


def source_of(sandbox: SandboxServer, system: str) -> OverHttp:
    provider, handle = provider_of(sandbox, system), sandbox.system(system)
    oauth = provider.authentication()
    assert oauth is not None
    return OverHttp(handle.base_url, oauth, handle.client_secret)


@pytest.mark.parametrize("system", HTTP)
def test_every_api_names_its_district_cheaply_and_stays_with_it(here, elsewhere, system):
    source = source_of(here, system)
    first = provider_of(here, system).whose(source)
    assert source.calls <= 2
    here.set_day(9)
    assert provider_of(here, system).whose(source) == first
    other = provider_of(elsewhere, system).whose(source_of(elsewhere, system))
    if system == "sms":  # names no district anywhere
        assert first == other == frozenset()
    else:
        assert len(first) == len(other) == 1
        assert first != other


def test_a_csv_set_names_its_district(tmp_path: Path):
    found = []
    for district in ("fernhollow", "cedarfalls"):
        folder = tmp_path / district
        write_bundle(World(systems=SYSTEMS, district=district).view("csv", 1), folder)
        found.append(make("oneroster_csv", {"path": str(folder)}).whose(Script({})))
    assert len(found[0]) == len(found[1]) == 1
    assert found[0] != found[1]


def orgs(*listed: dict[str, object]) -> Script:
    return Script({"/orgs": {"orgs": list(listed)}})


def test_a_consortium_is_all_its_districts_and_a_removed_one_is_none():
    oneroster = make(
        "oneroster",
        {"base_url": "https://sis.example.org", "token_url": "https://sis.example.org/token", "client_id": "c"},
    )
    source = orgs(
        {"sourcedId": "1", "type": "district", "identifier": "3400001", "status": "active"},
        {"sourcedId": "2", "type": "Local", "status": "active"},
        {"sourcedId": "3", "type": "district", "status": "tobedeleted"},
        {"sourcedId": "4", "type": "school", "status": "active"},
    )
    assert oneroster.whose(source) == {"1/3400001", "2"}
    assert oneroster.whose(orgs({"sourcedId": "4", "type": "school"})) == frozenset()


def test_an_older_powerschool_names_it_on_another_page_if_the_plugin_may_read_that():
    powerschool = make("powerschool", {"base_url": "https://ps.example.org", "client_id": "c"})
    metadata = {"/ws/v1/metadata": {"metadata": {"plugin_id": 7}}}
    named = {**metadata, "/ws/v1/district": {"district": {"name": "Fernhollow", "district_number": 3_400_001}}}
    assert powerschool.whose(Script(named)) == {"3400001"}
    assert powerschool.whose(Script(metadata)) == frozenset()


def test_an_id_that_is_none_is_kept_as_a_hash_only():
    assert district_id("7f3c", 3_400_001) == "7f3c/3400001"
    assert district_id(None, "12") == "12"
    for odd in ("two words", "x" * 200, "\x1b[31mred", "ü"):
        assert district_id(odd).startswith("sha256:")
        assert district_id(odd) == district_id(odd)
