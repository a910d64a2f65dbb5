"""docs/registrars-day.md works as written: its commands are run in order, and say what it says that they say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from sis_pipeline.cli.main import app
from sis_pipeline_tests.registrars_day.morning import morning

PAGE = Path(__file__).parents[2] / "docs" / "registrars-day.md"
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXIT = re.compile(r"\s+# exit code (\d+)$")
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DATE = re.compile(r"\d{4}-\d\d-\d\d|\d{4}-\d{4}")
GAP = "…"


@dataclass(frozen=True)
class Step:
    """Commands, each with its exit code, and lines that they print, in order."""

    commands: tuple[tuple[str, int], ...]
    lines: tuple[str, ...]


def steps() -> Iterator[Step]:
    blocks = [
        (kind, [line for line in body.splitlines() if line.strip()]) for kind, body in BLOCK.findall(PAGE.read_text())
    ]
    for place, (kind, lines) in enumerate(blocks):
        if kind == "sh":
            shown = blocks[place + 1][1] if place + 1 < len(blocks) and blocks[place + 1][0] == "text" else []
            yield Step(tuple(map(command, lines)), tuple(shown))


def command(line: str) -> tuple[str, int]:
    code = EXIT.search(line)
    return EXIT.sub("", line), int(code[1]) if code else 0


class Reader:
    """Compares what is printed with the page. An id of the page stands for the one that is printed where it first is."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}

    def here(self, text: str) -> str:
        """The page's text with this installation's ids."""
        return ID.sub(lambda found: self.ids.get(found[0], found[0]), text)

    def find(self, line: str, printed: list[str]) -> int | None:
        """Which of the printed lines is, or contains, the page's; what is new in it is remembered."""
        for place, given in enumerate(printed):
            if found := self._pattern(line).search(" ".join(given.split())):
                named = dict.fromkeys(ID.findall(line))
                self.ids |= {page: found[f"id{number}"] for number, page in enumerate(named) if page not in self.ids}
                return place
        return None

    def _pattern(self, line: str) -> re.Pattern[str]:
        pattern = re.escape(" ".join(line.split())).replace(re.escape(GAP), ".*")
        for number, page in enumerate(dict.fromkeys(ID.findall(line))):
            known = re.escape(self.ids[page]) if page in self.ids else f"(?P<id{number}>{ID.pattern})"
            pattern = pattern.replace(re.escape(page), known, 1).replace(re.escape(page), ID.pattern)
        return re.compile(
            re.sub(r"(?<!\d)(\d{4}\\-\d\d\\-\d\d|\d{4}\\-\d{4})(?!\d)", lambda _: f"(?:{DATE.pattern})", pattern)
        )


@pytest.fixture
def a_morning(postgres: URL, _template: str, tmp_path: Path) -> Iterator[None]:
    with morning(postgres, _template, tmp_path / "home"):
        yield


@pytest.mark.usefixtures("a_morning")
def test_the_page_works_as_written() -> None:
    reader, ran = Reader(), 0
    for step in steps():
        printed: list[str] = []
        for line, code in step.commands:
            program, *arguments = shlex.split(reader.here(line))
            assert program == "sis"
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == code, f"{line}\n{done.stdout}\n{done.stderr}"
            printed += [one for one in done.stdout.splitlines() if one.strip()]
            ran += 1
        rest = printed
        for line in step.lines:
            place = reader.find(line, rest)
            if place is None:
                pytest.fail(
                    f"the page shows\n  {line}\nafter {step.commands[-1][0]}, which prints\n" + "\n".join(printed)
                )
            rest = rest[place + 1 :]
    assert ran == sum(len(step.commands) for step in steps()) >= 15
