"""PowerSchool SIS: settings, what is read for a school year, in which way, and how many calls that takes.
What the records mean is in `powerschool_records`; the plugin the district installs is in docs/powerschool_plugin."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Literal

import pandas as pd
from pydantic import Field

from sis_pipeline.connect.errors import ConfigError, SisError, source_status
from sis_pipeline.providers.base import (
    Capabilities,
    End,
    HttpSettings,
    OAuth,
    Page,
    Plan,
    Provider,
    RawSnapshot,
    Record,
    Request,
    Resource,
    Source,
    district_id,
)
from sis_pipeline.providers.decoding import json_body, member
from sis_pipeline.providers.deltas import OVERLAP, changes_of
from sis_pipeline.providers.mapping import text
from sis_pipeline.providers.pagers import HeldPages, PageNumberPager
from sis_pipeline.providers.powerschool_records import Rules, decode, standard_frames
from sis_pipeline.providers.reading import count_in
from sis_pipeline.roster.school_year import SchoolYear

ENTITIES = frozenset(
    {"schools", "academic_sessions", "students", "staff", "courses", "sections", "enrollments", "section_enrollments"}
)
EXPANSIONS = (
    "demographics", "addresses", "phones", "school_enrollment", "ethnicity_race", "contact_info", "initial_enrollment",
    "schedule_setup",
)  # fmt: skip
SCHOOL_EXPANSIONS = ("addresses", "phones", "principal")
STAFF_EXPANSIONS = ("emails", "school_affiliations")

QUERY_COLUMNS = {
    "section_enrollments": ("dcid", "students_dcid", "sections_dcid", "sectionid", "termid", "dateenrolled", "dateleft"),
    "school_enrollments": (
        "dcid", "students_dcid", "schools_dcid", "grade_level", "entrydate", "entrycode", "exitdate", "exitcode",
    ),
}  # fmt: skip
"""PowerQuery -> the columns it must give."""

CHANGE_COLUMNS = (*QUERY_COLUMNS["section_enrollments"], "transaction_date")
"""The columns of the PowerQuery of changed section enrollments. A date, not an instant."""

TABLE_COLUMNS = {
    "cc": ("dcid", "studentid", "sectionid", "termid", "dateenrolled", "dateleft"),
    "reenrollments": (
        "dcid", "studentid", "schoolid", "grade_level", "entrydate", "entrycode", "exitdate", "exitcode",
    ),
    "students": ("dcid", "id"),
    "sections": ("dcid", "id"),
}  # fmt: skip
"""Table -> the columns read where a PowerQuery is not installed."""

QUERIED_FIELDS = {
    "schools": ("dcid", "school_number"),
    "terms": ("schoolid", "isyearrec", "yearid", "firstday", "lastday"),
    "cc": ("transaction_date",),
}
"""What the PowerQueries read beyond the tables above. Both together are the access request of the plugin."""

DEFAULT_PAGE = 100
"""What a plugin allows unless its Data Configuration was changed; used where the metadata don't say."""

REFUSED = frozenset({400, 403, 404, 405})
"""How PowerSchool answers for a query that is not installed, or a table or field that the plugin may not read."""

JSON_ONLY = {"Accept": "application/json"}
"""Without it PowerSchool answers in XML."""

Way = Literal["powerquery", "table", "sections"]


def year_id(school_year: SchoolYear) -> int:
    """PowerSchool counts years from 1990: 2025-2026 is 35, and its terms have the ids 3500 to 3599."""
    return school_year.start - 1990


class PowerSchoolSettings(HttpSettings):
    """A PowerSchool server. Only `base_url` and the plugin's `client_id` have no default."""

    section_enrollments_via: Literal["auto", "powerquery", "table", "sections"] = Field(
        "auto",
        description="how to read section enrollments: the plugin's PowerQuery, the table cc, one call per section, or "
        "the first of these that the plugin allows",
    )
    section_enrollments_query: str = Field(
        "org.sis_pipeline.roster.section_enrollments", description="name of the PowerQuery", pattern=r"^[\w.]+$"
    )
    school_enrollments_query: str = Field(
        "org.sis_pipeline.roster.school_enrollments", description="name of the PowerQuery", pattern=r"^[\w.]+$"
    )
    changed_section_enrollments_query: str = Field(
        "org.sis_pipeline.roster.section_enrollments_changed",
        description="name of the PowerQuery that `reads: delta` uses",
        pattern=r"^[\w.]+$",
    )
    skip_school_numbers: tuple[str, ...] = Field(
        ("999999", "0"), description="numbers of schools that are none: graduated students, the district office"
    )
    district_office_staff: bool = Field(default=False, description="also read the staff of the district office")
    state: str | None = Field(
        None, description="the state that issues the state student ids; as PowerSchool says where unset", min_length=2
    )
    district: str | None = Field(None, description="the district that issues the student numbers", min_length=1)
    postal_code_digits: int = Field(5, ge=0, le=12, description="digits of a postal code; shorter ones get zeros")
    local_id_digits: int = Field(0, ge=0, le=20, description="digits of a student number; shorter ones get zeros")
    ssid_digits: int = Field(0, ge=0, le=20, description="digits of a state student id; shorter ones get zeros")


