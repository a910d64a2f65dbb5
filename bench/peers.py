"""The same pages through other tools into the same PostgreSQL, beside the product's own days: quote the ratios.
They copy rows; they find no person in several systems, no conflict, no removal that needs a person, and keep no ledger."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from rich.console import Console
from rich.table import Table
from sqlalchemy.engine import URL, make_url

from bench import generate, stages
from bench.apart import alone, emptied_home
from sis_pipeline.db import embedded

HERE = Path(__file__).parent
DAYS = ("0", "1", "1")
"""Of the generated pages: a first load, 3.7 % changed, nothing changed."""
Peer = Callable[[URL, Path, Path, str], float]
"""Server, home, pages, day -> seconds."""


def dlt(python: str) -> Peer:
    """dlt's merge (upsert) into PostgreSQL, by a Python that has dlt."""

    def run(url: URL, home: Path, pages: Path, day: str) -> float:
        place = {"host": quote(str(url.query["host"]), safe=""), "port": url.port or 5432, "database": url.database}
        who = {"username": url.username, "password": "-"}  # dlt asks for one; the server does not
        return _said(python, "dlt_peer.py", str(home), json.dumps(place | who), str(pages), day)

    return run


def orm(url: URL, _home: Path, pages: Path, day: str) -> float:
    """SQLAlchemy's ORM, a row at a time."""
    driver = url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    return _said(sys.executable, "orm_peer.py", driver, str(pages), day)


def _said(python: str, program: str, *given: str) -> float:
    """The seconds that a peer's program says it took."""
    done = subprocess.run([python, str(HERE / program), *given], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{program} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def _days(peer: Peer, pages: Path) -> list[float]:
    """Every peer has a server of its own, as the product has."""
    with emptied_home() as home:
        url = make_url(embedded.start(home / "postgres"))
        return [peer(url, home, pages, day) for day in DAYS]


def _ours(students: int, pages: Path) -> list[float]:
    with emptied_home() as home:
        measured: stages.Measured = alone(stages.run, students, str(home), pages)
    return [day.seconds for day in measured.days.values()]


def _print(students: int, found: dict[str, list[float]]) -> None:
    table = Table(title=f"{students:,} student rows: seconds (times ours)")
    for place, heading in enumerate(("", "first load", "3.7 % changed", "nothing changed")):
        table.add_column(heading, justify="right" if place else "left")
    ours = next(iter(found.values()))
    for name, days in found.items():
        ratios = [(day, day / own) for day, own in zip(days, ours, strict=True)]
        table.add_row(name, *(f"{seconds:,.1f} ({ratio:,.1f} x)" for seconds, ratio in ratios))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--students", type=int, nargs="*", default=[10_000, 100_000], help="student rows, for dlt")
    parser.add_argument("--orm-students", type=int, default=10_000, help="sizes up to which the ORM is run, too")
    parser.add_argument("--dlt-python", required=True, help="a Python that has dlt[postgres]")
    asked = parser.parse_args()
    for students in asked.students:
        peers: dict[str, Peer] = {"dlt, merge (upsert)": dlt(asked.dlt_python)}
        if students <= asked.orm_students:
            peers["SQLAlchemy ORM, per row"] = orm
        with emptied_home() as home:
            pages = home / "pages"
            alone(generate.write, students, stages.YEAR, pages)
            found = {"sis_pipeline": _ours(students, pages)}
            _print(students, found | {name: _days(peer, pages) for name, peer in peers.items()})


if __name__ == "__main__":
    main()
