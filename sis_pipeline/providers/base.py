"""The contract a SIS plugin fulfils: settings, capabilities, authentication, a plan of reads, and standard frames.
Pagers live in `pagers`, the mapping machinery in `mapping`, discovery in `registry`; nothing here knows a vendor."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Literal, Protocol, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from sis_pipeline.connect.addresses import address_problem, header_problem, names_a_credential, query_problem
from sis_pipeline.connect.contract import Answer, ClientAuth, OAuth, Request, Source
from sis_pipeline.connect.errors import ConfigError, InternalError
from sis_pipeline.roster.model import STUDENTS
from sis_pipeline.roster.school_year import SchoolYear

__all__ = [
    "CONTRACT_VERSION", "Answer", "Capabilities", "Decode", "End", "HttpSettings", "OAuth", "Origin", "Page", "Pager",
    "Plan",
    "Provider", "ProviderSettings", "RawSnapshot", "Record", "Request", "Resource", "Send", "Source", "district_id", "fingerprint",
]  # fmt: skip

CONTRACT_VERSION = 1
"""Raised when the contract changes in a way that an existing plugin must follow; the registry refuses other versions."""

Record = dict[str, Any]
"""One record as the vendor wrote it, decoded but not renamed."""


class ProviderSettings(BaseModel):
    """Settings every provider has; a provider adds its own by subclassing. Secrets are not settings: they live in the vault.

    Validated when an integration is added or changed. Errors never repeat the input.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    page_size: int | None = Field(
        None, ge=1, le=100_000, description="rows asked for per page; the largest the source allows where unset"
    )
    requests_per_minute: int | None = Field(
        None, ge=1, le=6_000, description="the source's rate limit; the vendor's default where unset"
    )
    exit_dates: Literal["exclusive", "inclusive"] | None = Field(
        None,
        description="whether an end date is the first day away or the last day there; the vendor's default where unset",
    )
    custom_fields: dict[str, str] = Field(
        default_factory=dict,
        description="student column -> path in the vendor's student record, for districts that keep a value elsewhere",
    )
    gone: tuple[str, ...] = Field(
        (),
        description="collections that the source does not offer or fill any more, by the names that an incomplete "
        "reading gives them: that nothing comes is then no gap. Take it out again after a complete reading",
    )

    @field_validator("custom_fields")
    @classmethod
    def _name_student_columns(cls, fields: dict[str, str]) -> dict[str, str]:
        unknown = sorted(set(fields) - set(STUDENTS.names))
        if unknown:
            raise ValueError(f"students have no column {', '.join(unknown)}")
        if without := sorted(column for column, path in fields.items() if not path.strip()):
            raise ValueError(f"{', '.join(without)} needs a path in the vendor's record")
        return fields


