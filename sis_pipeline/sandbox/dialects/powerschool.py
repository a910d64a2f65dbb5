"""PowerSchool's `/ws/v1`, table and PowerQuery endpoints, with the type oddities of its JSON.
What the tables hold is in `powerschool_tables`; this module is the API in front of them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from werkzeug.routing import Rule
from werkzeug.wrappers import Response

from sis_pipeline.sandbox.dialects.api import Api, BadParameter, Call, Json, json_answer
from sis_pipeline.sandbox.dialects.powerschool_tables import Tables, TextRow
from sis_pipeline.sandbox.dialects.powerschool_words import EXPANSIONS, EXTENSIONS, Words
from sis_pipeline.sandbox.views import StudentRow, View

QUERY_PREFIX = "org.sis_pipeline.roster."
TABLES = ("cc", "reenrollments", "students", "sections", "terms", "courses", "schools", "schoolstaff", "users")
QUERIES = ("section_enrollments", "section_enrollments_changed", "school_enrollments")
SEARCHABLE = frozenset({
    "student_username", "local_id", "name.last_name", "name.first_name", "state_province_id",
    "school_enrollment.enroll_status", "school_enrollment.enroll_status_code", "school_enrollment.entry_date", "id",
})  # fmt: skip
_CONDITION = re.compile(r"^\s*([\w.]+)\s*(==|=gt=|=ge=|=lt=|=le=)\s*(.*?)\s*$")


class PowerSchoolApi(Api):
    """A PowerSchool server, as one plugin sees it.

    Options: `max_page_size` (100; a number, or a mapping of resource such as `student`, `schema_table_query`),
    `over_page_size` (`error`, `clamp`), `no_access` (names of tables and of PowerQueries the plugin may not use),
    `no_fields` (`table.column` it may not read), `refusal_status` (429) and `retry_after` for requests that come too
    fast, `xml` (answer in XML without `Accept: application/json`, default true), `filters` (of changed rows: `honoured`,
    `ignored`, `refused`).
    """

    token_route = "/oauth/access_token"  # noqa: S105 - a path
    client_auth = frozenset({"basic"})
    token_lifetime = 2_592_000.0
    open_endpoints = frozenset({"time"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._held: dict[int, tuple[Tables, Words]] = {}

    @property
    def base_url(self) -> str:
        return self.root

    def routes(self) -> list[Rule]:
        found = [
            Rule(f"/ws/v1/{path}", endpoint=endpoint, methods=["GET"])
            for path, endpoint in (
                ("metadata", "metadata"), ("time", "time"), ("district", "district"), ("school", "schools"),
                ("district/school", "schools"), ("district/school/count", "schools_count"),
                ("district/student", "students"), ("district/student/count", "students_count"),
                ("school/<int:id>", "school"), ("student/<int:id>", "student"), ("staff/<int:id>", "staff_member"),
                ("course/<int:id>", "course"), ("section/<int:id>", "section"), ("term/<int:id>", "term"),
                ("section/<int:id>/section_enrollment", "seats"),
                ("section/<int:id>/section_enrollment/count", "seats_count"),
            )
        ]  # fmt: skip
        for kind in ("student", "staff", "course", "section", "term"):
            for path, counting in (("", False), ("/count", True)):
                found.append(
                    Rule(f"/ws/v1/school/<int:id>/{kind}{path}", endpoint="of_school", methods=["GET"],
                         defaults={"kind": kind, "counting": counting})
                )  # fmt: skip
        return [
            *found,
            Rule("/ws/schema/table/<table>", endpoint="table", methods=["GET"]),
            Rule("/ws/schema/table/<table>/count", endpoint="table_count", methods=["GET"]),
            Rule("/ws/schema/query/<name>", endpoint="power_query", methods=["POST"]),
            Rule("/ws/schema/query/<name>/count", endpoint="power_query_count", methods=["POST"]),
        ]

    def match(self, method: str, path: str) -> tuple[str, Mapping[str, Any], str]:
        """The template names the table or the query: it is what was read, not an id."""
        endpoint, arguments, template = super().match(method, path)
        for part in ("table", "name"):
            template = template.replace(f"{{{part}}}", str(arguments.get(part, "")))
        return endpoint, arguments, template

    def respond(self, call: Call, endpoint: str, arguments: Mapping[str, Any]) -> Response:
        response = super().respond(call, endpoint, arguments)
        wants_json = "json" in call.request.headers.get("Accept", "")
        if wants_json or not self.option("xml", default=True) or "/schema/" in call.path:
            return response
        return _xml(response)

    def _tables(self, call: Call) -> Tables:
        return self._holding(call.view)[0]

    def _words(self, call: Call) -> Words:
        return self._holding(call.view)[1]

    def _holding(self, view: View) -> tuple[Tables, Words]:
        if view.day not in self._held:
            tables = Tables(view)
            self._held[view.day] = (tables, Words(tables))
        return self._held[view.day]

    # --- tokens ------------------------------------------------------------------------------------------------------

    def token(self, call: Call) -> Response:
        """The same token to everybody until it expires, its lifetime as text, counting down."""
        if call.request.form.get("grant_type") != "client_credentials":
            return json_answer({"error": "unsupported_grant_type"}, 400)
        if not self.authenticated(call.request):
            return json_answer({"error": "invalid_client"}, 401)
        token = self.tokens.living() or self.tokens.issue()
        return json_answer(
            {"access_token": token.value, "token_type": "Bearer", "expires_in": str(self.tokens.seconds_left(token))}
        )

    # --- about the server --------------------------------------------------------------------------------------------

    def _maximum(self, resource: str) -> int:
        configured = self.option("max_page_size", 100)
        return int(configured.get(resource, 100) if isinstance(configured, Mapping) else configured)

    def metadata(self, call: Call) -> Response:
        resources = (
            "student",
            "section",
            "section_enrollment",
            "course",
            "school",
            "staff",
            "term",
            "schema_table_query",
        )
        sizes = {f"{resource}_max_page_size": self._maximum(resource) for resource in resources}
        return json_answer({"metadata": {
            **sizes, "plugin_id": 7, "powerschool_version": "24.7.0.1", "state": "NJ", "state_reporting_version": "24.7.0.0",
            "district_timezone": "America/New_York", "district_uuid": self._district_uuid(call), "powerschool_uptime": 86_400,
            "machine_uptime": 172_800,
        }})  # fmt: skip

    def time(self, call: Call) -> Response:
        return json_answer({"time": {"date": call.view.date.isoformat(), "zone": "America/New_York"}})

    def _district_uuid(self, call: Call) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"sandbox:{call.view.world.district}:{self.system.name}"))

    def district(self, call: Call) -> Response:
        return json_answer({"district": {
            "uuid": self._district_uuid(call), "name": "Fernhollow District",
            "district_number": call.view.world.district_number, "addresses": "", "phones": {"main": {"number": 9_735_550_100}},
            "schools": len(call.view.schools),
        }})  # fmt: skip

    # --- /ws/v1 collections ------------------------------------------------------------------------------------------

    def schools(self, call: Call) -> Response:
        """The list holds the pseudo school of the graduated; the count leaves it out."""
        words = self._words(call)
        rows = [*call.view.schools, None]
        return self._collection(
            call, "school", rows, lambda school: words.school(school, self._asked(call, "expansions"))
        )

    def schools_count(self, call: Call) -> Response:
        return _count(call.total(len(call.view.schools)))

    def school(self, call: Call, id: int) -> Response:  # noqa: A002 - the vendor's name in the path
        school = self._tables(call).school_by_dcid.get(id)
        return json_answer({"school": self._words(call).school(school, set())}) if school else self.not_found()

    def students(self, call: Call) -> Response:
        """Everybody, whatever the status: there is no default filter here."""
        return self._student_list(call, self._searched(call, call.view.students))

    def students_count(self, call: Call) -> Response:
        return _count(call.total(len(self._searched(call, call.view.students))))

    def student(self, call: Call, id: int) -> Response:  # noqa: A002 - the vendor's name in the path
        row = self._tables(call).student_by_dcid.get(id)
        if row is None:
            return self.not_found()
        return json_answer({"student": self._words(call).student(row, self._asked(call, "expansions"), [])})

    def _student_list(self, call: Call, rows: Sequence[StudentRow]) -> Response:
        words, expansions = self._words(call), self._asked(call, "expansions")
        extensions = sorted(self._asked(call, "extensions"))
        return self._collection(call, "student", rows, lambda row: words.student(row, expansions, extensions))

    def of_school(self, call: Call, id: int, kind: str, *, counting: bool) -> Response:  # noqa: A002 - as in the path
        tables, words = self._tables(call), self._words(call)
        if id not in tables.school_by_dcid and id != 0:
            return self.not_found()
        if kind == "student":
            rows: Sequence[Any] = self._school_students(call, id)
            return _count(call.total(len(rows))) if counting else self._student_list(call, rows)
        held: dict[str, tuple[Callable[[int], Sequence[Any]], Callable[[Any], Json]]] = {
            "staff": (tables.staff_at, lambda row: words.staff(row, self._asked(call, "expansions"))),
            "course": (tables.courses_at, words.course),
            "section": (tables.sections_at, lambda row: words.section(row, self._asked(call, "expansions"))),
            "term": (tables.terms_at, words.term),
        }
        rows_of, write = held[kind]
        rows = rows_of(id)
        return _count(call.total(len(rows))) if counting else self._collection(call, kind, rows, write)

    def _school_students(self, call: Call, dcid: int) -> list[StudentRow]:
        """Active ones only, unless the search names statuses."""
        tables = self._tables(call)
        rows = [row for row in call.view.students if tables.students_school(row)["dcid"] == str(dcid)]
        if "enroll_status" not in call.request.args.get("q", ""):
            rows = [row for row in rows if tables.students_row(row)["enroll_status"] == "0"]
        return self._searched(call, rows)

    def staff_member(self, call: Call, id: int) -> Response:  # noqa: A002 - the vendor's name in the path
        row = next((row for row in self._tables(call).school_staff if int(row["dcid"]) == id), None)
        return json_answer({"staff": self._words(call).staff(row, set())}) if row else self.not_found()

    def course(self, call: Call, id: int) -> Response:  # noqa: A002 - the vendor's name in the path
        row = next((row for row in self._tables(call).rows("courses") if int(row["dcid"]) == id), None)
        return json_answer({"course": self._words(call).course(row)}) if row else self.not_found()

    def section(self, call: Call, id: int) -> Response:  # noqa: A002 - the vendor's name in the path
        row = self._tables(call).section_by_dcid.get(id)
        if row is None:
            return self.not_found()
        return json_answer({"section": self._words(call).section(row, self._asked(call, "expansions"))})

    def term(self, call: Call, id: int) -> Response:  # noqa: A002 - the vendor's name in the path
        row = next((row for row in self._tables(call).rows("terms") if int(row["dcid"]) == id), None)
        return json_answer({"term": self._words(call).term(row)}) if row else self.not_found()

    def seats(self, call: Call, id: int) -> Response:  # noqa: A002 - the vendor's name in the path
        words = self._words(call)
        return self._collection(call, "section_enrollment", self._tables(call).seats_in(id), words.section_enrollment)

    def seats_count(self, call: Call, id: int) -> Response:  # noqa: A002 - the vendor's name in the path
        return _count(call.total(len(self._tables(call).seats_in(id))))

    def _collection(self, call: Call, kind: str, rows: Sequence[Any], write: Callable[[Any], Json]) -> Response:
        """The wrapper of §v1: one element is an object, several are a list, none leaves the key out."""
        offset, limit = self._window(call, kind)
        page = [write(row) for row in call.page(rows, offset, limit)]
        wrapper: Json = {}
        if kind == "student":
            wrapper = {"@expansions": ", ".join(EXPANSIONS), "@extensions": ",".join(EXTENSIONS)}
        if page:
            wrapper[kind] = page[0] if len(page) == 1 else page
        return json_answer({f"{kind}s": wrapper})

    def _window(self, call: Call, resource: str, *, streams: bool = False) -> tuple[int, int]:
        """Offset and limit. Raises BadParameter where the page size is above the plugin's maximum."""
        maximum = self._maximum(resource)
        size = call.integer("pagesize", maximum)
        page = call.integer("page", 1)
        if streams and size == 0:
            return 0, 10**9
        if size > maximum and self.option("over_page_size", "error") == "clamp":
            size = maximum
        if not 1 <= size <= maximum:
            raise BadParameter("pagesize")
        if page < 1:
            raise BadParameter("page")
        return (page - 1) * size, size

    def _asked(self, call: Call, name: str) -> set[str]:
        return {part.strip() for part in call.request.args.get(name, "").split(",") if part.strip()}

    def _searched(self, call: Call, rows: Sequence[StudentRow]) -> list[StudentRow]:
        wanted = call.request.args.get("q", "")
        if not wanted:
            return list(rows)
        words = self._words(call)
        keep = _search(wanted, SEARCHABLE)
        return [row for row in rows if keep(words.searchable(row))]

    # --- tables and PowerQueries -------------------------------------------------------------------------------------

    def table(self, call: Call, table: str) -> Response:
        if (refusal := self._table_refusal(call, table)) is not None:
            return refusal
        offset, limit = self._window(call, "schema_table_query")
        columns = self._asked(call, "projection")
        rows = call.page(self._table_rows(call, table), offset, limit)
        records = [
            {"id": int(row["dcid"]), "name": table, "tables": {table: _projected(row, columns)}} for row in rows
        ]  # fmt: skip
        return json_answer(_recorded(table, records))

    def table_count(self, call: Call, table: str) -> Response:
        if (refusal := self._table_refusal(call, table, counting=True)) is not None:
            return refusal
        return json_answer({"count": call.total(len(self._table_rows(call, table)))})

    def _table_refusal(self, call: Call, table: str, *, counting: bool = False) -> Response | None:
        if table not in TABLES:
            return self.not_found()
        if table in self.option("no_access", ()):
            return json_answer({"message": "Access denied"}, 403)
        columns = self._asked(call, "projection")
        if not columns and not counting:
            raise BadParameter("projection")
        denied = [
            f"{table}.{column}" for column in sorted(columns) if f"{table}.{column}" in self.option("no_fields", ())
        ]
        unknown = [f"{table}.{column}" for column in sorted(columns - self._tables(call).columns(table) - {"*"})]
        return self._no_field(table, denied + unknown) if denied or unknown else None

    def _no_field(self, resource: str, fields: Sequence[str]) -> Response:
        errors = [{"resource": resource, "field": field, "code": "No access to the field"} for field in fields]
        return json_answer({"message": "Validation Failed", "errors": errors}, 403)

    def _table_rows(self, call: Call, table: str) -> list[TextRow]:
        rows = self._tables(call).rows(table)
        wanted = call.request.args.get("q", "")
        if wanted:
            keep = _search(wanted, self._tables(call).columns(table))
            rows = [row for row in rows if keep(row)]
        order = call.request.args.get("sort")
        if order:
            rows = sorted(rows, key=lambda row: _sortable(row.get(order, "")))
            if call.request.args.get("sortdescending") == "true":
                rows.reverse()
        return rows

    def power_query(self, call: Call, name: str) -> Response:
        if (refusal := self._query_refusal(name)) is not None:
            return refusal
        offset, limit = self._window(call, "schema_table_query", streams=True)
        rows = self._query_rows(call, name)
        return json_answer(_recorded(name, list(call.page(rows, offset, limit))))

    def power_query_count(self, call: Call, name: str) -> Response:
        if (refusal := self._query_refusal(name)) is not None:
            return refusal
        return json_answer({"count": call.total(len(self._query_rows(call, name)))})

    def _query_refusal(self, name: str) -> Response | None:
        if name.removeprefix(QUERY_PREFIX) not in QUERIES or not name.startswith(QUERY_PREFIX):
            return self.not_found()
        barred = self.option("no_access", ())
        if name in barred or name.removeprefix(QUERY_PREFIX) in barred:
            return json_answer({"message": "Access denied"}, 403)
        return None

    def _query_rows(self, call: Call, name: str) -> list[TextRow]:
        """Raises BadParameter where the body is no object, or names no year or, for changes, no day."""
        body = call.request.get_json(force=True, silent=True)
        if not isinstance(body, dict) or not re.fullmatch(r"\d+", str(body.get("yearid", ""))):
            raise BadParameter("yearid")
        asked = name.removeprefix(QUERY_PREFIX)
        if not asked.endswith("_changed"):
            return self._tables(call).query(asked, int(body["yearid"]))
        since = str(body.get("since", ""))
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", since) or self.option("filters", "honoured") == "refused":
            raise BadParameter("since")
        rows = self._tables(call).query(asked.removesuffix("_changed"), int(body["yearid"]))
        ignored = self.option("filters", "honoured") == "ignored"
        return [row for row in rows if ignored or row["transaction_date"] >= since]

    # --- failures ----------------------------------------------------------------------------------------------------

    def unauthorized(self) -> Response:
        challenge = 'Bearer error="invalid_token",realm="PowerSchool",error_description="The access token has expired"'
        return json_answer({"message": "The access token has expired"}, 401, {"WWW-Authenticate": challenge})

    def too_many(self, wait: float) -> Response:
        headers = {"Retry-After": str(int(wait) + 1)} if self.option("retry_after", default=False) else None
        message = f"Too many requests: this plugin must wait another {max(1, round(wait * 1000))} milliseconds"
        return json_answer({"message": message}, self.option("refusal_status", 429), headers)

    def not_found(self) -> Response:
        return json_answer({"message": "The requested resource was not found"}, 404)

    def bad_parameter(self, name: str) -> Response:
        errors = [{"resource": self.system.name, "field": name, "code": "Invalid value"}]
        return json_answer({"message": "Validation Failed", "errors": errors}, 400)


