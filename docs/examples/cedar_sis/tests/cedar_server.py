"""A Cedar SIS small enough for a test: two schools, and as many pupils as wanted, by pages."""

from __future__ import annotations

import json

from pytest_httpserver import HTTPServer
from werkzeug.wrappers import Request, Response

SCHOOLS = [{"code": "N", "name": "North"}, {"code": "S", "name": "South"}]


def pupil(number: int) -> dict[str, object]:
    """Every fifth pupil has left; the last day is a day at school."""
    left = number % 5 == 0
    stay = {"id": f"stay-{number}", "from": "2025-09-01", "state": "withdrawn" if left else "active"}
    return {
        "pupilId": f"P{number:04d}",
        "number": f"{number:06d}",
        "names": {"given": "Ana", "family": "Null" if number == 7 else "Okafor", "known_as": ""},
        "born": "2012-02-29",
        "sex": "F",
        "yearGroup": "8",
        "school": "N" if number % 2 else "S",
        "changed": "2025-09-02T07:30:00-04:00",
        "stay": stay | ({"lastDay": "2025-10-03", "reason": "MOVED"} if left else {}),
    }


def serve(server: HTTPServer, pupils: int) -> None:
    """Answer for the campus `oak`; requests need the token that /token gives."""
    lists = {"schools": SCHOOLS, "pupils": [pupil(number) for number in range(1, pupils + 1)]}

    def answer(request: Request) -> Response:
        if request.headers.get("Authorization") != "Bearer cedar-token":
            return _json({"error": "no token"}, 401)
        name, _, counting = request.path.removeprefix("/oak/").partition("/")
        if counting:
            return _json({"count": len(lists[name])})
        page, size = int(request.args.get("page", 1)), int(request.args.get("per_page", 200))
        return _json({name: lists[name][(page - 1) * size : page * size]})

    server.expect_request("/token", method="POST").respond_with_json({"access_token": "cedar-token", "expires_in": 600})
    for path in ("schools", "schools/count", "pupils", "pupils/count"):
        server.expect_request(f"/oak/{path}").respond_with_handler(answer)


def _json(content: object, status: int = 200) -> Response:
    return Response(json.dumps(content), status, content_type="application/json")
