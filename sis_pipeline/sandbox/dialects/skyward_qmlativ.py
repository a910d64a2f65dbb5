"""Skyward Qmlativ: any object by module and name, only the fields asked for, pages in the path, the next one in the body.
The objects themselves are in `qmlativ_objects`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from werkzeug.routing import Rule
from werkzeug.wrappers import Response

from sis_pipeline.sandbox.dialects.api import Api, BadParameter, Call, Json, json_answer
from sis_pipeline.sandbox.dialects.qmlativ_objects import DISTRICT_ENTITY, Objects, school_year_id
from sis_pipeline.sandbox.views import View

PREFIX = "/fernhollowAPI"


class QmlativApi(Api):
    """A Qmlativ API server.

    Options: `page_cap` (10,000; a larger page is refused), `expired_status` (403), `retry_after`, `end_dates`
    (`exclusive`, `inclusive`), `no_objects` (names such as `Security/User` the integration may not read: 403), `filters`
    (conditions: `honoured`, `ignored`, `refused`).
    """

    token_route = f"{PREFIX}/oauth/token"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._objects: dict[int, Objects] = {}

    @property
    def base_url(self) -> str:
        return f"{self.root}{PREFIX}"

    def settings(self) -> Json:
        return {**super().settings(), "api_flavor": "qmlativ"}

    def routes(self) -> list[Rule]:
        return [
            Rule(f"{PREFIX}/Custom/GetSystemMetadata", endpoint="metadata", methods=["GET"]),
            *(
                Rule(
                    f"{PREFIX}/{kind}/<int:entity>/<module>/<name>/<int:page>/<int:size>",
                    endpoint="objects", methods=["GET", "POST"],
                )
                for kind in ("Generic", "Custom")
            ),
        ]  # fmt: skip

    def match(self, method: str, path: str) -> tuple[str, Mapping[str, Any], str]:
        """The template names the object: it is what was read, not an id."""
        endpoint, arguments, template = super().match(method, path)
        for part in ("module", "name"):
            template = template.replace(f"{{{part}}}", str(arguments.get(part, "")))
        return endpoint, arguments, template

    def token(self, call: Call) -> Response:
        """The grant in the form or, as older clients do, in the query."""
        grant = call.request.form.get("grant_type") or call.request.args.get("grant_type")
        if grant != "client_credentials":
            return json_answer({"error": "unsupported_grant_type"}, 400)
        if not self.authenticated(call.request):
            return json_answer({"error": "invalid_client"}, 400)
        token = self.tokens.issue()
        return json_answer(
            {"access_token": token.value, "token_type": "bearer", "expires_in": self.tokens.seconds_left(token)}
        )

    def metadata(self, call: Call) -> Response:
        year = call.view.world.year
        current = {"SchoolYearID": school_year_id(year), "NumericYear": year + 1, "Description": f"{year}-{year + 1}"}
        fiscal = {"FiscalYearID": school_year_id(year), "NumericYear": year + 1, "Description": f"FY {year + 1}"}
        return json_answer({"System": {
            "EntityID": DISTRICT_ENTITY, "Code": "SYS", "Name": "Fernhollow", "href": f"/Generic/{DISTRICT_ENTITY}",
            "Districts": [{
                "DistrictID": 1, "EntityID": DISTRICT_ENTITY, "Name": "Fernhollow District", "Code": call.view.world.district[:4].upper(),
                "href": f"/Generic/{DISTRICT_ENTITY}", "SchoolYearCurrent": current, "FiscalYearCurrent": fiscal,
            }],
        }})  # fmt: skip

    def objects(self, call: Call, *, entity: int, module: str, name: str, page: int, size: int) -> Response:
        full = f"{module}/{name}"
        if full in self.option("no_objects", ()):
            return json_answer({"Message": "You do not have access to this object"}, 403)
        if page < 1 or not 1 <= size <= self.option("page_cap", 10_000):
            raise BadParameter("page size")
        rows = self._held(call.view).rows(full, call.integer("SchoolYearID", school_year_id(call.view.world.year)))
        if rows is None:
            return self.not_found()
        rows = [row for row in rows if entity == DISTRICT_ENTITY or row.get("EntityID", entity) == entity]
        body = call.request.get_json(force=True, silent=True) if call.request.method == "POST" else None
        rows = _found(rows, self._asked(body if isinstance(body, dict) else {}))
        offset = (page - 1) * size
        shown = call.page(rows, offset, size)
        more = offset + size < call.total(len(rows))
        kind = call.path.removeprefix(PREFIX).split("/")[1]
        following = f"/{kind}/{entity}/{full}/{page + 1}/{size}" if more else None
        fields = _search_fields(call, body)
        content = [{field: row.get(field) for field in fields if field in row} for row in shown]
        return json_answer({"Objects": content, "Paging": {"Next": following}})

    def _asked(self, body: Json) -> Json:
        how = self.option("filters", "honoured")
        if how == "refused" and "SearchCondition" in body:
            raise BadParameter("SearchCondition")
        return {name: value for name, value in body.items() if how != "ignored" or name != "SearchCondition"}

    def _held(self, view: View) -> Objects:
        if view.day not in self._objects:
            self._objects[view.day] = Objects(view, inclusive=self.option("end_dates", "exclusive") == "inclusive")
        return self._objects[view.day]

    # --- failures ----------------------------------------------------------------------------------------------------

    def unauthorized(self) -> Response:
        return json_answer({"Message": "Token has expired"}, self.option("expired_status", 403))

    def too_many(self, wait: float) -> Response:
        headers = {"Retry-After": str(int(wait) + 1)} if self.option("retry_after", default=False) else None
        return json_answer({"Message": "Too many requests"}, 429, headers)

    def not_found(self) -> Response:
        return json_answer({"Message": "The requested object does not exist"}, 404)

    def bad_parameter(self, name: str) -> Response:
        return json_answer({"Message": f"Invalid {name}"}, 400)


def _search_fields(call: Call, body: Any) -> list[str]:
    """`searchFields=A&searchFields=B`, `searchFields[0]=A`, or a list in the body. Only named fields are returned."""
    named = [value for key, value in call.request.args.items(multi=True) if key.partition("[")[0] == "searchFields"]
    return [*named, *(body.get("SearchFields", []) if isinstance(body, dict) else [])]


_CONDITIONS: dict[str, Callable[[Any, Any], bool]] = {
    "Equal": lambda left, right: str(left) == str(right),
    "NotNull": lambda left, _right: left is not None,
    "LessEqual": lambda left, right: left is not None and left <= right,
    "GreaterEqual": lambda left, right: left is not None and left >= right,
    "Contains": lambda left, right: left is not None and str(right).casefold() in str(left).casefold(),
    "List": lambda left, right: left in right,
    "NotList": lambda left, right: left not in right,
}


def _found(rows: Sequence[Json], body: Json) -> list[Json]:
    """The rows that a posted search condition and sort ask for. Raises BadParameter."""
    condition = body.get("SearchCondition") or {}
    group = condition.get(
        "SearchConditionGroup", {"ConditionGroupType": "And", "Conditions": [condition] if condition else []}
    )
    tests = [next(iter(typed.values())) for typed in group["Conditions"]]
    if any(test.get("ConditionType") not in _CONDITIONS for test in tests):
        raise BadParameter("ConditionType")
    joined = any if group.get("ConditionGroupType") == "Or" and tests else all
    kept = [
        row for row in rows
        if joined(_CONDITIONS[test["ConditionType"]](row.get(test["FieldName"]), test.get("Value")) for test in tests)
    ]  # fmt: skip
    for order in reversed(body.get("SearchSort", [])):
        kept.sort(key=lambda row, field=order["FieldName"]: str(row.get(field)), reverse=bool(order.get("Descending")))  # type: ignore[misc]
    return kept
