"""`sis up`: Dagster's web interface and daemon as child processes on this installation's database.
What they run is in `defs`; a service manager may as well start the two itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import ExitCode, complain, console
from sis_pipeline.cli.ports import check_port

MODULE = "sis_pipeline.definitions"
PATIENCE = 30.0
"""Seconds that the two get to end runs and code servers before they are killed."""
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True)
class Service:
    """One of the two: its process leads a session of its own, so that it can be ended with all it started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


def up(
    *,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="The web interface's port.")] = 3000,
    host: Annotated[str, typer.Option(help="Where it listens; it has no users of its own, so think before opening it.")] = "127.0.0.1",
) -> None:  # fmt: skip
    """Start the web interface and the daemon (schedules, sensors, backfills); Ctrl-C ends both.

    Neither is started without the encryption key that opens the stored secrets; with the embedded database, the first
    start makes one. Neither is restarted: if one ends, the other is ended too, and the exit code is 1.
    """
    here = Installation()
    check_port(host, port)
    speak = console(stderr=True)
    environment = prepare(here, lambda line: speak.print(line, markup=False))
    logs = here.settings.root / "logs"
    web = ["dagster_webserver", "--host", host, "--port", str(port), "--module-name", MODULE]
    daemon = ["dagster._daemon", "run", "--module-name", MODULE]
    with ending_on_sigterm(), contextlib.ExitStack() as stack:
        services = [
            stack.enter_context(running(name, command, logs, environment))
            for name, command in (("webserver", web), ("daemon", daemon))
        ]
        speak.print(f"Starting the web interface and the daemon; their logs are in {logs}.", markup=False)
        url = f"http://{'127.0.0.1' if host in LOOPBACK else host}:{port}"
        if await_answer(url, services):
            typer.echo(url)
            speak.print("Ctrl-C ends both.")
        if host not in LOOPBACK:
            complain(f"the web interface listens on {host}: whoever reaches it can start, change and delete everything")
        with contextlib.suppress(KeyboardInterrupt):
            watch(services)
            raise typer.Exit(ExitCode.FAILED)
        speak.print("Ending both …")


def prepare(here: Installation, say: Callable[[str], None]) -> dict[str, str]:
    """Bring the schema up to date, prove the key, make Dagster's home, close runs that were left open; the children's
    environment. Raises ConfigError without the right key: what is started would find out only when it needs a secret."""
    from sis_pipeline.defs.instance import dagster_environment, dagster_instance
    from sis_pipeline.defs.runs import fail_orphaned_runs

    if here.settings.database_url is None:  # any other may be shared by machines, which must share its key, too
        make_key_once(here, say)
    here.vault  # noqa: B018 opening it migrates the schema and proves the key
    with dagster_instance(here.settings) as instance:
        fail_orphaned_runs(instance)
    return {**os.environ, **dagster_environment(here.settings)}


def make_key_once(here: Installation, say: Callable[[str], None]) -> None:
    """The explicit first step: a key for the stored secrets, where there is none.

    Raises ConfigError where there is none any more: another one would open nothing, and stand where the right one has
    to be put back.
    """
    from sis_pipeline.connect.errors import ConfigError
    from sis_pipeline.connect.keys import KEY_ADVICE, create_key_file, rows_per_key

    path = here.settings.key_file
    if here.settings.encryption_keys is not None or path.exists():
        return
    with here.engine.connect() as connection:
        known = rows_per_key(connection)
    if known:
        raise ConfigError(
            f"There is no encryption key at {path}, and none was made: the database is used with key {', '.join(known)}.",
            code="config.key_missing",
            advice=KEY_ADVICE,
        )
    create_key_file(path)
    say(f"sis keys create: wrote the encryption key to {path} (mode 0600). Back it up.")


@contextlib.contextmanager
def running(name: str, command: list[str], logs: Path, environment: dict[str, str]) -> Iterator[Service]:
    """A Python module as a process, ended with everything it started when the block is left."""
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = logs / f"{name}.log"
    with os.fdopen(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as output:
        process = subprocess.Popen(  # noqa: S603 our own interpreter, Dagster's own modules
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield Service(name, process, log)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, as Ctrl-C does; after a while kill it, and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def await_answer(url: str, services: list[Service], patience: float = 180.0) -> bool:
    """True once the web interface answers; False if a service ended or it took too long."""
    import requests

    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not ended(services):
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/server_info", timeout=2).ok:
                return True
        time.sleep(0.2)
    return False


def watch(services: list[Service]) -> None:
    """Wait until one of them ends by itself, and say so."""
    while not (gone := ended(services)):
        time.sleep(0.5)
    for service in gone:
        complain(f"the {service.name} ended by itself (code {service.process.returncode})", f"Its log: {service.log}")


def ended(services: list[Service]) -> list[Service]:
    return [service for service in services if service.process.poll() is not None]


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does: a service manager sends it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
