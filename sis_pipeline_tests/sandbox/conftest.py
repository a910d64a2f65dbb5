"""One small district with every dialect, served without limits, for the tests of this area."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World

SYSTEMS = (
    System("ps", "powerschool", 120),
    System("ic", "infinite_campus", 60),
    System("or11", "oneroster_1.1", 60, {"page_cap": 50, "totals": False, "links": "none"}),
    System("or12", "oneroster_1.2", 60),
    System("sky", "skyward_oneroster", 60),
    System("sms", "skyward_sms", 60),
    System("qm", "skyward_qmlativ", 60),
    System("csv", "oneroster_csv", 60),
)


@pytest.fixture(scope="session")
def world() -> World:
    return World(seed=7, systems=SYSTEMS)


@pytest.fixture(scope="module")
def sandbox(world: World) -> Iterator[SandboxServer]:
    with SandboxServer(world, enforce_limits=False) as running:
        yield running


@pytest.fixture(autouse=True)
def calm(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test starts on day 1 without faults."""
    yield
    if "sandbox" in request.fixturenames:
        running = request.getfixturevalue("sandbox")
        running.faults.clear()
        running.set_day(1)
