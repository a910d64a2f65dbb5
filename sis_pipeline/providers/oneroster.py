"""OneRoster REST 1.1 and 1.2, any vendor: settings, what is read, and in which order.
What the records mean is in `oneroster_records`; a vendor's own rules live in the vendor's module."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any, ClassVar, Literal

import pandas as pd
from pydantic import Field

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.providers.base import (
    Capabilities,
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
from sis_pipeline.providers.columns import Reader
from sis_pipeline.providers.decoding import Pieces, json_body, member, pieces, records
from sis_pipeline.providers.deltas import OVERLAP, changes_of
from sis_pipeline.providers.oneroster_frames import ENTITIES, standard_frames
from sis_pipeline.providers.oneroster_records import PEOPLE, RosterSettings, session_years
from sis_pipeline.providers.pagers import HeldPages, OffsetPager
from sis_pipeline.roster.school_year import SchoolYear

PAGE_SIZE = 5_000
"""What Microsoft School Data Sync asks of every server, so servers are used to it; smaller caps are clamped silently."""
NOT_OFFERED = frozenset({401, 403, 404})
"""Statuses with which servers answer for a collection that the key may not read or that they do not have."""

SCOPE_PREFIX = "https://purl.imsglobal.org/spec/or/{version}/scope/"
ROSTER_SCOPES = ("roster-core.readonly", "roster.readonly")
DEMOGRAPHICS_SCOPE = "roster-demographics.readonly"

DISTRICT_TYPES = frozenset({"district", "local"})

ENVELOPES: dict[str, tuple[str, ...]] = {
    "orgs": ("orgs", "schools"),
    "academicSessions": ("academicSessions", "terms", "gradingPeriods"),
    "courses": ("courses",),
    "classes": ("classes",),
    "users": ("users", "students", "teachers"),
    "students": ("users", "students"),
    "teachers": ("users", "teachers"),
    "enrollments": ("enrollments",),
    "demographics": ("demographics",),
}
"""Collection -> the envelope keys accepted, the standard one first. None of them is an error, not an empty page."""


class OneRosterSettings(HttpSettings, RosterSettings):
    """A OneRoster REST service. `base_url` is the whole rostering base, up to and without `/orgs`."""

    token_url: str = Field(
        description="the OAuth token endpoint; it can't be derived from the base URL; no credentials"
    )
    version: Literal["1.1", "1.2"] = Field("1.2", description="the OneRoster version the base URL speaks")
    people: Literal["users", "students_and_teachers"] = Field(
        "users",
        description="read people from /users, or from /students and /teachers (then without guardians and other staff)",
    )
    sort: bool = Field(
        default=False, description="ask for `sort=sourcedId`, where the server accepts it: pages then can't drift"
    )


class OneRoster(Provider):
    """Any OneRoster 1.1 or 1.2 rostering service.

    Users may come with a `password`. It is never mapped, so no frame or log has it; raw pages stay as they came, because
    asking for `fields` without it is not widely supported. Have the district take it out of the export.
    """

    name: ClassVar[str] = "oneroster"
    title: ClassVar[str] = "OneRoster 1.1 and 1.2"
    Settings: ClassVar[type[OneRosterSettings]] = OneRosterSettings
    requests_per_minute: ClassVar[int] = 60
    refused_token_statuses: ClassVar[frozenset[int]] = frozenset({401})

    settings: OneRosterSettings

    @property
    def capabilities(self) -> Capabilities:
        entities = ENTITIES if self.settings.people == "users" else ENTITIES - {"contacts"}
        return Capabilities(entities=entities, historical_years=True, delta=True, tombstones=True, counts=True)

    def authentication(self) -> OAuth:
        scope, fallbacks = self._scopes()
        return self.settings.oauth(
            token_url=self.token_url,
            scope=scope,
            scope_fallbacks=fallbacks,
            refused_token_statuses=self.refused_token_statuses,
        )

    @property
    def token_url(self) -> str:
        return self.settings.token_url

    def _scopes(self) -> tuple[str | None, tuple[str | None, ...]]:
        """The scope to ask for and those to fall back to; a scope that is set is asked for as it is, `""` as none."""
        if self.settings.scope is not None:
            return self.settings.scope or None, ()
        prefix = SCOPE_PREFIX.format(version="v1p1" if self.settings.version == "1.1" else "v1p2")
        core = " ".join(prefix + scope for scope in ROSTER_SCOPES)
        return f"{core} {prefix}{DEMOGRAPHICS_SCOPE}", (core, None)

    def plan(self, source: Source, school_year: SchoolYear, last_rows: Mapping[str, int]) -> Plan:
        """The flat collections, people in one of two ways. The sessions are read first and held: they say whether the
        year is there at all, and which one the undated memberships speak of."""
        held = tuple(self._pages(source, "academicSessions"))
        exposed = session_years(record for page in held for record in page.records)
        self._require(school_year, exposed)
        active = active_year(exposed, datetime.now(UTC).date())
        about = {"active_year": active.key}
        people = ["users"] if self.settings.people == "users" else ["students", "teachers"]
        return Plan(
            resources=(
                Resource(
                    "academicSessions", self._request("academicSessions"), HeldPages(held), ("sourcedId",), about=about
                ),
                *(
                    Resource(
                        name,
                        self._request(name),
                        self._pager,
                        ("sourcedId",),
                        expected_rows=last_rows.get(name),
                        optional=NOT_OFFERED if name == "demographics" else frozenset(),
                    )
                    for name in ("orgs", "courses", "classes", *people, "enrollments", "demographics")
                ),
            ),
            basis="last_snapshot" if last_rows else "first_read",
        )

    def plan_delta(
        self, source: Source, school_year: SchoolYear, since: datetime, last_rows: Mapping[str, int]
    ) -> Plan:
        """Everything by `dateLastModified` but the sessions, which are few and say which year is active."""
        asked = since - OVERLAP
        whole = self.plan(source, school_year, last_rows)
        return replace(
            whole,
            resources=tuple(self._changes(resource, asked) for resource in whole.resources),
            notes=(*whole.notes, "academicSessions are read whole, everything else by dateLastModified."),
            delta=True,
            since=asked,
        )

    def _changes(self, resource: Resource, asked: datetime) -> Resource:
        """`>` and not `>=`, which not every vendor documents; within the overlap a second makes no difference. People
        say that they are changes: a tombstone among them counts even where it attends nothing."""
        if resource.name == "academicSessions":
            return resource
        moment = asked.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        params = {**resource.request.params, "filter": f"dateLastModified>'{moment}'"}
        about = {"delta": "true"} if resource.name in PEOPLE else {}
        named = replace(resource, about={**resource.about, **about})
        return changes_of(named, replace(resource.request, params=params), ("dateLastModified",))

    def encode(self, resource: str, records: Sequence[Record]) -> bytes:
        return json.dumps({ENVELOPES[resource][0]: list(records)}).encode()

    def decode(self, resource: str, body: bytes) -> Sequence[Record]:
        what = f"The {resource} page"
        return records(member(json_body(body, what), ENVELOPES[resource], what), what)

    def split(self, resource: str, body: bytes) -> Pieces | None:
        """The records of a page in their own bytes; None for what only `decode` can read. A subclass that overrides `decode`
        and not this is given whole pages."""
        return pieces(body, ENVELOPES[resource])

    def _reader(self) -> Reader:
        def decode(resource: str, body: bytes, _: object) -> Sequence[Record]:
            return self.decode(resource, body)

        decides = next(one for one in type(self).__mro__ if vars(one).keys() & {"decode", "split"})
        return Reader(decode, self.split) if "split" in vars(decides) else Reader(decode)

    def standardise(self, raw: RawSnapshot) -> dict[str, pd.DataFrame]:
        frames = standard_frames(raw, self._reader(), self.settings, self.exit_dates, self.settings.custom_fields)
        return {entity: frame for entity, frame in frames.items() if entity in self.capabilities.entities}

    def check(self, source: Source) -> str:
        next(self._pages(source, "orgs"))
        return f"{self.title}: the key works and the organisations can be read."

    def whose(self, source: Source) -> frozenset[str]:
        return districts_among(record for page in self._pages(source, "orgs") for record in page.records)

    @cached_property
    def _pager(self) -> OffsetPager:
        return OffsetPager(self.settings.page_size or PAGE_SIZE, totals=True)

    def _pages(self, source: Source, resource: str) -> Iterator[Page]:
        return self._pager.pages(source.send, self._request(resource), lambda body: self.decode(resource, body))

    def _request(self, resource: str, **params: str) -> Request:
        order = {"sort": "sourcedId", "orderBy": "asc"} if self.settings.sort else {}
        return Request(f"/{resource}", {**order, **params}, template=f"/{resource}")

    def _require(self, school_year: SchoolYear, exposed: Mapping[SchoolYear, Any]) -> None:
        """Raises ConfigError for a year the source does not show: reading it would look as if everybody had left."""
        if school_year not in exposed:
            shown = ", ".join(year.key for year in sorted(exposed)) or "no school year at all"
            raise ConfigError(
                f"Planning the school year {school_year}: {self.title} at this address shows {shown}.",
                code="config.school_year",
                advice="Choose a year the system shows; a district may have to open others to this key.",
            )


def districts_among(orgs: Iterable[Record]) -> frozenset[str]:
    """The organisations that are districts (OneRoster 1.2 also calls one `local`), by sourcedId and identifier.

    A consortium has several. Both ids, because a sourcedId is often just a number that the next district has as well.
    """
    return frozenset(
        district_id(org.get("sourcedId"), org.get("identifier"))
        for org in orgs
        if str(org.get("type")).casefold() in DISTRICT_TYPES and org.get("status") != "tobedeleted"
    )


def active_year(exposed: Mapping[SchoolYear, date | None], today: date) -> SchoolYear:
    """The year that undated memberships speak of: the latest that has begun by the source's own calendar, else the first.

    `exposed` maps each year shown to its first day. At least one year must be shown.
    """
    begun = [year for year, first in exposed.items() if (first or year.first_day) <= today]
    return max(begun) if begun else min(exposed)
