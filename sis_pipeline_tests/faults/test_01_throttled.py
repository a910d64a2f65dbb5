"""Systems that say to slow down, in every form of Retry-After: all processes wait as long as asked, and nothing is lost."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL

from sis_pipeline.connect.errors import RETRY_AFTER_CAP, RateLimitedError
from sis_pipeline.connect.limits import RateLimit
from sis_pipeline.connect.source import CallRecord, open_source
from sis_pipeline.connect.vault import Keys, Vault
from sis_pipeline.db.engine import engine_for
from sis_pipeline.providers.base import Page, Provider, Resource
from sis_pipeline.providers.infinite_campus import InfiniteCampus
from sis_pipeline.providers.oneroster import OneRoster
from sis_pipeline.providers.powerschool import PowerSchool
from sis_pipeline.providers.reading import read, verdict
from sis_pipeline.providers.skyward import Skyward
from sis_pipeline.sandbox.server import Handle, SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.connect.workers import KEY
from sis_pipeline_tests.faults.clock import Clock, leaping
from sis_pipeline_tests.faults.pages import YEAR
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    1,
    "429 with Retry-After in seconds, as a date, 0, negative, garbage, enormous, and without one",
    "the wait is at least what was asked and at most the cap of 15 minutes, all processes pause, at most 5 attempts, "
    "no row is lost",
    560,
    "forms x providers x 20",
)

PROVIDERS: dict[str, tuple[str, type[Provider], int]] = {
    "powerschool": ("powerschool", PowerSchool, 60),
    "infinite_campus": ("infinite_campus", InfiniteCampus, 100),
    "skyward": ("skyward_oneroster", Skyward, 80),
    "oneroster": ("oneroster_1.2", OneRoster, 60),
}
FORMS: dict[str, tuple[Callable[[], str | None], float]] = {
    "seconds": (lambda: "7", 7),
    "date": (lambda: formatdate(time.time() + 60, usegmt=True), 40),
    "zero": (lambda: "0", 0),
    "negative": (lambda: "-5", 0),
    "garbage": (lambda: "soon; please", 0),
    "enormous": (lambda: "1000000000", RETRY_AFTER_CAP),
    "none": (lambda: None, 0),
}
"""The header, and the seconds that it asks for: of a date, what is left of it however slow the machine is."""
SYSTEMS = tuple(System(name, dialect, 8, {"bad_rows": False}) for name, (dialect, _, _) in PROVIDERS.items())
ATTEMPTS = 5


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxServer]:
    with SandboxServer(World(seed=3, systems=SYSTEMS, school_year=YEAR.key), enforce_limits=False) as running:
        yield running


@dataclass
class Client:
    """One process of the product, and beside it another that would like to call the same system."""

    engine: Engine
    other: Engine
    clock: Clock
    handle: Handle
    per_minute: int
    records: list[tuple[float, CallRecord]] = field(default_factory=list)
    paused: int = 0

    def read(self) -> str:
        """Read the whole school year; a hash of every page in order. Raises RateLimitedError after five attempts."""
        provider = PROVIDERS[self.handle.name][1]
        made = provider(provider.Settings.model_validate(self.handle.settings))
        kept = hashlib.sha256()
        vault = Vault.open(self.engine, Keys([KEY]))
        vault.put(self.handle.name, "client_secret", self.handle.client_secret)
        self.records.clear()

        def keep(resource: Resource, page: Page) -> None:
            kept.update(f"{resource.name} {page.number} ".encode() + page.body)

        with open_source(
            self.handle.name,
            provider=self.handle.provider,
            settings=made.settings,  # type: ignore[arg-type]
            oauth=made.authentication(),
            requests_per_minute=self.per_minute,
            vault=vault,
            engine=self.engine,
            on_call=self._note,
        ) as source:
            plan = made.plan(source, YEAR, {})
            assert verdict(read(plan, source.send, made.decode, keep)) == "complete"
        return kept.hexdigest()

    def _note(self, record: CallRecord) -> None:
        self.records.append((self.clock.now(), record))

    def look(self, seconds: float) -> None:
        """While this process waits after a throttle, the other gets no turn either."""
        throttled = self.records and self.records[-1][1].error_class == "rate_limited"
        if throttled:
            began = time.monotonic()
            with self.engine.connect() as connection:
                key = connection.scalar(text("select limit_key from sis.rate_limits order by next_free desc limit 1"))
            slot = RateLimit(self.other).reserve(str(key), self.per_minute)
            wait, took = 0.0 if slot.granted else slot.wait, time.monotonic() - began
            assert wait >= seconds - took - 0.5, "on a busy machine the pause goes on while the other asks"
            self.paused += 1

    def waits(self) -> Iterator[float]:
        """The seconds from each throttled attempt to the next call."""
        for (at, record), (then, _) in zip(self.records, self.records[1:], strict=False):
            if record.error_class == "rate_limited":
                yield then - at


@contextmanager
def client(url: URL, handle: Handle) -> Iterator[Client]:
    engine = create_engine(url, pool_size=2, connect_args={"options": "-c search_path=sis -c TimeZone=UTC"})
    other = engine_for(url)
    clock = Clock(engine, other)
    made = Client(engine, other, clock, handle, PROVIDERS[handle.name][2])
    with leaping(clock, made.look):
        yield made
    engine.dispose()
    other.dispose()


@pytest.mark.parametrize("name", PROVIDERS)
def test_everybody_waits_as_asked(  # noqa: PLR0917  fixtures
    database_url: URL, sandbox: SandboxServer, name: str, count: Count, chance: random.Random, row: Recorder
) -> None:
    with client(database_url, sandbox.system(name)) as process:
        sandbox.faults.clear()
        whole = process.read()
        calls = len(process.records) - 1
        for form in FORMS:
            for _ in range(count(full=20, part=1)):
                burst = Burst(form, nth=chance.randint(1, calls), times=chance.choice([1, 1, 2, 4, 5]))
                throttled(sandbox, process, burst, whole, row)


@dataclass(frozen=True)
class Burst:
    """So many 429s in a row from the n-th call on."""

    form: str
    nth: int
    times: int


def throttled(sandbox: SandboxServer, process: Client, burst: Burst, whole: str, row: Recorder) -> None:
    """Read it all once more, through a burst of 429s."""
    (header, asked), times = FORMS[burst.form], burst.times
    said = header()
    headers = {"Retry-After": said} if said is not None else {}
    fault = sandbox.faults.add(
        "status",
        system=process.handle.name,
        path="^(?!.*token)",
        nth=burst.nth,
        times=times,
        status=429,
        headers=headers,
    )
    process.paused = 0
    if times < ATTEMPTS:
        assert process.read() == whole, "not a row is lost"
    else:
        with pytest.raises(RateLimitedError) as spent:
            process.read()
        assert spent.value.context["attempt"] == ATTEMPTS
    assert fault.fired == times
    sandbox.faults.clear()
    waits = list(process.waits())
    assert len(waits) == min(times, ATTEMPTS - 1)
    assert all(max(asked, 1.0) - 0.05 <= wait <= RETRY_AFTER_CAP + 5 for wait in waits), (burst, waits)
    assert process.paused >= len(waits)
    row.happened(fault.fired)
    row.ran()