# --- shapes ------------------------------------------------------------------------------------------------------


def _count(rows: int) -> Response:
    return json_answer({"resource": {"count": rows}})


def _recorded(name: str, records: list[Any]) -> Json:
    """Tables and PowerQueries: without rows there is no `record` at all."""
    return {"name": name, **({"record": records} if records else {}), "@extensions": ""}


def _projected(row: TextRow, columns: set[str]) -> TextRow:
    return row if "*" in columns else {name: value for name, value in row.items() if name in columns}


def _search(text: str, fields: frozenset[str] | set[str]) -> Callable[[Mapping[str, str]], bool]:
    """`field==value;field=ge=value`: all must hold; `(A,P)` lists, `*` ends a prefix. Raises BadParameter."""
    conditions = [_CONDITION.match(part) for part in text.split(";") if part.strip()]
    if not all(condition and condition[1] in fields for condition in conditions):
        raise BadParameter("q")
    tests = [_condition(*condition.groups()) for condition in conditions if condition]
    return lambda row: all(test(row) for test in tests)


def _condition(field: str, operator: str, value: str) -> Callable[[Mapping[str, str]], bool]:
    if operator == "==":
        if value.startswith("("):
            options = {part.strip() for part in value.strip("()").split(",")}
            return lambda row: row.get(field) in options
        if value.endswith("*"):
            return lambda row: row.get(field, "").casefold().startswith(value[:-1].casefold())
        return lambda row: row.get(field) == value
    compare: dict[str, Callable[[Any, Any], bool]] = {
        "=gt=": lambda left, right: left > right, "=ge=": lambda left, right: left >= right,
        "=lt=": lambda left, right: left < right, "=le=": lambda left, right: left <= right,
    }  # fmt: skip
    return lambda row: field in row and compare[operator](_sortable(row[field]), _sortable(value))


def _sortable(value: str) -> tuple[int, float, str]:
    """Numbers before text, numbers by size."""
    return (0, float(value), "") if re.fullmatch(r"-?\d+(\.\d+)?", value) else (1, 0.0, value)


def _xml(response: Response) -> Response:
    """The same content as XML, which is what a client gets that does not ask for JSON."""
    content = response.get_json(force=True)
    name = next(iter(content), "empty")
    root = _element(name, content.get(name, ""))
    body = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return Response(body, response.status, content_type="application/xml;charset=UTF-8")


def _element(name: str, content: Any) -> ElementTree.Element:
    element = ElementTree.Element(name.lstrip("@"))
    if isinstance(content, dict):
        for key, value in content.items():
            element.extend(_element(key, item) for item in (value if isinstance(value, list) else [value]))
    else:
        element.text = str(content)
    return element
