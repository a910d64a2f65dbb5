"""`sis oauth authorize` over real sockets: the sandbox's authorization server, a browser that follows, loopback, the vault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from sqlalchemy import Engine, text

from sis_pipeline.cli.output import ExitCode
from sis_pipeline.cli.redirect import STRANGE, TAKEN, Redirect
from sis_pipeline.connect.vault import Vault
from sis_pipeline.sandbox.browser import grant_access, open_page
from sis_pipeline.sandbox.server import Handle, SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.cli.conftest import Said, Sis
from sis_pipeline_tests.connect.servers import http_answer, raw_server, writes

ON = {"grant": "authorization_code", "refresh_mode": "strict", "client_auth": "basic"}
SIS = [sys.executable, "-c", "from sis_pipeline.cli.main import main; main()"]
EVIL = "https://login.evil.example"


@pytest.fixture(scope="module")
def world() -> World:
    options = {
        "or12": {},
        "public": {"client_auth": "none"},
        "declines": {"consent": "declined"},
        "mixed-up": {"response_iss": EVIL},
        "silent": {"response_iss": False},
        "bare": {"metadata": "none"},
    }
    return World(
        seed=7, systems=tuple(System(name, "oneroster_1.2", 10, {**ON, **more}) for name, more in options.items())
    )


@pytest.fixture
def sandbox(world: World) -> Iterator[SandboxServer]:
    with SandboxServer(world, enforce_limits=False) as running:
        yield running


@pytest.fixture
def add(sis: Sis, home: Path, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Handle]:
    """Add an integration of a system by its ready settings, some of them left out."""

    def added(name: str = "or12", *, without: tuple[str, ...] = (), **changed: str) -> Handle:
        handle = sandbox.system(name)
        monkeypatch.setenv("SANDBOX_SECRET", handle.client_secret)
        settings = {key: value for key, value in (handle.settings | changed).items() if key not in without}
        flags = [flag for key in ("base_url", "token_url", "client_id", "client_auth")
                 for flag in (f"--{key.replace('_', '-')}", settings.pop(key))]  # fmt: skip
        options = [flag for key, value in settings.items() for flag in ("--option", f"{key}={value}")]
        secret = () if handle.settings["client_auth"] == "none" else ("--client-secret-env", "SANDBOX_SECRET")
        said = sis(
            "integration", "add", name, "--provider", "oneroster", "--district", "lincoln", *flags, *options, *secret
        )
        assert said.code == 0, said.err
        assert f"Next: sis oauth authorize {name}" in said.out
        return handle

    return added


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], object]], None]:
    """Let the person's browser be a function of the authorization URL."""

    def use(behaviour: Callable[[str], object]) -> None:
        monkeypatch.setattr(webbrowser, "open", lambda url: behaviour(url) or True)

    return use


Attempt = Callable[..., tuple[Said, Handle]]


@pytest.fixture
def attempt(add: Callable[..., Handle], sis: Sis, browser: Callable[..., None]) -> Attempt:
    """Add an integration and have a person, or an attacker, answer its authorization."""

    def run(name: str = "or12", visit: Callable[[str], object] = grant_access) -> tuple[Said, Handle]:
        handle = add(name)
        browser(visit)
        return sis("oauth", "authorize", name, "--port", 0), handle

    return run


def kept(database: Engine, key: str = "or12") -> dict[str, str]:
    """Kind -> status of what is stored beside the client's secret, placeholders left out."""
    query = (
        "select kind, status from sis.oauth_tokens where integration = :key and kind <> 'client_secret' and version > 0"
    )
    with database.connect() as connection:
        return {row.kind: row.status for row in connection.execute(text(query), {"key": key})}


def vault(database: Engine) -> Vault:
    from sis_pipeline.cli.installation import Installation

    return Installation().vault


def code_in(location: str) -> str:
    return parse_qs(urlsplit(location).query)["code"][0]


def clean(said: Said, *secrets: str) -> bool:
    return not any(secret in said.out + said.err for secret in secrets)


# --- it works --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["or12", "public", "silent", "bare"])
def test_a_person_grants_access(
    name: str, add: Callable[..., Handle], sis: Sis, browser: Callable[..., None], database: Engine
) -> None:
    handle, codes = add(name), []

    def visit(url: str) -> None:
        location = open_page(url)
        codes.append(code_in(location))
        assert TAKEN in requests.get(location, timeout=30).text

    browser(visit)
    said = sis("oauth", "authorize", name, "--port", 0, "--json")
    assert said.code == 0, said.err
    assert said.json["integration"] == name
    assert said.json["refresh_token"] is True
    assert "roster-core" in said.json["scope"]
    assert 3500 < said.json["expires_in_seconds"] <= 3600
    stats = handle.stats()["oauth"]
    assert (stats["grants"], stats["live_families"]) == ({"authorization_code": 1}, 1)
    assert kept(database, name) == {"access": "active", "refresh": "active"}
    access, refresh = (vault(database).get(name, kind) for kind in ("access", "refresh"))
    assert handle.api.tokens.check(access) is not None
    assert clean(said, *codes, access or "", refresh or "", handle.client_secret)
    with database.connect() as connection:
        actions = connection.execute(
            text("select action, details::text from sis.audit_log where subject = :key"), {"key": name}
        ).all()
    assert [row.action for row in actions].count("token.authorize") == 1
    assert not any(secret in str(actions) for secret in (*codes, access or "-", refresh or "-"))


