"""`sis sandbox`: student information systems on loopback, for demos, tests and authors of plugins.
What the systems hold and say is the sandbox's own business; here it is started and controlled."""

from __future__ import annotations

import json
import shlex
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, ExitCode, RefusalError, emit
from sis_pipeline.cli.ports import check_port
from sis_pipeline.cli.syncing import known_year

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.sandbox.server import SandboxServer
    from sis_pipeline.sandbox.world import World

app = typer.Typer(help="Student information systems to try things on.", no_args_is_help=True)

LOOPBACK = "127.0.0.1"
PORT = 8777
"""Where the sandbox is served unless asked otherwise; the demo prefers it too, so that both reach the same systems."""
STUDENTS = 2_280
SEED = 1

Port = Annotated[int, typer.Option(min=0, max=65_535, help="The port on loopback; 0 takes a free one.")]


@app.command()
def serve(
    *,
    port: Port = PORT,
    students: Annotated[int, typer.Option(min=50, max=1_000_000, help="About how many students live in the district.")] = STUDENTS,
    seed: Annotated[int, typer.Option(help="The same seed gives the same people.")] = SEED,
    day: Annotated[int, typer.Option(min=1, max=365, help="The day it is; `sis sandbox day` moves on.")] = 1,
    school_year: Annotated[str | None, typer.Option(metavar="YEAR", help="The active school year; the current one otherwise.")] = None,
    rate_scale: Annotated[float, typer.Option(min=0.01, max=1_000, help="Multiplies every vendor's rate limit.")] = 1.0,
    of_demo: Annotated[bool, typer.Option("--demo", help="The district of `sis demo` as that left it, for more syncs of it.")] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Serve a district's systems until Ctrl-C, and print how to add each as an integration."""
    here = Installation()
    if of_demo:
        from sis_pipeline.cli.demo import as_left

        world, day, port = as_left(here)
    else:
        from sis_pipeline.sandbox.world import World

        world = World(seed=seed, students=students, school_year=known_year(here, school_year))
    with listen(world, port, csv_folder(here), rate_scale=rate_scale, day=day) as server:
        systems = describe(server, csv_folder(here), rate_scale)
        document = {
            "url": server.url,
            "day": day,
            "district": world.district,
            "school_year": world.school_year,
            "systems": systems,
        }
        emit(as_json, document, lambda console: _print(console, document))
        threading.Event().wait()


@app.command()
def day(
    number: Annotated[int, typer.Argument(metavar="DAY", min=1, max=365, help="The day it shall be.")],
    *,
    port: Port = PORT,
    as_json: AsJson = False,
) -> None:
    """Let it be that day in a sandbox that is being served."""
    import requests

    try:
        answer = requests.post(f"http://127.0.0.1:{port}/_sandbox/day", json={"day": number}, timeout=60)
        answer.raise_for_status()
    except requests.RequestException:
        raise RefusalError(
            f"No sandbox answers on port {port}.", "Start one with `sis sandbox serve`.", ExitCode.FAILED, "transient"
        ) from None
    now = answer.json()
    emit(as_json, now, lambda console: console.print(f"It is day {now['day']} ({now['date']}) in the sandbox."))


def listen(world: World, port: int, folder: Path, *, rate_scale: float = 1.0, day: int = 1) -> SandboxServer:
    """A server on loopback, not yet started, that keeps the CSV systems' files below `folder` at its day.

    Raises RefusalError where the port is taken.
    """
    from sis_pipeline.sandbox.server import SandboxServer

    class WithFiles(SandboxServer):
        def set_day(self, day: int) -> None:
            super().set_day(day)
            write_files(self.world, day, folder)

    check_port(LOOPBACK, port)
    server = WithFiles(world, host=LOOPBACK, port=port, rate_scale=rate_scale)
    server.set_day(day)
    return server


def csv_folder(here: Installation) -> Path:
    return here.settings.root / "sandbox"


def describe(server: SandboxServer, folder: Path, rate_scale: float = 1.0) -> list[dict[str, Any]]:
    """Per system what an integration of it needs: name, provider, settings, secret (None for files), limit a minute."""
    served = [
        {
            "name": handle.name,
            "provider": handle.provider,
            "settings": {**handle.settings, **_raised(handle.meter.requests_per_minute, rate_scale)},
            "client_secret": handle.client_secret,
            "requests_per_minute": handle.meter.requests_per_minute,
        }
        for handle in server.systems
    ]
    files = [
        {
            "name": system.name,
            "provider": system.speech.provider,
            "settings": {"path": str(folder / system.name)},
            "client_secret": None,
            "requests_per_minute": None,
        }
        for system in server.world.systems
        if system.dialect == "oneroster_csv"
    ]
    order = [system.name for system in server.world.systems]
    return sorted(served + files, key=lambda system: order.index(system["name"]))


def _raised(limit: float, rate_scale: float) -> dict[str, int]:
    """The limit as a setting where it is not the vendor's own."""
    return {} if rate_scale == 1 else {"requests_per_minute": min(6_000, max(1, int(limit)))}


def add_command(system: dict[str, Any], district: str) -> str:
    """The shell line that adds a system. Its secret opens nothing but the sandbox."""
    settings = dict(system["settings"])
    flags = [f"--{name.replace('_', '-')} {shlex.quote(str(settings.pop(name)))}" for name in FLAGS if name in settings]
    options = [f"--option {shlex.quote(f'{name}={_as_option(value)}')}" for name, value in settings.items()]
    line = f"sis integration add {system['name']} --provider {system['provider']} --district {district}"
    if system["client_secret"] is None:
        return " ".join([line, *flags, *options])
    secret = f"SANDBOX_SECRET={shlex.quote(system['client_secret'])}"
    return " ".join([secret, line, *flags, "--client-secret-env SANDBOX_SECRET", *options])


FLAGS = ("base_url", "token_url", "client_id", "client_auth", "scope")


def _as_option(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _print(console: Console, document: dict[str, Any]) -> None:
    console.print(
        f"District {document['district']}, school year {document['school_year']}, day {document['day']}: {document['url']}"
    )
    console.print("Add its systems (the secrets open nothing but this sandbox):", style="bold")
    for system in document["systems"]:
        console.print(add_command(system, document["district"]), markup=False, soft_wrap=True)
    port = document["url"].rsplit(":", 1)[1]
    console.print(f"Next day: sis sandbox day 2 --port {port}. Ctrl-C ends it.")


def write_files(world: World, day: int, folder: Path) -> None:
    """Write every CSV system as it is on a day, each into a folder of its name, in place of what was there."""
    from sis_pipeline.sandbox.oneroster_csv import write_bundle

    for system in world.systems:
        if system.dialect == "oneroster_csv":
            target, new = folder / system.name, folder / f".{system.name}.new"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.rmtree(new, ignore_errors=True)
            write_bundle(world.view(system.name, day), new)
            shutil.rmtree(target, ignore_errors=True)
            new.replace(target)
