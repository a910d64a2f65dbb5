"""The generated pages of the documentation say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command

import sis_pipeline
from sis_pipeline.cli import reference
from sis_pipeline.cli.main import app
from sis_pipeline.cli.output import EXIT_CODES
from sis_pipeline.roster import model
from sis_pipeline.settings import Settings
from sis_pipeline_tests.cli.test_basics import commands

DOCS = Path(sis_pipeline.__file__).parent.parent / "docs"
PAGES = reference.pages()


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_current(name):
    if not DOCS.exists():
        pytest.skip("the documentation is not part of the installed package")
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name], "run `python -m sis_pipeline.cli.reference docs`"


def test_every_command_option_and_exit_code_is_there():
    page = PAGES["cli.md"]
    for path, command in commands(get_command(app)):
        section = page.split(f"## `sis {' '.join(path)}`\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if parameter.name != "help":
                written = (
                    parameter.opts[0]
                    if parameter.param_type_name == "option"
                    else parameter.metavar or parameter.name.upper()
                )
                assert written in section
    for code, meaning in EXIT_CODES.items():
        assert f"| {code.value} | {meaning} |" in page


def test_every_setting_is_there_with_its_meaning():
    page = PAGES["configuration.md"]
    for name, field in Settings.model_fields.items():
        assert f"| `SIS_{name.upper()}` |" in page
        assert field.description, f"{name} has a docstring"


def test_provider_settings_are_there():
    from sis_pipeline.providers.registry import load_providers

    page = PAGES["configuration.md"]
    for provider in load_providers().providers.values():
        for name, field in provider.Settings.model_fields.items():
            assert f"| `{name}` |" in page
            assert field.description, f"{provider.name}.{name} has a description"


def test_every_table_and_column_is_there():
    page = PAGES["roster-model.md"]
    for tables in (model.ENTITIES, model.MERGED):
        for table in tables.values():
            assert f"### `{table.name}`" in page
            for column in table:
                assert f"| `{column.name}` | {column.kind} |" in page


def test_pages_are_written_where_asked(tmp_path):
    written = reference.write(tmp_path / "docs")
    assert {path.name: path.read_text(encoding="utf-8") for path in written} == PAGES