class HttpSettings(ProviderSettings):
    """Settings of a provider that is reached over HTTP."""

    base_url: str = Field(description="where the API lives; https, or http on loopback; no query, no credentials")
    token_url: str | None = Field(
        None, description="the OAuth token endpoint; derived only where the vendor fixes it; no credentials"
    )
    client_id: str = Field(description="OAuth client id (or API key)", min_length=1)
    client_auth: ClientAuth = Field(
        "basic",
        description="how the client authenticates at the token endpoint; `none` for a public client, which has no secret",
    )
    grant: Literal["client_credentials", "authorization_code"] = Field(
        "client_credentials",
        description="authorization_code where a person grants access, by `sis oauth authorize KEY`",
    )
    authorize_url: str | None = Field(
        None, description="authorization_code: where the person grants access; discovered from `issuer` where unset"
    )
    revoke_url: str | None = Field(
        None, description="where tokens are given back (RFC 7009); discovered from `issuer` where unset"
    )
    issuer: str | None = Field(
        None, description="the authorization server's issuer (RFC 8414), written exactly as it names itself"
    )
    scope: str | None = Field(None, description="OAuth scopes, space separated; the vendor's default where unset")
    rate_group: str | None = Field(
        None, min_length=1, description="integrations that share one vendor limit name the same group"
    )
    extra_headers: dict[str, str] = Field(
        default_factory=dict, description="headers sent with every data call; never credentials"
    )
    private_addresses: bool = Field(
        default=False, description="whether the system is inside the own network, at an address that is not public"
    )
    connect_timeout: float = Field(10, gt=0, le=120, description="seconds")
    read_timeout: float = Field(120, gt=0, le=900, description="seconds between two bytes")
    total_timeout: float = Field(300, gt=0, le=3600, description="seconds for one whole answer")
    concurrency: int = Field(
        1, ge=1, le=8, description="collections read at once, all within the one rate limit; for slow systems"
    )
    reads: Literal["full", "delta"] = Field(
        "full",
        description="delta: between full readings ask only for what changed, where the system can tell; nobody is "
        "withdrawn until the next full reading proves the absence",
    )
    full_read_days: int = Field(
        7,
        ge=1,
        le=31,
        description="delta: days after which a sync reads everything again; what was missed is published",
    )

    @field_validator("base_url", "token_url", "authorize_url", "revoke_url", "issuer")
    @classmethod
    def _address_may_be_called(cls, url: str | None, field: ValidationInfo) -> str | None:
        if url is None:
            return None
        # A token URL may need a query: Infinite Campus wants its application there. An issuer has none (RFC 8414 2).
        problem = address_problem(url) or query_problem(url, allowed=field.field_name not in {"base_url", "issuer"})
        if problem:
            raise ValueError(f"the address {problem}")
        return url

    @field_validator("extra_headers")
    @classmethod
    def _headers_may_be_sent(cls, headers: dict[str, str]) -> dict[str, str]:
        problems = {problem for name, value in headers.items() if (problem := header_problem(name, value))}
        if any(names_a_credential(name) for name in headers):
            problems.add("name one like a credential; credentials belong in the vault")
        if problems:
            raise ValueError(f"the headers {', and '.join(sorted(problems))}")
        return headers

    @model_validator(mode="after")
    def _grant_has_what_it_needs(self) -> Self:
        by_person = self.grant == "authorization_code"
        if by_person and not (self.authorize_url or self.issuer):
            raise ValueError(
                "the grant authorization_code needs authorize_url, or issuer where the server publishes its metadata"
            )
        if self.client_auth == "none" and not by_person:
            raise ValueError("client_auth none goes with the grant authorization_code only: other grants need a secret")
        return self

    def oauth(self, token_url: str | None = None, **of_the_vendor: Any) -> OAuth:
        """These settings as the authentication shape; `of_the_vendor` are further fields of OAuth, or other values.

        `token_url`: what the vendor makes of the setting. Raises ConfigError where there is none: the client's secret
        goes there, so the address is never learned while running.
        """
        known = token_url or self.token_url
        if known is None:
            raise ConfigError(
                "The setting token_url is missing.",
                code="config.setting",
                advice="Set it to the system's OAuth token endpoint.",
            )
        common = {name: getattr(self, name) for name in _OAUTH_SETTINGS}
        return OAuth(**(common | {"token_url": known, "scope": self.scope or None} | of_the_vendor))


_OAUTH_SETTINGS = ("client_id", "client_auth", "grant", "authorize_url", "revoke_url", "issuer")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the source can do; the pipeline asks here instead of knowing vendors.

    `historical_years`: other school years than the active one can be read. `delta`: can be asked for changes only.
    `tombstones`: says so when a record is deleted. `counts`: tells how many rows there are. `entities`: what it
    delivers. `exit_dates`: what its end dates mean unless a setting says otherwise.
    """

    entities: frozenset[str]
    historical_years: bool
    delta: bool
    tombstones: bool
    counts: bool
    exit_dates: Literal["exclusive", "inclusive"] = "exclusive"


class End(StrEnum):
    """How a reading knows that nothing is missing at its end."""

    SHORT_PAGE = "short_page"
    """The source gave fewer rows than its proven page size."""
    EMPTY_PAGE = "empty_page"
    """Nothing came behind the last row."""
    TOTAL = "total"
    """The rows received reach the source's own count."""
    LAST_LINK = "last_link"
    """The source's protocol says so: no next link where one is always given (cursor, Paging.Next)."""
    WHOLE_FILE = "whole_file"
    """A file, read to its end, with a proven closing (length, zip directory)."""
    UNPROVEN = "unproven"
    """Reading stopped without proof (page cap, repeated page, loop)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The request a page answers, as `fingerprint` writes it, and what of the answer is needed to go on behind it.

    `headers` are the paging headers, lower-case; `token_version` is None where it is not known.
    """

    request: str
    headers: Mapping[str, str]
    token_version: int | None = None


