"""A plain HTTP client of one sandbox system: a token, and requests that carry it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import requests

from sis_pipeline.sandbox.server import Handle

SCOPE = "https://purl.imsglobal.org/spec/or/v1p{minor}/scope/{name}.readonly"


def scopes(version: str, *names: str) -> str:
    return " ".join(SCOPE.format(minor=version[-1], name=name) for name in names)


class Client:
    """`token_form` is what the token request says beside the grant; None asks for no token yet."""

    def __init__(self, handle: Handle, token_form: dict[str, str] | None = None) -> None:
        self.handle = handle
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Accept"] = "application/json"
        if token_form is not None:
            self.authorise(**token_form)

    def token(self, **form: str) -> requests.Response:
        """One token request, client authentication as the handle's settings say."""
        handle, body = self.handle, {"grant_type": "client_credentials", **form}
        if handle.settings["client_auth"] == "post":
            body |= {"client_id": handle.client_id, "client_secret": handle.client_secret}
            return requests.post(handle.token_url, data=body, timeout=10)
        pair = (quote(handle.client_id, safe=""), quote(handle.client_secret, safe=""))
        return requests.post(handle.token_url, data=body, auth=pair, timeout=10)

    def authorise(self, **form: str) -> None:
        answer = self.token(**form)
        assert answer.status_code == 200, answer.text
        self.session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def get(self, path: str, **params: Any) -> requests.Response:
        return self.session.get(self.handle.base_url + path, params=params or None, timeout=20, allow_redirects=False)

    def post(self, path: str, body: Any = None, **params: Any) -> requests.Response:
        return self.session.post(self.handle.base_url + path, params=params or None, json=body, timeout=20)


def client(handle: Handle) -> Client:
    """A client with a token that may read everything."""
    version = handle.settings.get("version")
    names = ("roster-core", "roster-demographics")
    return Client(handle, {"scope": scopes(version, *names)} if version else {})