class PowerSchool(Provider):
    """The PowerSchool server of a district, reached through a plugin."""

    name: ClassVar[str] = "powerschool"
    title: ClassVar[str] = "PowerSchool SIS"
    Settings: ClassVar[type[PowerSchoolSettings]] = PowerSchoolSettings
    requests_per_minute: ClassVar[int] = 60

    settings: PowerSchoolSettings

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(entities=ENTITIES, historical_years=True, delta=True, tombstones=False, counts=True)

    def authentication(self) -> OAuth:
        settings = self.settings
        return settings.oauth(settings.token_url or f"{settings.base_url.rstrip('/')}/oauth/access_token")

    def plan(self, source: Source, school_year: SchoolYear, last_rows: Mapping[str, int]) -> Plan:
        """Metadata and schools are read while planning and held. Section enrollments and earlier school enrollments are
        asked for their count first, which also shows whether the plugin may read them."""
        return _Planning(self.settings, source, school_year, last_rows).plan()

    def plan_delta(
        self, source: Source, school_year: SchoolYear, since: datetime, last_rows: Mapping[str, int]
    ) -> Plan:
        """Section enrollments by the plugin's PowerQuery of changes; all else whole, because /ws/v1 can't be asked for
        changes. Without that query it is a full reading."""
        return _Planning(self.settings, source, school_year, last_rows, since=_day_before(since)).plan()

    def encode(self, resource: str, records: Sequence[Record]) -> bytes:
        """Only what comes from a PowerQuery is ever written."""
        return json.dumps({"name": resource, "record": list(records)}).encode()

    def decode(self, resource: str, body: bytes) -> Sequence[Record]:
        return decode(resource, body)

    def standardise(self, raw: RawSnapshot) -> dict[str, pd.DataFrame]:
        settings = self.settings
        digits = {"postal_code": settings.postal_code_digits} | {
            "home_postal_code": settings.postal_code_digits,
            "mailing_postal_code": settings.postal_code_digits,
            "local_id": settings.local_id_digits,
            "ssid": settings.ssid_digits,
        }
        rules = Rules(
            custom_fields=settings.custom_fields,
            skip_school_numbers=frozenset(settings.skip_school_numbers),
            state=settings.state,
            district=settings.district,
            inclusive_exits=self.exit_dates == "inclusive",
            digits=digits,
        )
        return standard_frames(raw, rules)

    def check(self, source: Source) -> str:
        metadata = decode("metadata", source.send(METADATA).body)[0]
        version = text(metadata.get("powerschool_version")) or "of an unknown version"
        return f"PowerSchool {version} answers; {_sizes(metadata).in_words()}."

    def whose(self, source: Source) -> frozenset[str]:
        """The district's uuid, which the metadata name that planning reads anyway; older servers name it elsewhere."""
        metadata = next(iter(decode("metadata", source.send(METADATA).body)), {})
        known = text(metadata.get("district_uuid"))
        if known is None:
            try:
                answer = source.send(_get("/ws/v1/district"))
            except SisError as error:
                if source_status(error) not in REFUSED:
                    raise
                return frozenset()
            what = "The district page"
            about = member(json_body(answer.body, what), ("district",), what)
            known = text(about.get("uuid") or about.get("district_number")) if isinstance(about, dict) else None
        return frozenset() if known is None else frozenset({district_id(known)})


METADATA = Request("/ws/v1/metadata", headers=JSON_ONLY, template="/ws/v1/metadata")


