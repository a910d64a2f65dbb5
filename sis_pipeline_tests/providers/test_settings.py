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
@pytest.mark.parametrize("setting", ["base_url", "token_url", "authorize_url", "revoke_url", "issuer"])
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


@pytest.mark.parametrize("provider", HTTP_PROVIDERS)
def test_a_persons_grant_reaches_the_authentication_of_every_provider(provider):
    urls = {
        "authorize_url": "https://login.example/authorize?tenant=7",
        "revoke_url": "https://login.example/revoke",
        "issuer": "https://login.example/t",
    }
    oauth = make(provider, {**GOOD, "grant": "authorization_code", "client_auth": "none", **urls}).authentication()
    assert (oauth.grant, oauth.client_auth) == ("authorization_code", "none")
    assert (oauth.authorize_url, oauth.revoke_url, oauth.issuer) == tuple(urls.values())
    assert oauth.urls == (GOOD["token_url"], urls["revoke_url"], urls["issuer"], urls["authorize_url"])
    plain = make(provider, GOOD).authentication()
    assert (plain.grant, plain.client_auth, plain.authorize_url) == ("client_credentials", "basic", None)


@pytest.mark.parametrize("known", [{"authorize_url": "https://sis.example/a"}, {"issuer": "https://sis.example"}])
def test_a_persons_grant_needs_a_place_to_go(known):
    assert "needs authorize_url, or issuer" in refusal(grant="authorization_code")
    assert HttpSettings(**GOOD, grant="authorization_code", **known).oauth().grant == "authorization_code"


def test_a_public_client_goes_with_a_persons_grant_only():
    assert "client_auth none goes with the grant authorization_code" in refusal(client_auth="none")


def test_an_issuer_has_no_query():
    assert "issuer: Value error, the address has a query" in refusal(issuer=f"https://sis.example?{CANARY}")


@pytest.mark.parametrize("provider", HTTP_PROVIDERS)
def test_the_password_grant_is_for_skyward_sms_alone(provider):
    assert "grant" in refusal(provider, grant="password")
    sms = {"base_url": "https://sis.example/api", "client_id": "key", "api_flavor": "sms", "grant": "password"}
    assert make("skyward", sms).authentication().grant == "password"


def test_the_secret_goes_nowhere_where_no_token_url_is_known():
    settings = HttpSettings(base_url="https://sis.example", client_id="c", issuer="https://sis.example")
    with pytest.raises(ConfigError, match="token_url is missing"):
        settings.oauth()
    assert settings.oauth("https://sis.example/token").token_url == "https://sis.example/token"


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


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("page_size", 0, "page_size: Input should be greater than or equal to 1"),
        ("requests_per_minute", 0, "requests_per_minute: Input should be greater than or equal to 1"),
        ("connect_timeout", float("nan"), "connect_timeout: "),
        ("read_timeout", -1, "read_timeout: Input should be greater than 0"),
        ("total_timeout", 86_400, "total_timeout: Input should be less than or equal to 3600"),
        ("custom_fields", {"shoe_size": "x"}, "custom_fields: Value error, students have no column shoe_size"),
        ("custom_fields", {"first_name": " "}, "first_name needs a path in the vendor's record"),
        ("rate_group", "", "rate_group: "),
        ("pagesize", 5, "pagesize: Extra inputs are not permitted"),
    ],
)
def test_settings_are_refused_when_they_are_set(setting, value, words):
    assert words in refusal(**{setting: value})
