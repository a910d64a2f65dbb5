"""The authorization-code flow without a browser: what is asked, and which answers are believed."""

from __future__ import annotations

import base64
import hashlib
import logging
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.connect.authorize import EXPIRY, Authorization, begin, finish
from sis_pipeline.connect.contract import OAuth
from sis_pipeline.connect.errors import AuthRevokedError, ConfigError, ContractError, SisError, TransientError
from sis_pipeline.connect.log import MASK, redacted

REDIRECT = "http://127.0.0.1:8722/callback"
ISSUER = "https://login.example/tenant"
OAUTH = OAuth(
    "https://login.example/token",
    "sis client/1",
    grant="authorization_code",
    authorize_url="https://login.example/authorize?tenant=7",
    issuer=ISSUER,
    scope="read offline_access",
)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def begun(oauth: OAuth = OAUTH, **more: Any) -> Authorization:
    return begin(oauth, REDIRECT, "lincoln", **more)


def answer(authorization: Authorization, **changed: str | None) -> str:
    given = {"code": "c0de", "state": authorization.state, "iss": ISSUER, **changed}
    return f"{REDIRECT}?{urlencode({name: value for name, value in given.items() if value is not None})}"


def test_the_request_is_bound_to_this_client_by_state_and_s256() -> None:
    first, second = begun(), begun()
    parts = urlsplit(first.url)
    asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
    assert (parts.netloc, parts.path) == ("login.example", "/authorize")
    challenge = base64.urlsafe_b64encode(hashlib.sha256(first.verifier.encode()).digest()).rstrip(b"=").decode()
    assert asked == {
        "tenant": "7",
        "response_type": "code",
        "client_id": "sis client/1",
        "redirect_uri": REDIRECT,
        "scope": "read offline_access",
        "state": first.state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    assert 43 <= len(first.verifier) <= 128
    assert len(first.state) >= 43
    assert first.state != second.state
    assert first.verifier != second.verifier
    assert first.verifier not in first.url


@pytest.mark.parametrize("form", ["url", "query", "?query", "quoted", "parameters"])
def test_the_code_is_taken_from_any_form_of_the_answer(form: str) -> None:
    authorization = begun()
    url = answer(authorization, code="a/b+c=")
    query = urlsplit(url).query
    forms: dict[str, Any] = {
        "url": f"  {url}\n",
        "query": query,
        "?query": f"?{query}",
        "quoted": f"'{url}'",
        "parameters": {"code": "a/b+c=", "state": authorization.state, "iss": ISSUER},
    }
    assert finish(authorization, forms[form]) == "a/b+c="


@pytest.mark.parametrize("state", [None, "", "other", "é", "surrogate"])
def test_another_state_is_refused_and_does_not_use_the_request_up(state: str | None) -> None:
    authorization = begun()
    response = {"code": "x", "state": "\udce9"} if state == "surrogate" else answer(authorization, state=state)
    with pytest.raises(ContractError, match=r"another request, or to none \(state\)"):
        finish(authorization, response)
    assert finish(authorization, answer(authorization)) == "c0de"


def test_two_requests_are_not_mixed() -> None:
    first, second = begun(), begun()
    with pytest.raises(ContractError, match="state"):
        finish(first, answer(second))


def test_an_answer_counts_once() -> None:
    authorization = begun()
    finish(authorization, answer(authorization))
    with pytest.raises(ConfigError, match="was given before"):
        finish(authorization, answer(authorization, code="another"))


def test_an_answer_that_comes_late_is_refused() -> None:
    clock = Clock()
    late, intime = begun(clock=clock), begun(clock=clock)
    clock.now += EXPIRY
    assert finish(intime, answer(intime), clock=clock) == "c0de"
    clock.now += 1
    with pytest.raises(ConfigError, match="more than 10 minutes"):
        finish(late, answer(late), clock=clock)
    back = begun(clock=clock)
    clock.now -= 5  # a clock that was set back must not make it live longer
    with pytest.raises(ConfigError, match="10 minutes"):
        finish(back, answer(back), clock=clock)


@pytest.mark.parametrize("iss", ["https://evil.example", ISSUER + "/", ISSUER.upper(), ""])
def test_another_issuer_is_a_mix_up(iss: str) -> None:
    authorization = begun()
    with pytest.raises(ContractError, match=r"another authorization server \(iss\)"):
        finish(authorization, answer(authorization, iss=iss))
    with pytest.raises(ConfigError, match="was given before"):
        finish(authorization, answer(authorization))


def test_an_issuer_is_missed_only_where_it_was_promised() -> None:
    lenient, strict = begun(), begun(iss_required=True)
    assert finish(lenient, answer(lenient, iss=None)) == "c0de"
    with pytest.raises(ContractError, match="does not say who gave it"):
        finish(strict, answer(strict, iss=None))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ("access_denied", AuthRevokedError, "access was declined"),
        ("unauthorized_client", AuthRevokedError, "may not ask"),
        ("invalid_scope", ConfigError, "the scope"),
        ("invalid_request", ConfigError, "found the request wrong"),
        ("server_error", TransientError, "the server failed"),
        ("temporarily_unavailable", TransientError, "overloaded"),
        ("Kwiatkowska", ConfigError, "an error that RFC 6749 does not define"),
    ],
)
def test_errors_are_told_in_words(error: str, kind: type[SisError], words: str) -> None:
    authorization = begun()
    with pytest.raises(SisError, match=words) as caught:
        finish(authorization, answer(authorization, code=None, error=error, error_description="Kwiatkowska-7731"))
    assert type(caught.value) is kind
    assert "Kwiatkowska" not in str(caught.value)
    assert caught.value.context["oauth_error"] == (None if error == "Kwiatkowska" else error)


@pytest.mark.parametrize("text", ["", "hello", "https://login.example/", "https://[", "?state=x", "\x00", "a=1&" * 200])
def test_what_is_no_answer_is_refused_in_words(text: str) -> None:
    with pytest.raises(ContractError, match="neither a code nor an error"):
        finish(begun(), text)


def test_a_parameter_that_comes_twice_is_refused() -> None:
    authorization = begun()
    with pytest.raises(ContractError, match="the same thing twice"):
        finish(authorization, answer(authorization) + "&code=other")


@given(st.text() | st.dictionaries(st.sampled_from(["code", "state", "iss", "error"]), st.text()))
def test_whatever_is_pasted_is_an_error_of_ours(response: Any) -> None:
    with pytest.raises(SisError):
        finish(begun(), response)


@pytest.mark.parametrize("address", [None, "http://login.example/authorize", "https://u:p@login.example/authorize"])
def test_a_person_is_sent_by_https_or_not_at_all(address: str | None) -> None:
    with pytest.raises(ConfigError, match=r"authorization endpoint|authorize_url"):
        begun(OAuth("https://login.example/token", "c", authorize_url=address))
    with pytest.raises(ConfigError, match="redirect URI is http"):
        begin(OAUTH, "http://sis.example/callback", "lincoln")


def test_nothing_that_proves_anything_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    authorization = begun()
    with caplog.at_level(logging.DEBUG):
        code = finish(authorization, answer(authorization, code="c0de-of-lincoln"))
    for secret in (authorization.state, authorization.verifier):
        assert secret not in repr(authorization)
    for secret in (authorization.verifier, code):
        assert secret not in caplog.text
        assert redacted(f"a {secret} b") == f"a {MASK} b"
