"""Plugins are found by entry points; one that can't be used is listed with its reason and stops nobody."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.providers.base import Provider
from sis_pipeline.providers.registry import Registry, load_providers, make, provider_names

OURS = {"powerschool", "infinite_campus", "skyward", "oneroster", "oneroster_csv"}

PLUGIN = """
from sis_pipeline.providers.base import Capabilities, Provider, ProviderSettings
from pydantic import Field, field_validator

class Settings(ProviderSettings):
    path: str = Field(description="where the files are")

    @field_validator("path")
    @classmethod
    def there(cls, value):
        if value == "nowhere":
            raise ValueError("there is no such folder")
        return value

class Whole(Provider):
    name = "whole"
    title = "A whole plugin"
    Settings = Settings
    requests_per_minute = 60
    capabilities = Capabilities(frozenset({"students"}), False, False, False, False)
    def authentication(self): return None
    def plan(self, source, school_year, last_rows): ...
    def decode(self, resource, body): return []
    def standardise(self, raw): return {}
    def check(self, source): return "fine"

class Old(Whole):
    name = "old"
    contract_version = 0

class Unfinished(Provider):
    name = "unfinished"

class Misnamed(Whole):
    name = "another"

class Unlimited(Whole):
    name = "unlimited"
    requests_per_minute = "many"

class Untyped(Whole):
    name = "untyped"
    Settings = dict

def not_a_class(): ...
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pretends that a distribution with entry points is installed."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(distribution: str, points: dict[str, str], code: str = "") -> None:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {module}:{value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[sis_pipeline.providers]\n{lines}")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return installed


def reasons(registry: Registry) -> dict[str, str]:
    return {failure.name: failure.reason for failure in registry.failures}


def test_ours_are_installed():
    registry = load_providers()
    assert set(registry.providers) >= OURS
    assert not OURS & set(reasons(registry))
    for name, provider in registry.providers.items():
        assert issubclass(provider, Provider)
        assert provider.name == name


def test_a_plugin_is_found_beside_ours(install):
    install("acme-sis", {"whole": "Whole"}, PLUGIN)
    registry = load_providers()
    assert set(registry.providers) >= OURS | {"whole"}
    assert make("whole", {"path": "x"}).settings.path == "x"


def test_names_are_listed_without_importing(install):
    install("acme-sis", {"whole": "Whole"}, "raise RuntimeError('imported')")
    assert set(provider_names()) >= OURS | {"whole"}
    assert "acme_sis" not in sys.modules


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("old", "Old", "version 0 of the plugin contract; this is version 1"),
        ("unfinished", "Unfinished", "It lacks title, Settings, requests_per_minute, authentication, capabilities"),
        ("misnamed", "Misnamed", "calls itself 'another'"),
        ("unlimited", "Unlimited", "requests_per_minute must be a whole number"),
        ("untyped", "Untyped", "Settings are not a subclass"),
        ("function", "not_a_class", "not a subclass of sis_pipeline.providers.base.Provider"),
        ("missing", "Nothing", "Importing it failed: AttributeError"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said_and_stops_nobody(install, name, value, reason):
    install("acme-sis", {name: value, "whole": "Whole"}, PLUGIN)
    registry = load_providers()
    assert reason in reasons(registry)[name]
    assert name not in registry.providers
    assert "whole" in registry.providers
    with pytest.raises(ConfigError, match="installed but can't be used"):
        make(name, {})


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_library_that_is_not_there", "No module named 'a_library_that_is_not_there'"),
        ("def (", "SyntaxError"),
        ("raise ValueError('postgres://user:hunter2@host')", "ValueError."),
        ("raise SystemExit(3)", "SystemExit"),
    ],
)
def test_an_import_that_fails_is_a_reason_without_what_it_quotes(install, code, reason):
    install("acme-sis", {"whole": "Whole"}, code)
    found = reasons(load_providers())
    assert reason in found["whole"]
    assert "hunter2" not in found["whole"]


def test_a_plugin_can_not_take_the_name_of_ours(install):
    install("acme-sis", {"powerschool": "Whole"}, PLUGIN)
    registry = load_providers()
    assert registry.providers["powerschool"].__module__ == "sis_pipeline.providers.powerschool"
    assert "taken by more than one installed package (acme-sis, sis-pipeline)" in reasons(registry)["powerschool"]


def test_of_two_plugins_with_one_name_neither_is_trusted(install):
    install("acme-sis", {"whole": "Whole"}, PLUGIN)
    install("bcme-sis", {"whole": "Whole"}, PLUGIN)
    registry = load_providers()
    assert "whole" not in registry.providers
    assert [failure.name for failure in registry.failures].count("whole") == 2


def test_unknown_providers_are_answered_with_those_there_are():
    with pytest.raises(ConfigError, match=r"no provider powerscool; installed are .*powerschool"):
        make("powerscool", {})


def test_bad_settings_are_named_without_their_values(install):
    install("acme-sis", {"whole": "Whole"}, PLUGIN)
    with pytest.raises(ConfigError) as refusal:
        make("whole", {"page_size": "hunter2", "pathh": "hunter3"})
    said = str(refusal.value)
    assert all(word in said for word in ("page_size", "pathh", "path"))
    assert "hunter" not in said
    assert refusal.value.__cause__ is None
    with pytest.raises(ConfigError, match="there is no such folder"):
        make("whole", {"path": "nowhere"})


def test_a_custom_field_must_be_a_student_column(install):
    install("acme-sis", {"whole": "Whole"}, PLUGIN)
    assert make("whole", {"path": "x", "custom_fields": {"email": "extra.mail"}}).settings.custom_fields
    with pytest.raises(ConfigError, match="students have no column shoe_size"):
        make("whole", {"path": "x", "custom_fields": {"shoe_size": "extra.shoe"}})


def test_loading_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from sis_pipeline.providers.registry import load_providers\n"
        "load_providers(); heavy = {'dagster', 'pandera', 'polars', 'sqlalchemy', 'pytest'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