def _day_before(moment: datetime) -> datetime:
    """The day before, as its midnight in UTC: transaction_date is a date of the server's own zone, which is a day behind
    or ahead at most."""
    day = (moment - OVERLAP).astimezone(UTC) - timedelta(days=1)
    return day.replace(hour=0, minute=0, second=0, microsecond=0)


@dataclass(frozen=True, slots=True)
class PageSizes:
    """The largest page per kind of resource, as the plugin's Data Configuration allows; kinds it does not name are left
    out, and nothing is then proven by a short page."""

    largest: Mapping[str, int]

    def pager(self, kind: str, wanted: int | None) -> PageNumberPager:
        largest = self.largest.get(kind)
        size = min(wanted or largest or DEFAULT_PAGE, largest or DEFAULT_PAGE)
        return PageNumberPager(size, maximum=largest)

    def in_words(self) -> str:
        students, rows = self.largest.get("student"), self.largest.get("schema_table_query")
        if students is None or rows is None:
            return f"the plugin does not say how large a page may be, so pages of {DEFAULT_PAGE} are asked for"
        return f"the plugin allows pages of {students} students and of {rows} query rows"


def _sizes(metadata: Record) -> PageSizes:
    suffix = "_max_page_size"
    said = {name.removesuffix(suffix): text(value) or "" for name, value in metadata.items() if name.endswith(suffix)}
    return PageSizes({kind: int(size) for kind, size in said.items() if size.isdecimal() and int(size) > 0})


