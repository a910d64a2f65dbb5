"""Test doors to a source: one that answers from a script, one over a real socket, and raw pages in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import requests

from sis_pipeline.connect.contract import Answer, Request
from sis_pipeline.connect.errors import Call, SisError, classify
from sis_pipeline.providers.base import OAuth, Provider
from sis_pipeline.providers.reading import MemorySnapshot, Reading, read
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.validate import Validated, validate

YEAR = SchoolYear.parse("2025-2026")


@dataclass
class Script:
    """Answers by path: a body, or a function of the request that gives one; everything else is a 404."""

    answers: Mapping[str, Any]
    sent: list[Request] = field(default_factory=list)

    def send(self, request: Request) -> Answer:
        self.sent.append(request)
        answer = self.answers.get(request.path)
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, SisError):
            raise answer
        if answer is None:
            raise classify(Call("test", request.method, request.path), 404, {})
        if isinstance(answer, Answer):
            return answer
        return Answer(200, {"content-type": "application/json"}, json.dumps(answer).encode())


class OverHttp:
    """A Source on a plain requests session: one token, no retries, no limits; errors classed as the product does."""

    def __init__(self, base_url: str, oauth: OAuth, secret: str) -> None:
        self.base_url = base_url
        self.oauth = oauth
        self.secret = secret
        self.calls = 0
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {self._token()}"

    def _token(self) -> str:
        pair = (self.oauth.client_id, self.secret)
        form: dict[str, str] = {"grant_type": self.oauth.grant}
        if self.oauth.grant == "password":
            form |= {"username": pair[0], "password": pair[1]}
        if self.oauth.scope:
            form["scope"] = self.oauth.scope
        if self.oauth.client_auth == "post" and self.oauth.grant != "password":
            form |= {"client_id": pair[0], "client_secret": pair[1]}
        auth = pair if self.oauth.client_auth == "basic" else None
        answer = self.session.post(self.oauth.token_url, data=form, auth=auth, timeout=20)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def send(self, request: Request) -> Answer:
        self.calls += 1
        answer = self.session.request(
            request.method,
            self.base_url + request.path,
            params=dict(request.params),
            json=request.json,
            headers=dict(request.headers),
            timeout=30,
        )
        headers = {name.lower(): value for name, value in answer.headers.items()}
        if not answer.ok:
            raise classify(Call("test", request.method, request.template or ""), answer.status_code, headers)
        return Answer(answer.status_code, headers, answer.content)


def recorded(
    resources: Mapping[str, Any], year: SchoolYear = YEAR, about: Mapping[str, str] | None = None
) -> MemorySnapshot:
    """A snapshot of one page per resource, the page being the given JSON, or bytes as they are."""
    snapshot = MemorySnapshot(year)
    for name, page in resources.items():
        body = page if isinstance(page, bytes) else json.dumps(page).encode()
        snapshot.add(name, body, **(about or {}))
    return snapshot


@dataclass
class Pulled:
    snapshot: MemorySnapshot
    readings: Sequence[Reading]
    frames: dict[str, pd.DataFrame]
    validated: dict[str, Validated]
    calls_planned: int

    def good(self, entity: str) -> pd.DataFrame:
        return self.validated[entity].frame


def pull(
    provider: Provider, source: Any, year: SchoolYear = YEAR, last_rows: Mapping[str, int] | None = None
) -> Pulled:
    """A whole sync without storage: plan, read, standardise, validate."""
    snapshot = MemorySnapshot(year)
    plan = provider.plan(source, year, last_rows or {})
    readings = read(plan, getattr(source, "send", None), provider.decode, snapshot)  # type: ignore[arg-type]
    frames = provider.standardise(snapshot)
    validated = {name: validate(name, frame) for name, frame in frames.items()}
    return Pulled(snapshot, readings, frames, validated, plan.calls)


def rows(frame: pd.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    """The values of some columns, missing as None, in the order of the frame."""
    values = frame[list(columns)].astype(object)
    return list(values.where(values.notna(), None).itertuples(index=False, name=None))
