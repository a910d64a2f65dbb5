"""Imports point downward only: cli → defs → providers, store → connect → db; the domain imports none of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import sis_pipeline

ROOT = Path(sis_pipeline.__file__).parent

ALLOWED: dict[str, set[str]] = {
    "roster": set(),
    "db": {"roster", "settings"},
    "connect": {"crashpoints", "db", "roster", "settings"},
    "providers": {"connect", "roster"},
    "store": {"connect", "crashpoints", "db", "providers", "roster", "settings"},
    "sandbox": {"roster"},
    "defs": {"connect", "db", "providers", "roster", "settings", "store"},
    "definitions": {"defs"},
    "settings": set(),
    "crashpoints": set(),
    "cli": {"connect", "db", "definitions", "defs", "providers", "roster", "sandbox", "settings", "store"},
}
"""Which top-level parts each part may import, beside itself. `store` may name a provider's contract and registry."""

PURE_FORBIDDEN = {"dagster", "sqlalchemy", "psycopg", "requests", "os", "pathlib", "subprocess", "socket", "time"}


def _imports(module: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} uses a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _parts(module: Path) -> set[str]:
    return {name.split(".")[1] for name in _imports(module) if name.startswith("sis_pipeline.")} - {"__version__"}


MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(module: Path):
    part = module.relative_to(ROOT).parts[0].removesuffix(".py")
    beyond = _parts(module) - ALLOWED[part] - {part}
    assert not beyond, f"{module.relative_to(ROOT)} may not import {sorted(beyond)}"


@pytest.mark.parametrize("module", sorted((ROOT / "roster").glob("*.py")), ids=lambda path: path.name)
def test_the_domain_is_pure(module: Path):
    used = {name.split(".")[0] for name in _imports(module)} & PURE_FORBIDDEN
    assert not used, f"roster/{module.name} imports {sorted(used)}"


def test_every_folder_of_the_package_is_in_the_table():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(ALLOWED)


SENTENCE_END = re.compile(r"[.?!](?=\s|$)")


@pytest.mark.parametrize("module", [ROOT / "__init__.py", *MODULES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_belongs_in_it(module: Path):
    """Two sentences: what belongs here, what does not. A revision has one, its title; an empty file says nothing."""
    source = module.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    wanted = 0 if not source.strip() else 1 if module.parent.name == "versions" else 2
    assert len(SENTENCE_END.findall(docstring)) >= wanted, f"{module.relative_to(ROOT)} opens with {docstring!r}"