def test_endpoints_come_from_the_issuers_metadata(
    add: Callable[..., Handle], sis: Sis, browser: Callable[..., None], database: Engine
) -> None:
    add(without=("authorize_url", "revoke_url"))
    browser(grant_access)
    said = sis("oauth", "authorize", "or12", "--port", 0)
    assert said.code == 0, said.err
    assert "Integration or12 is granted access" in said.out
    assert "It is renewed by itself" in said.out
    assert kept(database) == {"access": "active", "refresh": "active"}


def test_granting_again_replaces_the_tokens(
    add: Callable[..., Handle], sis: Sis, browser: Callable[..., None], database: Engine
) -> None:
    add()
    browser(grant_access)
    assert sis("oauth", "authorize", "or12", "--port", 0).code == 0
    first = vault(database).get("or12", "refresh")
    assert sis("oauth", "authorize", "or12", "--port", 0).code == 0
    assert vault(database).get("or12", "refresh") not in {None, first}
    tested = sis("integration", "test", "or12")
    assert tested.code == 0, tested.err


def test_a_real_process_and_a_real_browser(add: Callable[..., Handle], database: Engine) -> None:
    handle = add()
    environment = {**os.environ, "BROWSER": f"{sys.executable} -m sis_pipeline.sandbox.browser %s"}
    done = subprocess.run(
        [*SIS, "oauth", "authorize", "or12", "--port", "0", "--json"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["granted"] is True
    assert handle.stats()["oauth"]["grants"] == {"authorization_code": 1}
    assert kept(database) == {"access": "active", "refresh": "active"}


class Pasting:
    """A `sis oauth authorize --paste` process that has shown its address."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [*SIS, "oauth", "authorize", "or12", "--paste", "--port", "8722"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        lines = iter(self.process.stderr.readline, "")
        self.url = next(line.strip() for line in lines if line.strip().startswith("http"))

    def paste(self, address: str) -> Said:
        out, err = self.process.communicate(address + "\n", timeout=60)
        return Said(self.process.returncode, out, err)


def test_the_address_can_be_pasted_and_counts_once(add: Callable[..., Handle], database: Engine) -> None:
    handle = add()
    first, second = Pasting(), Pasting()
    location = open_page(first.url)
    assert location.startswith("http://127.0.0.1:8722/callback?")
    said = first.paste(location)
    assert said.code == 0, said.err
    assert clean(said, code_in(location))
    assert kept(database) == {"access": "active", "refresh": "active"}
    again = second.paste(location)
    assert again.code == ExitCode.FAILED
    assert "belongs to another request, or to none (state)" in again.err
    assert clean(again, code_in(location))
    assert handle.stats()["oauth"]["grants"] == {"authorization_code": 1}
    assert handle.stats()["oauth"]["codes_reused"] == 0


# --- it is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("declines", ExitCode.CONFIG, "access was declined"),
        ("mixed-up", ExitCode.FAILED, "given by another authorization server (iss)"),
    ],
)
def test_answers_that_bring_nothing(name: str, code: ExitCode, words: str, attempt: Attempt, database: Engine) -> None:
    said, handle = attempt(name)
    assert said.code == code, said.err
    assert words in said.err
    assert "evil" not in said.err
    assert handle.stats()["oauth"]["authorizations"] == 1
    assert handle.stats()["oauth"]["grants"] == {}, "no code was taken to a token endpoint"
    assert kept(database, name) == {}


def test_a_missing_iss_is_refused_where_it_was_promised(attempt: Attempt, database: Engine) -> None:
    said, handle = attempt(visit=lambda url: requests.get(open_page(url).replace("&iss=", "&was="), timeout=30))
    assert (said.code, "does not say who gave it" in said.err) == (ExitCode.FAILED, True)
    assert handle.stats()["oauth"]["grants"] == {}
    assert kept(database) == {}


def test_strangers_are_ignored_until_the_answer_comes(attempt: Attempt) -> None:
    def visit(url: str) -> None:
        location = open_page(url)
        callback = location.partition("?")[0]
        for query in ("", "?code=x", "?code=x&state=guessed", "?error=access_denied&state=%C3%A9"):
            strange = requests.get(callback + query, timeout=30)
            assert (strange.status_code, STRANGE in strange.text) == (400, True)
        assert requests.get(callback.replace("/callback", "/favicon.ico"), timeout=30).status_code == 404
        assert requests.post(location, timeout=30).status_code == 501
        answer = requests.get(location, timeout=30)
        assert answer.headers["Cache-Control"] == "no-store"
        assert code_in(location) not in answer.text
        assert requests.get(location, timeout=30).status_code == 400, "the answer counts once"

    said, _ = attempt(visit=visit)
    assert said.code == 0, said.err


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "token_answer"} | {"answer": "empty"}, "without an access token"),
        ({"kind": "token_answer"} | {"answer": "html"}, "without an access token"),
        ({"kind": "token_answer"} | {"answer": "no_error"}, "not accepted"),
        ({"kind": "status"} | {"status": 503}, "answered 503"),
        ({"kind": "set_key"} | {"key": "refresh_token", "value": ["R"]}, "a refresh token that is none"),
        ({"kind": "lost_answer"} | {}, "failed"),
    ],
)
def test_an_exchange_that_fails_stores_nothing(
    fault: dict[str, Any], words: str, attempt: Attempt, sandbox: SandboxServer, database: Engine
) -> None:
    happened = sandbox.faults.add(system="or12", path="/oauth/token", **fault)
    said, _ = attempt()
    assert said.code in {ExitCode.FAILED, ExitCode.CONFIG}
    assert words in said.err
    assert happened.fired == 1
    assert kept(database) == {}


def test_a_redirect_at_the_token_endpoint_takes_nothing_along(
    attempt: Attempt, sandbox: SandboxServer, database: Engine
) -> None:
    with raw_server(writes(http_answer(b'{"access_token": "stolen"}'))) as other:
        location = f"{other.url}/token"
        away = sandbox.faults.add("redirect", system="or12", path="/oauth/token", status=307, location=location)
        said, _ = attempt()
        assert said.code == ExitCode.FAILED, said.err
        assert (away.fired, other.requests) == (1, [])
    assert kept(database) == {}


def test_a_code_of_another_request_does_not_pass_pkce(attempt: Attempt, database: Engine) -> None:
    def inject(url: str) -> None:
        """An attacker's own code in the victim's answer: everything fits but the verifier."""
        theirs = code_in(open_page(url.replace("code_challenge=", "code_challenge=X")))
        location = open_page(url)
        requests.get(location.replace(code_in(location), theirs), timeout=30)

    said, handle = attempt(visit=inject)
    assert said.code == ExitCode.CONFIG
    assert "invalid_grant" in said.err
    assert handle.stats()["oauth"]["invalid_grant"] == 1
    assert kept(database) == {}


def test_what_is_wrong_is_said_before_anybody_is_sent_anywhere(
    add: Callable[..., Handle], sis: Sis, browser: Callable[..., None], sandbox: SandboxServer, database: Engine
) -> None:
    def nowhere(_url: str) -> None:
        raise AssertionError("a person was sent away")

    browser(nowhere)
    handle = add()
    wrong = sis("oauth", "authorize", "or12", "--paste", "--port", 0)
    assert (wrong.code, "--paste needs the port" in wrong.err) == (ExitCode.USAGE, True)
    with Redirect(0) as taken:
        said = sis("oauth", "authorize", "or12", "--port", urlsplit(taken.uri).port)
    assert (said.code, "can't be listened on" in said.err) == (ExitCode.USAGE, True)
    with database.begin() as connection:
        connection.execute(text("delete from sis.oauth_tokens where integration = 'or12'"))
    assert "has no client secret" in sis("oauth", "authorize", "or12").err
    assert sis("oauth", "authorize", "nobody").code == ExitCode.CONFIG
    assert handle.stats()["oauth"]["authorizations"] == 0


def test_an_integration_without_a_person(sis: Sis, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_SECRET", "s3cret")
    options = ("--base-url", "https://sis.example", "--client-id", "c", "--client-secret-env", "SANDBOX_SECRET")
    assert sis("integration", "add", "ps", "--provider", "powerschool", "--district", "lincoln", *options).code == 0
    said = sis("oauth", "authorize", "ps")
    assert (said.code, "without a person" in said.err) == (ExitCode.CONFIG, True)


def test_waiting_ends_in_words() -> None:
    with Redirect(0) as redirect:
        redirect.listen(lambda _answer: True)
        threading.Timer(0.0, requests.get, [redirect.uri.replace("/callback", "/other")]).start()
        with pytest.raises(Exception, match="Nobody came back"):
            redirect.wait(0.2)
