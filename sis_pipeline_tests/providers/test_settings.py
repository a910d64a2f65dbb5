"""What the settings of a provider that is reached over HTTP refuse before anything is stored: addresses and headers."""

from __future__ import annotations

import pytest

from sis_pipeline.connect.addresses import RESERVED_HEADERS
from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.providers.base import HttpSettings
from sis_pipeline.providers.registry import make

CANARY = "canary-7731"
GOOD = {
    "base_url": "https://sis.example/api",
    "token_url": "https://sis.example/token?appName=sis",
    "client_id": "sis",
}
HTTP_PROVIDERS = ("powerschool", "infinite_campus", "skyward", "oneroster")

BAD_ADDRESSES = {
    f"https://user:{CANARY}@sis.example/": "carries credentials",
    f"https://{CANARY}@sis.example/": "carries credentials",
    "https://@sis.example/": "carries credentials",
    f"https://user:{CANARY}@evil.example@sis.example/": "carries credentials",
    f"https://sis.example/#{CANARY}": "has a fragment",
    "https://sis.example/#": "has a fragment",
    f"http://{CANARY}.example/": "is http",
    "http://10.0.0.7/": "is http",
    "http://127.0.0.1.example/": "is http",
    f"https://sis.example\\{CANARY}/": "a backslash",
    f"https://sis.example/ {CANARY}": "a space",
    f"https://sis.example/\n{CANARY}": "a control character",
    "https://sis.example:99999/": "is not a URL",
    f"ftp://{CANARY}.example/": "is not an https URL",
    f"{CANARY}.example/api": "is not an https URL",
    "https:///api": "is not an https URL",
    "": "is not an https URL",
}


def refusal(provider: str = "oneroster", **changed: object) -> str:
    with pytest.raises(ConfigError) as refused:
        make(provider, {**GOOD, **changed})
    assert CANARY not in str(refused.value)
    assert refused.value.__cause__ is None
    return str(refused.value)


@pytest.mark.parametrize("provider", HTTP_PROVIDERS)
@pytest.mark.parametrize("setting", ["base_url", "token_url"])
@pytest.mark.parametrize(("url", "words"), BAD_ADDRESSES.items())
def test_a_bad_address_is_refused_by_every_provider(provider, setting, url, words):
    said = refusal(provider, **{setting: url})
    assert f"{setting}: " in said
    assert words in said


@pytest.mark.parametrize(
    "url",
    [
        "https://sis.example",
        "https://SIS.example:8443/a/b/",
        "https://sis.example/a@b",
        "http://localhost:3000/api",
        "http://127.9.9.9/",
        "http://[::1]:8080/api",
    ],
)
def test_https_and_loopback_are_accepted_as_they_are(url):
    settings = HttpSettings(**{**GOOD, "base_url": url, "token_url": url})
    assert (settings.base_url, settings.token_url) == (url, url)


@pytest.mark.parametrize("query", ["?", "?page=1", f"?key={CANARY}"])
def test_a_base_url_has_no_query(query):
    assert "base_url: Value error, the address has a query" in refusal(base_url=f"https://sis.example/api{query}")


@pytest.mark.parametrize(
    "parameter", ["key", "api_key", "ACCESS_TOKEN", "client_secret", "Password", "to%6ben", "a=1&token", "a=1;token"]
)
def test_a_token_url_has_no_parameter_named_like_a_credential(parameter):
    said = refusal(token_url=f"https://sis.example/token?{parameter}={CANARY}")
    assert "token_url: " in said
    assert "named like a credential" in said


@pytest.mark.parametrize("name", [*sorted(RESERVED_HEADERS), "Authorization", "HOST", "X A", "", f"x\r\n{CANARY}"])
def test_reserved_and_malformed_headers_are_refused(name):
    said = refusal(extra_headers={"X-District": "lincoln", name: CANARY})
    assert "extra_headers: " in said
    assert "cannot be set there" in said


@pytest.mark.parametrize("name", ["X-Api-Key", "apikey", "X-Auth", "X-TOKEN", "Client-Secret", "X-Password"])
def test_headers_named_like_a_credential_are_refused(name):
    assert "name one like a credential" in refusal(extra_headers={name: CANARY})


@pytest.mark.parametrize("value", [f"{CANARY}\r\nX: y", f" {CANARY}", f"{CANARY}é"])
def test_header_values_that_http_cannot_carry_are_refused(value):
    assert "HTTP cannot carry" in refusal(extra_headers={"X-District": value})


def test_other_headers_are_kept():
    assert HttpSettings(**GOOD, extra_headers={"X-District": "lincoln"}).extra_headers == {"X-District": "lincoln"}
