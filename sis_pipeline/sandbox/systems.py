"""The systems of a district: which dialect each speaks, what that dialect can say, and where a test may bend it.
Facts only; how a dialect is spoken lives in `dialects`, what a system holds on a day in `views`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Leaving = Literal["explicit", "vanish", "tombstone"]
Dropping = Literal["dated", "vanish", "tombstone"]

_NAMES = {"first_name", "middle_name", "last_name", "birth_date", "sex", "username", "email", "phone"}
_IDS = {"ssid", "local_id"}
_RACES = {
    "hispanic_or_latino", "american_indian_or_alaska_native", "asian", "black_or_african_american",
    "native_hawaiian_or_other_pacific_islander", "white",
}  # fmt: skip
_HOME = {"home_street", "home_city", "home_state", "home_postal_code"}
_MAILING = {"mailing_street", "mailing_city", "mailing_state", "mailing_postal_code"}
_ONEROSTER = _NAMES | _IDS | _RACES | {"mobile_phone", "grade_level"}
_ONEROSTER_12 = _ONEROSTER | {"preferred_first_name", "pronouns"}
DEMOGRAPHICS = frozenset(_RACES | {"birth_date", "sex"})
"""What OneRoster keeps apart and a vendor may withhold."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one API can say. `carries` are student columns of the roster model; `scheduled` says that it has school
    enrollments with dates and codes of their own; `prior_year` that it shows the year before the active one."""

    name: str
    provider: str
    requests_per_minute: int
    carries: frozenset[str]
    leaving: Leaving
    dropping: Dropping
    scheduled: bool = False
    prior_year: bool = True
    contacts: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            "powerschool", "powerschool", 60,
            frozenset(_NAMES | _IDS | _RACES | _HOME | _MAILING
                      | {"grade_level", "graduation_year", "district_entry_date"}),
            "explicit", "dated", scheduled=True,
        ),
        Dialect(
            "infinite_campus", "infinite_campus", 100, frozenset(_ONEROSTER_12), "vanish", "vanish",
            prior_year=False, contacts=True,
        ),
        Dialect("oneroster_1.1", "oneroster", 60, frozenset(_ONEROSTER), "tombstone", "tombstone", contacts=True),
        Dialect("oneroster_1.2", "oneroster", 60, frozenset(_ONEROSTER_12), "vanish", "vanish"),
        Dialect("skyward_oneroster", "skyward", 80, frozenset(_ONEROSTER_12), "vanish", "dated"),
        Dialect(
            "skyward_sms", "skyward", 80,
            frozenset((_NAMES | _IDS | _RACES | _HOME | {"mobile_phone", "grade_level", "graduation_year"}) - {"username"}),
            "vanish", "dated", contacts=True, prior_year=False,
        ),
        Dialect(
            "skyward_qmlativ", "skyward", 80,
            frozenset(_NAMES | _IDS | _RACES | _HOME | _MAILING | {"grade_level", "graduation_year"}),
            "explicit", "dated", scheduled=True,
        ),
        Dialect("oneroster_csv", "oneroster_csv", 0, frozenset(_ONEROSTER_12), "vanish", "vanish"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class System:
    """One student information system of the district.

    `students` counts the records that are good and enrolled on day 1, those shared with another system included.
    Beside them stand the rows that must be quarantined, and who left earlier. `options` bend the dialect; each
    dialect's module names its own. Options every dialect reads: `leaving` ("explicit", "vanish", "tombstone"),
    `dropping` ("dated", "vanish", "tombstone"), `requests_per_minute`, `enforce`, `token_lifetime` (seconds),
    `grant` (`authorization_code`: a person has to grant access; see `authorization` for what else can be set),
    `forgets_modified` (0.0; the share of students whose modified times never move), `bad_rows` (default true), `demographics` (OneRoster family, default true), `pre_registered` (how many), `graduates` (false; one
    of the highest grade a day, where enrollments have codes), `stays_away` (1; days before somebody who left comes back).
    """

    name: str
    dialect: str
    students: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dialect not in DIALECTS:
            raise ValueError(f"{self.dialect!r} is no dialect of the sandbox; choose from {', '.join(DIALECTS)}")

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def speech(self) -> Dialect:
        return DIALECTS[self.dialect]

    @property
    def leaving(self) -> Leaving:
        chosen: Leaving = self.options.get("leaving", self.speech.leaving)
        return chosen

    @property
    def dropping(self) -> Dropping:
        chosen: Dropping = self.options.get("dropping", self.speech.dropping)
        return chosen

    @property
    def carries(self) -> frozenset[str]:
        """The student columns this system delivers."""
        return self.speech.carries if self.options.get("demographics", True) else self.speech.carries - DEMOGRAPHICS

    def sis_id(self, kind: str, number: int) -> str:
        """The id this system gives to its n-th object of a kind: `student`, `staff`, `school`, `section`, `seat` …"""
        return _ID_STYLES[self.dialect](self.name, kind, number)


_POWERSCHOOL_DCID = {"student": 400, "school": 20, "section": 700, "seat": 90_000, "staff": 150, "course": 30}
"""DCIDs run ahead of the table's own ids by this much: ranges overlap, so a join on the wrong one finds somebody."""


def _powerschool_id(_system: str, kind: str, number: int) -> str:
    return str(number + _POWERSCHOOL_DCID.get(kind, 0))


def _campus_id(system: str, kind: str, number: int) -> str:
    if kind in {"student", "staff", "school", "guardian", "district"}:
        return _guid(system, kind, number)
    prefix = {"seat": "s9", "teaching": "t9"}.get(kind, "")
    return f"{prefix}{number + 10_000}"


def _guid(system: str, kind: str, number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"sandbox:{system}:{kind}:{number}"))


def _padded_id(_system: str, kind: str, number: int) -> str:
    digit = {"student": "0", "staff": "5", "guardian": "7"}.get(kind)
    return f"{digit}{number:07d}" if digit else f"{kind}-{number:06d}"


def _integer_id(_system: str, kind: str, number: int) -> str:
    return str(number + {"student": 10_000, "staff": 5_000_000, "guardian": 7_000_000}.get(kind, 100))


_ID_STYLES: dict[str, Callable[[str, str, int], str]] = {
    "powerschool": _powerschool_id,
    "infinite_campus": _campus_id,
    "oneroster_1.1": _padded_id,
    "oneroster_1.2": _guid,
    "skyward_oneroster": lambda _system, kind, number: f"{kind}-{number}",
    "skyward_sms": _integer_id,
    "skyward_qmlativ": _integer_id,
    "oneroster_csv": lambda system, kind, number: _guid(system, kind, number).replace("-", "").upper(),
}