@dataclass
class _Planning:
    """One plan while it is made; `notes` collect what the person should know."""

    settings: PowerSchoolSettings
    source: Source
    year: SchoolYear
    last_rows: Mapping[str, int]
    notes: list[str] = field(default_factory=list)
    sizes: PageSizes = field(default_factory=lambda: PageSizes({}))
    since: datetime | None = None
    """From which day on changes are asked for; None for a full reading."""

    def plan(self) -> Plan:
        metadata = self._metadata()
        schools = self._held(
            "schools", "school", _get("/ws/v1/district/school", expansions=",".join(SCHOOL_EXPANSIONS))
        )
        numbers = {_text(school, "id"): _text(school, "school_number") for school in _records(schools)}
        ids = [school for school, number in numbers.items() if number not in self.settings.skip_school_numbers]
        resources = [
            metadata,
            schools,
            *self._per_school(ids),
            self._students(),
            *self._school_enrollments(),
            *self._section_enrollments(ids),
        ]
        delta = any(resource.modified for resource in resources)
        return Plan(
            resources=tuple({resource.name: resource for resource in resources}.values()),
            basis="last_snapshot" if self.last_rows else "source_counts",
            notes=tuple(self.notes),
            delta=delta,
            since=self.since if delta else None,
        )

    # --- what is read in any case ------------------------------------------------------------------------------------

    def _metadata(self) -> Resource:
        body = self.source.send(METADATA).body
        found = decode("metadata", body)
        self.sizes = _sizes(found[0]) if found else self.sizes
        self.notes.append(self._page_note())
        return Resource("metadata", METADATA, HeldPages((Page(1, body, found, end=End.WHOLE_FILE),)), ("plugin_id",))

    def _page_note(self) -> str:
        allowed, wanted = self.sizes.in_words(), self.settings.page_size
        note = f"{allowed[0].upper()}{allowed[1:]}."
        return note if wanted is None else f"{note} The setting page_size asks for {wanted} at most."

    def _per_school(self, schools: Sequence[str]) -> Iterator[Resource]:
        """Staff, courses, sections and terms: PowerSchool lists them per school only."""
        if not self.last_rows:
            self.notes.append("On the first read, lists per school are taken as one page each.")
        for school in schools:
            yield self._listed("terms", school, "term", q=self._year_filter("terms"))
            yield self._staff(school)
            yield self._listed("courses", school, "course")
            yield self._listed("sections", school, "section", q=self._year_filter("sections"))
        if self.settings.district_office_staff:
            yield self._staff("0")

    def _year_filter(self, kind: str) -> str:
        """What keeps other years out where the server filters; where it does not, standardising does."""
        return f"{'start_year' if kind == 'terms' else 'term.start_year'}=={self.year.start}"

    def _staff(self, school: str) -> Resource:
        return self._listed("staff", school, "staff", expansions=",".join(STAFF_EXPANSIONS))

    def _listed(self, kind: str, school: str, singular: str, **params: str) -> Resource:
        request = _get(f"/ws/v1/school/{school}/{singular}", f"/ws/v1/school/{{id}}/{singular}", **params)
        return self._resource(f"{kind}-{school}", singular, request, about={"school": school})

    def _students(self) -> Resource:
        """All students of the district whatever their status: who left matters, and there is no default filter here."""
        tables = {path.split(".")[1] for path in self.settings.custom_fields.values() if path.startswith("extension.")}
        extensions = {"extensions": ",".join(sorted(tables))} if tables else {}
        request = _get("/ws/v1/district/student", expansions=",".join(EXPANSIONS), **extensions)
        resource = self._resource("students", "student", request, count=_get("/ws/v1/district/student/count"))
        if resource.expected_rows is not None or resource.count is None:
            return resource
        return self._resource(
            "students", "student", request, count=resource.count, rows=count_in(self.source.send(resource.count))
        )

    # --- what is read in the best way the plugin allows --------------------------------------------------------------

    def _school_enrollments(self) -> list[Resource]:
        """Enrollments before the current one; /ws/v1 shows the current one only."""
        query = self._queried("school_enrollments", self.settings.school_enrollments_query)
        if query is not None:
            return [query]
        first, after = self.year.first_day.isoformat(), self.year.day_after.isoformat()
        table = self._table("school_enrollments", "reenrollments", f"entrydate=lt={after};exitdate=ge={first}")
        if table is not None:
            self.notes.append(
                "Earlier school enrollments are read from the table reenrollments: the PowerQuery is missing."
            )
            return [table, *self._id_maps("students")]
        if self.year < SchoolYear.on(datetime.now(UTC).date()):
            raise ConfigError(
                f"Planning the school year {self.year}: this plugin may read neither the PowerQuery "
                f"{self.settings.school_enrollments_query} nor the table reenrollments, which alone tell earlier years.",
                code="config.plugin_access",
                advice="Install the plugin of docs/powerschool_plugin, or sync the current school year only.",
            )
        self.notes.append(
            "Earlier school enrollments can't be read: who changed schools within the year shows with the last one only."
        )
        return []

    def _section_enrollments(self, schools: Sequence[str]) -> list[Resource]:
        via = self.settings.section_enrollments_via
        if via in {"auto", "powerquery"}:
            query = self._changed_seats() or self._queried(
                "section_enrollments", self.settings.section_enrollments_query
            )
            if query is not None:
                return [query]
        if via in {"auto", "table"}:
            tables = self._seats_from_table()
            if tables:
                self.notes.append("Section enrollments are read from the table cc.")
                return tables
        if via in {"auto", "sections"}:
            self.notes.append(
                "Section enrollments are read with one call per section, which is slow; install the plugin."
            )
            return list(self._seats_per_section(schools))
        raise ConfigError(
            f"Planning section enrollments: section_enrollments_via is {via}, but this plugin may not read them so.",
            code="config.plugin_access",
            advice="Install the plugin of docs/powerschool_plugin, or set section_enrollments_via to auto.",
        )

    def _changed_seats(self) -> Resource | None:
        """The section enrollments that changed, or None where that is not asked for or the plugin has no such query."""
        if self.since is None:
            return None
        since = self.since.date().isoformat()
        query = self._queried("section_enrollments", self.settings.changed_section_enrollments_query, since=since)
        if query is None:
            self.notes.append("The plugin has no PowerQuery of changes (docs/powerschool_plugin): everything is read.")
            return None
        self.notes.append("Section enrollments are read by their transaction_date, everything else whole.")
        return changes_of(query, query.request, ("transaction_date",), rows=query.expected_rows)

    def _seats_from_table(self) -> list[Resource]:
        """Two filters, because a dropped class has negative ids."""
        low, high = year_id(self.year) * 100, (year_id(self.year) + 1) * 100
        kept = self._table("section_enrollments", "cc", f"termid=ge={low};termid=lt={high}")
        dropped = self._table("section_enrollments-dropped", "cc", f"termid=gt=-{high};termid=le=-{low}")
        if kept is None or dropped is None:
            return []
        return [kept, dropped, *self._id_maps("students", "sections")]

    def _seats_per_section(self, schools: Sequence[str]) -> Iterator[Resource]:
        """The sections of the year have to be known while planning, so terms and sections are read now and held."""
        for school in schools:
            terms, sections = self._held_list("terms", school, "term"), self._held_list("sections", school, "section")
            yield from (terms, sections)
            year = {_text(term, "id") for term in _records(terms) if _text(term, "start_year") == str(self.year.start)}
            for section in _records(sections):
                if _text(section, "term_id") in year:
                    yield self._seats_of(_text(section, "id"))

    def _held_list(self, kind: str, school: str, singular: str) -> Resource:
        listed = self._listed(kind, school, singular, q=self._year_filter(kind))
        return self._held(listed.name, singular, listed.request, about=listed.about)

    def _seats_of(self, section: str) -> Resource:
        template = "/ws/v1/section/{id}/section_enrollment"
        request = _get(template.replace("{id}", section), template)
        return self._resource(f"section_enrollments-{section}", "section_enrollment", request)

    def _id_maps(self, *tables: str) -> Iterator[Resource]:
        """Tables join by ids that are not the DCIDs of /ws/v1, so the pairs are read too."""
        low, high = year_id(self.year) * 100, (year_id(self.year) + 1) * 100
        filters = {"students": None, "sections": f"termid=ge={low};termid=lt={high}"}
        for table in tables:
            resource = self._table(f"{table.removesuffix('s')}_ids", table, filters[table])
            if resource is None:
                raise ConfigError(
                    f"Planning the tables: the plugin may read section or school enrollments but not the table {table}.",
                    code="config.plugin_access",
                    advice="Install the plugin of docs/powerschool_plugin; it asks for all fields that are needed.",
                )
            yield resource

    # --- resources ---------------------------------------------------------------------------------------------------

    def _queried(self, name: str, query: str, **arguments: str) -> Resource | None:
        """A PowerQuery, or None where the plugin does not have it."""
        path, body = f"/ws/schema/query/{query}", {"yearid": str(year_id(self.year)), **arguments}
        request = Request(path, method="POST", json=body, headers=JSON_ONLY, template=path)
        return self._probed(name, request, Request(f"{path}/count", method="POST", json=body, headers=JSON_ONLY))

    def _table(self, name: str, table: str, query: str | None) -> Resource | None:
        """A table with its projection, or None where the plugin may not read it."""
        path, q = f"/ws/schema/table/{table}", {"q": query} if query else {}
        request = _get(path, projection=",".join(TABLE_COLUMNS[table]), **q)
        return self._probed(name, request, _get(f"{path}/count", **q))

    def _probed(self, name: str, request: Request, count: Request) -> Resource | None:
        """The count tells both whether we may read and how much there is."""
        try:
            rows = count_in(self.source.send(count))
        except SisError as error:
            if source_status(error) in REFUSED:
                return None
            raise
        return self._resource(name, "schema_table_query", request, count=count, rows=rows, identity="dcid")

    def _resource(
        self,
        name: str,
        kind: str,
        request: Request,
        *,
        count: Request | None = None,
        rows: int | None = None,
        about: Mapping[str, str] | None = None,
        identity: str = "id",
    ) -> Resource:
        """`count` is derived from the path where it is not given."""
        return Resource(
            name=name,
            request=request,
            pager=self.sizes.pager(kind, self.settings.page_size),
            identity=(identity,),
            expected_rows=self.last_rows.get(name) if rows is None else rows,
            count=count or _count_of(request),
            about=about or {},
        )

    def _held(self, name: str, kind: str, request: Request, about: Mapping[str, str] | None = None) -> Resource:
        """A resource whose pages are read now, because the plan depends on them."""
        pager = self.sizes.pager(kind, self.settings.page_size)
        pages = tuple(pager.pages(self.source.send, request, lambda body: decode(name, body)))
        return Resource(name, request, HeldPages(pages), ("id",), about=about or {})


def _get(path: str, template: str | None = None, **params: str) -> Request:
    return Request(path, params, headers=JSON_ONLY, template=template or path)


def _count_of(request: Request) -> Request:
    """The count sibling of a collection, with the same filter."""
    params = {name: value for name, value in request.params.items() if name == "q"}
    return Request(f"{request.path}/count", params, headers=JSON_ONLY, template=f"{request.template}/count")


def _records(resource: Resource) -> Iterator[Record]:
    pager = resource.pager
    if isinstance(pager, HeldPages):
        for page in pager.held:
            yield from page.records


def _text(record: Record, name: str) -> str:
    return text(record.get(name)) or ""
