"""The sandbox's authorization server over HTTP: codes, PKCE, the three refresh modes, revocation, consent, faults."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import requests
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from sis_pipeline.sandbox.authorization import AuthorizationServer
from sis_pipeline.sandbox.browser import open_page
from sis_pipeline.sandbox.oauth import TokenStore
from sis_pipeline.sandbox.server import Handle, SandboxServer
from sis_pipeline.sandbox.systems import DIALECTS, System
from sis_pipeline.sandbox.world import World

REDIRECT = "http://127.0.0.1:8722/callback"
VERIFIER = "v" * 64
DIALECT_NAMES = [name for name in DIALECTS if name != "oneroster_csv"]
MODES = ("none", "grace", "strict")
ON = {"grant": "authorization_code"}


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxServer]:
    """A system of every dialect, one of OneRoster in every mode, and odd ones."""
    systems = [System(name.replace("_", "-").replace(".", ""), name, 10, ON) for name in DIALECT_NAMES]
    systems += [System(mode, "oneroster_1.2", 10, {**ON, "refresh_mode": mode}) for mode in MODES]
    systems += [
        System("public", "oneroster_1.2", 10, {**ON, "client_auth": "none", "metadata": "openid"}),
        System("declines", "oneroster_1.2", 10, {**ON, "consent": "declined"}),
        System("plain", "oneroster_1.2", 10),
    ]
    with SandboxServer(World(seed=7, systems=tuple(systems)), enforce_limits=False) as running:
        yield running


@pytest.fixture(autouse=True)
def calm(server: SandboxServer) -> Iterator[None]:
    yield
    server.faults.clear()


def authorize_url(handle: Handle, **changed: str | None) -> str:
    challenge = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
    asked = {
        "response_type": "code",
        "client_id": handle.client_id,
        "redirect_uri": REDIRECT,
        "state": "a state",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        **changed,
    }
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    return f"{handle.authorization.authorize_url}?{query}"


def answered(handle: Handle, **changed: str | None) -> dict[str, str]:
    location = open_page(authorize_url(handle, **changed))
    assert location.startswith(f"{REDIRECT}?")
    return dict(parse_qsl(urlsplit(location).query))


def post(handle: Handle, url: str, form: dict[str, str]) -> requests.Response:
    how = handle.settings["client_auth"]
    client = {"client_id": handle.client_id} if how == "none" else {}
    if how == "post":
        client = {"client_id": handle.client_id, "client_secret": handle.client_secret}
    pair = (requests.utils.quote(handle.client_id, ""), requests.utils.quote(handle.client_secret, ""))  # type: ignore[attr-defined]
    return requests.post(
        url, data=form | client, auth=pair if how == "basic" else None, allow_redirects=False, timeout=30
    )


def exchange(handle: Handle, code: str, /, **changed: str) -> requests.Response:
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT, "code_verifier": VERIFIER}
    return post(handle, handle.token_url, form | changed)


def refresh(handle: Handle, refresh_token: str, **more: str) -> requests.Response:
    return post(handle, handle.token_url, {"grant_type": "refresh_token", "refresh_token": refresh_token, **more})


def works(handle: Handle, access_token: str) -> bool:
    return handle.api.tokens.check(access_token) is not None


@pytest.mark.parametrize("name", [name.replace("_", "-").replace(".", "") for name in DIALECT_NAMES])
def test_a_person_grants_access_in_every_dialect(server: SandboxServer, name: str) -> None:
    handle = server.system(name)
    answer = answered(handle)
    assert answer.keys() == {"code", "iss", "state"}
    assert (answer["iss"], answer["state"]) == (handle.authorization.issuer, "a state")
    token = exchange(handle, answer["code"]).json()
    assert works(handle, token["access_token"])
    assert refresh(handle, token["refresh_token"]).status_code == 200
    stats = handle.stats()["oauth"]
    assert stats["grants"] == {"authorization_code": 1, "refresh_token": 1}
    assert (stats["authorizations"], stats["families"], stats["live_families"]) == (1, 1, 1)


def test_settings_and_metadata_say_the_same(server: SandboxServer) -> None:
    handle = server.system("strict")
    url = f"{server.url}/.well-known/oauth-authorization-server/strict"
    document = requests.get(url, timeout=30).json()
    settings = handle.settings
    assert (settings["grant"], settings["client_auth"]) == ("authorization_code", "basic")
    assert document["issuer"] == settings["issuer"] == f"{server.url}/strict"
    assert document["authorization_endpoint"] == settings["authorize_url"]
    assert document["revocation_endpoint"] == settings["revoke_url"]
    assert document["token_endpoint"] == settings["token_url"]
    assert document["authorization_response_iss_parameter_supported"] is True
    public = f"{server.url}/public/.well-known/openid-configuration"
    assert requests.get(public, timeout=30).json()["issuer"] == f"{server.url}/public"
    for missing in ("/.well-known/oauth-authorization-server/public", "/.well-known/oauth-authorization-server/plain"):
        assert requests.get(server.url + missing, timeout=30).status_code == 404


def test_a_system_without_the_option_is_as_before(server: SandboxServer) -> None:
    plain = server.system("plain")
    assert plain.settings.keys() == {"base_url", "token_url", "client_id", "client_auth", "version"}
    assert "oauth" not in plain.stats()
    with pytest.raises(ValueError, match="no authorization server"):
        plain.revoke_grant()
    assert requests.get(f"{server.url}/plain/oauth/authorize", timeout=30).status_code == 404
    assert post(plain, plain.token_url, {"grant_type": "client_credentials"}).status_code == 200


def test_nothing_but_a_grant_gets_a_token(server: SandboxServer) -> None:
    handle = server.system("strict")
    assert post(handle, handle.token_url, {"grant_type": "client_credentials"}).json()["error"] == "unauthorized_client"
    assert post(handle, handle.token_url, {"grant_type": "password"}).json()["error"] == "unsupported_grant_type"
    answer = requests.post(handle.token_url, data={"grant_type": "refresh_token", "client_id": "x"}, timeout=30)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "everything"}, "invalid_scope"),
    ],
)
def test_wrong_requests_come_back_with_an_error(
    server: SandboxServer, changed: dict[str, str | None], error: str
) -> None:
    answer = answered(server.system("strict"), **changed)
    assert (answer["error"], answer["state"]) == (error, "a state")
    assert "code" not in answer


@pytest.mark.parametrize(
    "changed", [{"client_id": "x"}, {"redirect_uri": "https://evil.example/"}, {"redirect_uri": None}]
)
def test_nobody_is_sent_to_an_unknown_address(server: SandboxServer, changed: dict[str, str | None]) -> None:
    answer = requests.get(authorize_url(server.system("strict"), **changed), allow_redirects=False, timeout=30)
    assert (answer.status_code, answer.headers.get("Location")) == (400, None)


def test_a_person_can_decline(server: SandboxServer) -> None:
    handle = server.system("declines")
    assert answered(handle)["error"] == "access_denied"
    assert handle.stats()["oauth"]["declined"] == 1


@pytest.mark.parametrize(
    "changed", [{"code_verifier": "w" * 64}, {"redirect_uri": REDIRECT + "/"}, {"code": "unknown"}]
)
def test_a_code_is_bound_to_its_request(server: SandboxServer, changed: dict[str, str]) -> None:
    handle = server.system("strict")
    before = handle.stats()["oauth"]["invalid_grant"]
    answer = exchange(handle, answered(handle)["code"], **changed)
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid_grant"})
    assert handle.stats()["oauth"]["invalid_grant"] == before + 1


def test_a_code_that_is_used_twice_ends_what_came_of_it(server: SandboxServer) -> None:
    handle = server.system("grace")
    code = answered(handle)["code"]
    token = exchange(handle, code).json()
    assert exchange(handle, code).json() == {"error": "invalid_grant"}
    assert not works(handle, token["access_token"])
    assert refresh(handle, token["refresh_token"]).json() == {"error": "invalid_grant"}
    assert handle.stats()["oauth"]["codes_reused"] == 1


def test_without_rotation_the_refresh_token_stays(server: SandboxServer) -> None:
    handle = server.system("none")
    handle.revoke_grant()
    token = handle.authorization.grant()
    for _ in range(3):
        renewed = refresh(handle, token["refresh_token"]).json()
        assert "refresh_token" not in renewed
        assert works(handle, renewed["access_token"])
    assert handle.stats()["oauth"]["live_families"] == 1


def test_within_the_grace_period_the_old_one_works_too(server: SandboxServer) -> None:
    handle = server.system("grace")
    first = handle.authorization.grant()["refresh_token"]
    renewed = [refresh(handle, first).json()["refresh_token"] for _ in range(5)]
    assert len({first, *renewed}) == 6
    assert all(refresh(handle, value).status_code == 200 for value in renewed)
    assert handle.stats()["oauth"]["reuse_detected"] == 0


def test_strictly_a_second_use_ends_the_whole_family(server: SandboxServer) -> None:
    handle = server.system("strict")
    before = handle.stats()["oauth"]
    first = handle.authorization.grant()
    other = handle.authorization.grant()
    second = refresh(handle, first["refresh_token"]).json()
    assert second["refresh_token"] != first["refresh_token"]
    assert refresh(handle, first["refresh_token"]).json() == {"error": "invalid_grant"}
    assert refresh(handle, second["refresh_token"]).json() == {"error": "invalid_grant"}
    assert not works(handle, first["access_token"])
    assert not works(handle, second["access_token"])
    assert works(handle, other["access_token"]), "another consent is another family"
    now = handle.stats()["oauth"]
    counted = {name: now[name] - before[name] for name in ("reuse_detected", "families_revoked", "invalid_grant")}
    assert counted == {"reuse_detected": 1, "families_revoked": 1, "invalid_grant": 2}


@pytest.mark.parametrize(("mode", "good"), [("none", 12), ("grace", 12), ("strict", 1)])
def test_many_at_once(server: SandboxServer, mode: str, good: int) -> None:
    handle = server.system(mode)
    handle.revoke_grant()
    value = handle.authorization.grant()["refresh_token"]
    with ThreadPoolExecutor(12) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda _: refresh(handle, value), range(12))]
    assert statuses.count(200) == good
    assert handle.stats()["oauth"]["live_families"] == (0 if mode == "strict" else 1)


def test_the_scope_does_not_grow_at_a_refresh(server: SandboxServer) -> None:
    handle = server.system("none")
    token = handle.authorization.grant()
    assert refresh(handle, token["refresh_token"], scope=token["scope"] + " more").json() == {"error": "invalid_scope"}


def test_revoking_ends_the_family_and_is_200_for_anything(server: SandboxServer) -> None:
    handle = server.system("strict")
    token = handle.authorization.grant()
    url = handle.settings["revoke_url"]
    assert post(handle, url, {"token": token["access_token"]}).status_code == 200
    assert not works(handle, token["access_token"])
    renewed = refresh(handle, token["refresh_token"]).json()
    for value in (renewed["refresh_token"], renewed["refresh_token"], "unknown"):
        assert post(handle, url, {"token": value, "token_type_hint": "refresh_token"}).status_code == 200
    assert refresh(handle, renewed["refresh_token"]).json() == {"error": "invalid_grant"}
    assert not works(handle, renewed["access_token"])
    assert requests.post(url, data={"token": "x"}, timeout=30).status_code == 401
    assert handle.stats()["oauth"]["revocations"] == 4


def test_the_revocation_endpoint_can_fail(server: SandboxServer) -> None:
    handle = server.system("strict")
    token = handle.authorization.grant()
    fault = server.faults.add("status", system="strict", path="/oauth/revoke", status=503, headers={"Retry-After": "7"})
    answer = post(handle, handle.settings["revoke_url"], {"token": token["refresh_token"]})
    assert (answer.status_code, answer.headers["Retry-After"], fault.fired) == (503, "7", 1)
    assert works(handle, token["access_token"])


def test_a_withdrawn_consent_ends_everything(server: SandboxServer) -> None:
    handle = server.system("public")
    handle.revoke_grant()
    tokens = [handle.authorization.grant() for _ in range(3)]
    answer = requests.delete(f"{server.url}/_sandbox/grants", json={"system": "public"}, timeout=30)
    assert answer.json() == {"families_revoked": 3}
    assert not any(works(handle, token["access_token"]) for token in tokens)
    assert refresh(handle, tokens[0]["refresh_token"]).json() == {"error": "invalid_grant"}
    shown = requests.get(f"{server.url}/_sandbox/grants", timeout=30).json()
    assert shown["public"] == handle.stats()["oauth"]
    assert shown["public"]["live_families"] == 0


def test_a_public_client_has_no_secret(server: SandboxServer) -> None:
    handle = server.system("public")
    assert exchange(handle, answered(handle)["code"]).status_code == 200
    form = {"grant_type": "refresh_token", "client_id": handle.client_id, "client_secret": handle.client_secret}
    assert requests.post(handle.token_url, data=form, timeout=30).json() == {"error": "invalid_client"}


def test_an_answer_that_is_lost_has_replaced_the_refresh_token(server: SandboxServer) -> None:
    handle = server.system("strict")
    token = handle.authorization.grant()
    fault = server.faults.add("lost_answer", system="strict", path="/oauth/token")
    with pytest.raises(requests.exceptions.ConnectionError):
        refresh(handle, token["refresh_token"])
    assert fault.fired == 1
    assert refresh(handle, token["refresh_token"]).json() == {"error": "invalid_grant"}


def test_the_new_refresh_token_can_be_left_out(server: SandboxServer) -> None:
    handle = server.system("grace")
    token = handle.authorization.grant()
    fault = server.faults.add("missing_key", system="grace", path="/oauth/token", key="refresh_token")
    assert "refresh_token" not in refresh(handle, token["refresh_token"]).json()
    assert fault.fired == 1


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="no refresh_mode"):
        alone(refresh_mode="sometimes")


# --- time, with a clock of our own -----------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def alone(clock: Clock | None = None, **options: Any) -> AuthorizationServer:
    clock = clock or Clock()
    return AuthorizationServer(
        options,
        "http://127.0.0.1/x",
        "http://127.0.0.1/x/token",
        "c",
        TokenStore(60, clock),
        granted=lambda asked: asked,
        authenticated=lambda _request: True,
        clock=clock,
    )


def status(server: AuthorizationServer, refresh_token: str) -> int:
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    return server.token(Request(EnvironBuilder(method="POST", data=form).get_environ())).status_code


def test_a_refresh_token_dies_of_disuse() -> None:
    clock = Clock()
    server = alone(clock, refresh_token_lifetime=100)
    used, unused = server.grant()["refresh_token"], server.grant()["refresh_token"]
    for _ in range(3):
        clock.now += 90
        assert status(server, used) == 200
    assert status(server, unused) == 400
    assert server.stats()["live_families"] == 1


def test_the_grace_period_ends() -> None:
    clock = Clock()
    server = alone(clock, refresh_mode="grace", refresh_grace=30)
    first = server.grant()["refresh_token"]
    assert status(server, first) == 200
    clock.now = 29
    assert status(server, first) == 200
    clock.now = 31
    assert status(server, first) == 400
    assert server.stats()["reuse_detected"] == server.stats()["families_revoked"] == 1
    assert server.stats()["live_families"] == 0
