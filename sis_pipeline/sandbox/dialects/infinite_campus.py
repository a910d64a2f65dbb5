"""Infinite Campus: OneRoster 1.2 at its own addresses, one active year, and next links nobody should follow.
Everything else is OneRoster's."""

from __future__ import annotations

import base64
import json
import time
import uuid
from typing import Any, ClassVar

from werkzeug.wrappers import Response

from sis_pipeline.sandbox.dialects.api import Call, Json, json_answer
from sis_pipeline.sandbox.dialects.oneroster import OneRosterApi

APP = "fernhollow"


class InfiniteCampusApi(OneRosterApi):
    """Options of OneRoster, with Campus's defaults: up to 50,000 rows a page, `links` malformed and, on the last page,
    pointing at the page itself (`self`), scopes not enforced, `missing` as empty text, roles without dates."""

    token_route = "/campus/oauth2/token"  # noqa: S105 - a path
    prefix: ClassVar[dict[str, str]] = {"1.2": f"/campus/api/oneroster/v1p2/{APP}/ims/oneroster/rostering/v1p2"}
    scopes_enforced = False
    defaults: ClassVar[dict[str, Any]] = {
        "page_cap": 50_000, "links": "self", "missing": "empty", "role_dates": False, "odd_birth_date_key": True,
        "student_primary": "null",
    }  # fmt: skip

    @property
    def token_url(self) -> str:
        return f"{super().token_url}?appName={APP}"

    def settings(self) -> Json:
        settings = super().settings()
        del settings["version"]
        return settings

    def token(self, call: Call) -> Response:
        if call.request.args.get("appName") != APP:
            description = "No Campus Application selected"
            return json_answer({"error": "invalid_request", "error_description": description}, 400)
        return super().token(call)

    def _token_answer(self, granted: frozenset[str]) -> Response:
        token = self.tokens.issue(granted, value=_jwt(int(self.tokens.lifetime)))
        return json_answer(
            {"access_token": token.value, "token_type": "Bearer", "expires_in": self.tokens.seconds_left(token)}
        )

    def _link(self, call: Call, offset: int, limit: int, total: int) -> str | None:
        if self.option("links", "self") != "self":
            return super()._link(call, offset, limit, total)
        more = offset + limit < total
        url = self._page_url(call, offset + limit if more else offset, limit, relative=False)
        return f'<{url.replace("?", "?&", 1)}>; rel="next"'


def _jwt(lifetime: int) -> str:
    """Three parts that decode like a JWT; the signature signs nothing."""
    parts: tuple[Json, ...] = (
        {"alg": "RS256", "typ": "JWT"},
        {"jti": str(uuid.uuid4()), "exp": int(time.time()) + lifetime},
    )
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()])