def fingerprint(request: Request) -> str:
    """SHA-256 of what a request asks for: equal for equal questions, and telling nothing of their values."""
    asked = [request.method, request.path, dict(request.params), request.json, dict(request.headers)]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=list).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Page:
    """One page: the body as the SIS sent it, how many records it holds, and what it says about the whole."""

    number: int
    body: bytes
    records: Sequence[Record]
    total: int | None = None
    end: End | None = None
    """Set on the last page only."""
    repeated: bool = False
    """The body is that of an earlier page, also when asked for again."""
    hollow: bool = False
    """Nothing was on it, also when asked for again, and yet the source names a page behind it."""
    origin: Origin | None = None
    """None for a page that a later reading can't take over: it was made up, or read from a file."""
    kept: bool = False
    """An interrupted reading had kept it already."""
    known: Sequence[Record] | None = None
    """What the body holds ahead of `records`, where the page was asked for from the last record of the one before: that
    record, unless the list moved in between. None for a page that does not overlap."""


Send = Callable[[Request], Answer]
Decode = Callable[[bytes], Sequence[Record]]
"""Body -> records. Raises ContractError when the body is not what the API promises (a missing envelope key is not an empty page)."""


class Pager(ABC):
    """Walks the pages of one resource, and proves the end or says it could not."""

    @property
    def resumes(self) -> Literal["never", "same_token", "any_token"]:
        """Whether an interrupted walk may go on behind its last page: where pages are places in a list, with any access
        token; where they are a cursor's, with the one that the cursor was given for."""
        return "never"

    @abstractmethod
    def pages(self, send: Send, request: Request, decode: Decode) -> Iterator[Page]:
        """Yield every page in order; the last one carries `end`."""

    @abstractmethod
    def calls_for(self, rows: int) -> int:
        """How many calls reading that many rows takes, the count calls it makes itself included."""


RESOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""Resources name folders: nothing that could traverse or separate."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One collection to read: its request, its pager, and what is known before it is read.

    `name` is the folder of its raw pages, hence RESOURCE_NAME. `identity` is the path of the record id, for counting distinct records
    across pages. `count` reads the source's own count and is called before and after a reading of more than one
    page. `optional` lists the statuses that mean "not offered to us": the resource is then skipped and reported.
    """

    name: str
    request: Request
    pager: Pager
    identity: tuple[str, ...]
    expected_rows: int | None = None
    count: Request | None = None
    optional: frozenset[int] = frozenset()
    about: Mapping[str, str] = field(default_factory=dict)
    """Facts the mapping needs beside the records, kept with the pages (which school a per-school list is of)."""
    last_pages: int = 0
    """Pages the last reading took; see Plan.after."""
    modified: tuple[str, ...] = ()
    """Path of a record's modified time where only changes are asked for; see deltas.changes_of."""

    @property
    def calls(self) -> int:
        """Calls for the expected rows: the pages and, where they are more than one, the count before and after. A count
        also proves a last page that is full, which otherwise takes a look behind it."""
        rows = self.expected_rows or 0
        alone = self.pager.calls_for(rows)
        if 0 < alone < self.last_pages:
            return self.last_pages
        if self.count is None or alone <= 1:
            return alone
        pages = min(alone, self.pager.calls_for(rows - 1))
        return pages + (2 if pages > 1 else 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sync will read, worked out before it starts.

    `calls` are those still to be made: pages that planning read are among the resources and cost nothing more (see
    pagers.HeldPages). `basis` says what the expected rows rest on: the last snapshot, the source's counts, or nothing
    yet.
    """

    resources: tuple[Resource, ...]
    basis: Literal["last_snapshot", "source_counts", "first_read"]
    notes: tuple[str, ...] = ()
    """What a person should know: a page size the plugin allows, a year that is not exposed."""
    delta: bool = False
    """The source gives changes only: the snapshot's verdict is then `delta`, whatever its readings prove."""
    since: datetime | None = None
    """From when on changes were asked for, the overlap included; None where the source chose what a delta holds."""

    @property
    def calls(self) -> int:
        return sum(resource.calls for resource in self.resources)

    def after(self, last_pages: Mapping[str, int]) -> Plan:
        """The plan in the light of the last full reading: a source that clamps its pages silently takes more than
        computed. It says nothing about changes."""
        known = (
            one if one.modified else replace(one, last_pages=last_pages.get(one.name, 0)) for one in self.resources
        )
        return replace(self, resources=tuple(known))


class RawSnapshot(Protocol):
    """The raw pages of one snapshot, as store keeps them, given to `Provider.standardise`."""

    school_year: SchoolYear

    @property
    def resources(self) -> Sequence[str]: ...

    def bodies(self, resource: str) -> Iterator[tuple[Mapping[str, str], bytes]]:
        """(about, body) of every page of a resource, in order; nothing for a resource that was skipped."""


def district_id(*parts: object) -> str:
    """One district's ids as one word: `7f3c/3400001`. What no id looks like is replaced by a short hash of it."""
    said = "/".join(str(part).strip() for part in parts if part not in (None, ""))
    if re.fullmatch(r"[!-~]{1,120}", said):
        return said
    return f"sha256:{hashlib.sha256(said.encode('utf-8', 'replace')).hexdigest()[:16]}"


class Provider(ABC):
    """One student information system. Construct with validated settings; construction does no I/O."""

    contract_version: ClassVar[int] = CONTRACT_VERSION
    name: ClassVar[str]
    """Slug, also the prefix of its assets: `powerschool/raw_roster`."""
    title: ClassVar[str]
    Settings: ClassVar[type[ProviderSettings]]
    requests_per_minute: ClassVar[int]
    """The vendor's default rate limit."""

    def __init__(self, settings: ProviderSettings) -> None:
        self.settings = settings

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    def authentication(self) -> OAuth | None:
        """None for a source that needs none (files)."""

    @abstractmethod
    def plan(self, source: Source, school_year: SchoolYear, last_rows: Mapping[str, int]) -> Plan:
        """What to read for a school year. May call the source (its metadata, its schools); `last_rows` are the rows per
        resource as last proven, empty on the first. Raises ConfigError for a year the source can't give."""

    def plan_delta(
        self,
        source: Source,  # noqa: ARG002 providers that can't tell changes don't ask
        school_year: SchoolYear,  # noqa: ARG002
        since: datetime,  # noqa: ARG002
        last_rows: Mapping[str, int],  # noqa: ARG002
    ) -> Plan:
        """What to read so that it holds all that changed since `since`, by the source's own clock; only where
        `capabilities.delta`.

        The same resources as in `plan`, those that can't be asked for changes whole (`deltas.changes_of` makes the
        others). `since` is when the reading before began: subtract an overlap. Raises what `plan` raises.
        """
        raise InternalError(
            f"The provider {self.name} says that it can read changes, but not how.", code="internal.plugin"
        )

    def encode(self, resource: str, records: Sequence[Record]) -> bytes:  # noqa: ARG002
        """One raw page that `decode` reads as exactly these records; only where `capabilities.delta`."""
        raise InternalError(
            f"The provider {self.name} says that it can read changes, but can't write {resource}.",
            code="internal.plugin",
        )

    @abstractmethod
    def decode(self, resource: str, body: bytes) -> Sequence[Record]:
        """The records of one raw page. Raises ContractError for a body the API does not allow."""

    @abstractmethod
    def standardise(self, raw: RawSnapshot) -> dict[str, pd.DataFrame]:
        """The raw pages as standard frames, one per entity of `capabilities.entities`, columns as in roster.model.

        All columns are text (pandas `str`), lists as JSON arrays, booleans `true`/`false`, dates ISO, timestamps ISO
        in UTC, missing as null; typing and validation come after, in roster.validate, so that one bad value
        quarantines one row.
        """

    @abstractmethod
    def check(self, source: Source) -> str:
        """One cheap call that proves settings and credentials; a sentence for the person (`sis integration test`)."""

    def whose(self, source: Source) -> frozenset[str]:  # noqa: ARG002 providers that can't tell don't ask
        """The districts whose data these credentials reach, as `district_id` writes them; empty where it can't tell.

        Asked before anything is read, and compared with the answer of the first time: a mixed-up credential must not
        bring another district's students. One or two cheap calls; what planning asks again is answered from memory.
        """
        return frozenset()

    @property
    def exit_dates(self) -> Literal["exclusive", "inclusive"]:
        return self.settings.exit_dates or self.capabilities.exit_dates

    @property
    def rate(self) -> int:
        """Requests a minute this integration may make."""
        return self.settings.requests_per_minute or self.requests_per_minute
