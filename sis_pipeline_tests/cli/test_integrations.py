"""Adding and keeping integrations: what is accepted, what is refused in words, and that no secret gets out."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from sis_pipeline.cli.integrations import parse_options
from sis_pipeline.cli.output import ExitCode, RefusalError
from sis_pipeline.connect.vault import Keys, Vault
from sis_pipeline.settings import Settings

CANARY = "canary-secret-0042"
OPTIONS = (
    "--provider", "infinite_campus", "--district", "lincoln", "--base-url", "https://lincoln.example.org/campus",
    "--token-url", "https://lincoln.example.org/campus/oauth2/token", "--client-id", "sis",
)  # fmt: skip


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("LINCOLN_SECRET", CANARY)
    return ("--client-secret-env", "LINCOLN_SECRET")


@pytest.fixture
def added(sis, home, secret):
    said = sis("integration", "add", "lincoln-ic", *OPTIONS, "--option", "app_name=lincoln", *secret)
    assert said.code == 0, said.err
    return said


def test_an_integration_is_added_with_its_secret_sealed(added, sis, home, database):
    assert "sis integration test lincoln-ic" in added.out
    assert "Dagster has its partitions after" in added.out
    assert Vault(database, Keys.from_settings(Settings())).get("lincoln-ic", "client_secret") == CANARY
    shown = sis("integration", "show", "lincoln-ic", "--json").json
    assert shown["secret_stored"] is True
    assert shown["integration"]["settings"]["base_url"] == "https://lincoln.example.org/campus"
    listed = sis("integration", "list", "--json").json["integrations"]
    assert [(it["key"], it["provider"], it["district"], it["status"]) for it in listed] == [
        ("lincoln-ic", "infinite_campus", "lincoln", "healthy")
    ]


def test_no_output_and_no_row_holds_the_secret(added, sis, database):
    said = [added, sis("integration", "show", "lincoln-ic"), sis("integration", "list"), sis("doctor")]
    assert all(CANARY not in it.out + it.err for it in said)
    with database.connect() as connection:
        for table in ("integrations", "audit_log", "oauth_tokens"):
            assert CANARY not in str(connection.execute(text(f"select * from {table}")).all())


def test_replacing_keeps_the_secret_unless_a_new_one_is_given(added, sis, database):
    refused = sis("integration", "add", "lincoln-ic", *OPTIONS, "--option", "app_name=other")
    assert refused.code == ExitCode.USAGE
    assert "--replace" in refused.err
    said = sis(
        "integration",
        "add",
        "lincoln-ic",
        *OPTIONS,
        "--option",
        "app_name=other",
        "--priority",
        5,
        "--replace",
        "--json",
    )
    assert said.code == 0, said.err
    assert said.json["replaced"] is True
    assert said.json["integration"]["priority"] == 5
    assert Vault(database, Keys.from_settings(Settings())).get("lincoln-ic", "client_secret") == CANARY


def test_organisations_of_other_districts(sis, home, secret):
    orgs = ("--org", "4711=lincoln", "--org", "4712=riverside")
    said = sis("integration", "add", "shared", *OPTIONS, "--option", "app_name=x", *orgs, *secret, "--json")
    assert said.json["integration"]["organisations"] == {"4711": "lincoln", "4712": "riverside"}


@pytest.mark.parametrize("key", ["Lincoln", "a b", "../etc", "a|b", "-a", "x" * 64, ""])
def test_keys_are_slugs(sis, home, secret, key):
    said = (
        sis("integration", "add", "--", key)
        if key.startswith("-")
        else sis("integration", "add", key, *OPTIONS, *secret)
    )
    assert said.code in {ExitCode.CONFIG, ExitCode.USAGE}
    assert sis("integration", "list", "--json").json["integrations"] == []


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        (("--option", "page_size=many"), ExitCode.CONFIG, "page_size"),
        (("--option", "no_such_setting=1"), ExitCode.CONFIG, "no_such_setting"),
        (("--option", f"client_secret={CANARY}"), ExitCode.USAGE, "secrets are never arguments"),
        (("--option", "nonsense"), ExitCode.USAGE, "K=V"),
        (("--option", 'extra_headers={"a"'), ExitCode.USAGE, "JSON"),
        (("--org", "4711"), ExitCode.USAGE, "ORG=DISTRICT"),
        (("--client-auth", "digest"), ExitCode.USAGE, "client-auth"),
        (("--priority", "-1"), ExitCode.USAGE, "priority"),
        (("--client-secret-env", CANARY), ExitCode.CONFIG, "not set or empty"),
        (("--district", "../x"), ExitCode.CONFIG, "district"),
    ],
)
@pytest.mark.usefixtures("home")
def test_wrong_input_is_refused_and_nothing_is_kept(sis, secret, wrong, code, words):
    said = sis("integration", "add", "lincoln-ic", *OPTIONS, "--option", "app_name=x", *secret, *wrong)
    assert said.code == code
    assert words in said.err
    assert "Traceback" not in said.err
    if code == ExitCode.CONFIG or "secret" in words:
        assert CANARY not in said.out + said.err
    assert sis("integration", "list", "--json").json["integrations"] == []


@pytest.mark.parametrize(
    ("wrong", "setting"),
    [
        (("--base-url", f"https://sis:{CANARY}@lincoln.example.org/campus"), "base_url"),
        (("--base-url", f"https://lincoln.example.org/campus?key={CANARY}"), "base_url"),
        (("--base-url", "http://lincoln.example.org/campus"), "base_url"),
        (("--option", f"base_url=https://sis:{CANARY}@lincoln.example.org/campus"), "base_url"),
        (("--token-url", f"https://lincoln.example.org/token?appName=x&client_secret={CANARY}"), "token_url"),
        (("--token-url", f"https://lincoln.example.org/token#{CANARY}"), "token_url"),
        (("--option", f"extra_headers.Authorization=Bearer {CANARY}"), "extra_headers"),
        (("--option", f'extra_headers={{"X-Api-Key": "{CANARY}"}}'), "extra_headers"),
    ],
)
@pytest.mark.usefixtures("home")
def test_credentials_in_addresses_and_headers_are_refused_and_never_stored(sis, database, secret, wrong, setting):
    said = sis("integration", "add", "lincoln-ic", *OPTIONS, "--option", "app_name=x", *secret, *wrong, "--json")
    assert said.code == ExitCode.CONFIG
    assert f"{setting}: " in said.json["error"]["message"]
    assert CANARY not in said.out + said.err
    assert sis("integration", "list", "--json").json["integrations"] == []
    with database.connect() as connection:
        for table in ("integrations", "audit_log", "oauth_tokens"):
            assert CANARY not in str(connection.execute(text(f"select * from {table}")).all())


def test_a_replacement_with_credentials_in_its_address_changes_nothing(added, sis):
    before = sis("integration", "show", "lincoln-ic", "--json").json["integration"]
    wrong = ("--base-url", f"https://sis:{CANARY}@lincoln.example.org/campus", "--replace")
    assert sis("integration", "add", "lincoln-ic", *OPTIONS, "--option", "app_name=x", *wrong).code == ExitCode.CONFIG
    assert sis("integration", "show", "lincoln-ic", "--json").json["integration"] == before


def test_an_unknown_provider_names_the_installed_ones(sis, home):
    said = sis("integration", "add", "x", "--provider", "powerschol", "--district", "d")
    assert said.code == ExitCode.CONFIG
    assert "oneroster_csv" in said.err


def test_a_missing_setting_is_named(sis, home):
    said = sis("integration", "add", "x", "--provider", "infinite_campus", "--district", "d")
    assert said.code == ExitCode.CONFIG
    assert "base_url" in said.err
    assert "client_id" in said.err


def test_without_a_terminal_a_missing_secret_is_refused(sis, home):
    said = sis("integration", "add", "x", *OPTIONS, "--option", "app_name=x")
    assert said.code == ExitCode.USAGE
    assert "--client-secret-env" in said.err


def test_without_an_encryption_key_nothing_is_kept(sis, home, secret, monkeypatch):
    monkeypatch.delenv("SIS_ENCRYPTION_KEYS")
    said = sis("integration", "add", "x", *OPTIONS, "--option", "app_name=x", *secret)
    assert said.code == ExitCode.CONFIG
    assert "sis keys create" in said.err
    assert sis("integration", "list", "--json").json["integrations"] == []


def test_files_need_no_secret(sis, home, tmp_path):
    said = sis(
        "integration", "add", "csv", "--provider", "oneroster_csv", "--district", "d", "--option", f"path={tmp_path}"
    )
    assert said.code == 0, said.err


def test_pause_resume_remove(added, sis, database):
    assert sis("integration", "pause", "lincoln-ic").code == 0
    assert sis("integration", "list", "--json").json["integrations"][0]["status"] == "paused"
    assert sis("integration", "resume", "lincoln-ic").code == 0
    assert sis("integration", "remove", "lincoln-ic").code == ExitCode.USAGE, "asks, and there is nobody to answer"
    assert sis("integration", "remove", "lincoln-ic", "--yes").code == ExitCode.CONFIG, "only a paused one"
    sis("integration", "pause", "lincoln-ic")
    assert sis("integration", "remove", "lincoln-ic", "--yes").code == 0
    assert sis("integration", "show", "lincoln-ic").code == ExitCode.CONFIG
    with database.connect() as connection:
        assert connection.scalar(text("select count(*) from oauth_tokens")) == 0


@pytest.mark.parametrize("command", ["show", "test", "pause", "resume"])
def test_an_unknown_integration_is_named_with_what_was_meant(added, sis, command):
    said = sis("integration", command, "lincoln-id")
    assert said.code == ExitCode.CONFIG
    assert "lincoln-ic" in said.err


def test_options_are_read_as_text_json_or_one_entry_of_a_mapping():
    assert parse_options(["a=1", "b=[1, 2]", 'c={"x": "y"}', "d.email=u.mail", "d.phone=u.tel", "e=x=y"]) == {
        "a": "1", "b": [1, 2], "c": {"x": "y"}, "d": {"email": "u.mail", "phone": "u.tel"}, "e": "x=y",
    }  # fmt: skip
    with pytest.raises(RefusalError):
        parse_options(["=1"])
