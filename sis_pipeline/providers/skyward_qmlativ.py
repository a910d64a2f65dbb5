"""Skyward Qmlativ: objects by module and name, only the fields asked for, joined here into people, sections and
enrollments. Settings and the choice of flavor are in `skyward`."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, ClassVar

import pandas as pd
import yaml

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.providers import mapping, rostering
from sis_pipeline.providers.base import (
    Capabilities,
    OAuth,
    Plan,
    Provider,
    RawSnapshot,
    Record,
    Request,
    Resource,
    Source,
    district_id,
)
from sis_pipeline.providers.decoding import json_body, member, records
from sis_pipeline.providers.deltas import OVERLAP, REFUSED, ZONELESS, changes_of
from sis_pipeline.providers.mapping import boolean_text, code_table, date_text, day_after, text
from sis_pipeline.providers.pagers import NextPathPager
from sis_pipeline.providers.skyward_settings import SkywardSettings
from sis_pipeline.providers.skyward_sms import RACES, session_frame, session_id
from sis_pipeline.roster.school_year import SchoolYear

PAGE_SIZE = 10_000
"""What connectors of this API use; it takes more, but slow servers then run into time-outs."""
METADATA = "/Custom/GetSystemMetadata"
HEADERS = {"Suppress-Development-Permissions": "true"}
"""Sent by the vendor's own connectors."""
NOT_OFFERED = frozenset({400, 401, 403, 404})
MODIFIED = "ModifiedTime"
ENTITIES = frozenset(
    {
        "schools", "academic_sessions", "courses", "students", "staff", "sections", "enrollments", "section_enrollments",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Object:
    """One object to read: its name (`Module/Object`), the fields asked for, whether it is kept by school year, and
    whether it grows with the students and can be asked for what was modified."""

    name: str
    fields: tuple[str, ...]
    yearly: bool
    optional: bool
    modified: bool = False

    @property
    def key(self) -> str:
        return self.fields[0]

    @property
    def resource(self) -> str:
        return resource_name(self.name)


def resource_name(name: str) -> str:
    """The resource of an object, `Module-Object`: resources name folders."""
    return name.replace("/", "-")


@cache
def objects() -> tuple[Object, ...]:
    content = (
        files("sis_pipeline.providers.mappings").joinpath("skyward_qmlativ_objects.yaml").read_text(encoding="utf-8")
    )
    listed: dict[str, Any] = yaml.safe_load(content)
    return tuple(
        Object(
            name,
            tuple(about["fields"]),
            about.get("year", False),
            about.get("optional", False),
            about.get("modified", False),
        )
        for name, about in listed.items()
    )


class SkywardQmlativ(Provider):
    """The generic object API of Qmlativ: school enrollments with dates and codes, every school year."""

    name: ClassVar[str] = "skyward"
    title: ClassVar[str] = "Skyward Qmlativ"
    requests_per_minute: ClassVar[int] = 80

    settings: SkywardSettings

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ENTITIES, historical_years=True, delta=True, tombstones=False, counts=False)

    def authentication(self) -> OAuth:
        return self.settings.oauth(refused_token_statuses=frozenset({401, 403}))

    def plan(self, source: Source, school_year: SchoolYear, last_rows: Mapping[str, int]) -> Plan:
        """One call for the metadata, one more for the list of school years where an earlier year is asked for."""
        district = self._district(source)
        entity = self.settings.entity_id or str(district.get("EntityID"))
        year_id = self._year_id(source, district, entity, school_year)
        return Plan(
            tuple(self._resource(found, entity, year_id, last_rows.get(found.resource)) for found in objects()),
            "last_snapshot" if last_rows else "first_read",
        )

    def plan_delta(
        self, source: Source, school_year: SchoolYear, since: datetime, last_rows: Mapping[str, int]
    ) -> Plan:
        """What grows with the students by ModifiedTime, which has no zone. The condition's type and operator are as
        others of this API are written; where the server refuses them, everything is read."""
        asked = since - OVERLAP - ZONELESS
        whole = self.plan(source, school_year, last_rows)
        able = {found.resource for found in objects() if found.modified and last_rows.get(found.resource)}
        if not able:
            return whole
        resources = tuple(_changes(one, asked) if one.name in able else one for one in whole.resources)
        note = f"{len(able)} of {len(resources)} objects are read by ModifiedTime, the others whole."
        return replace(whole, resources=resources, notes=(*whole.notes, note), delta=True, since=asked)

    def encode(self, resource: str, records: Sequence[Record]) -> bytes:  # noqa: ARG002 one envelope for all
        return json.dumps({"Objects": list(records)}).encode()

    def decode(self, resource: str, body: bytes) -> Sequence[Record]:
        what = f"The {resource} page"
        return records(member(json_body(body, what), ("Objects",), what), what)

    def standardise(self, raw: RawSnapshot) -> dict[str, pd.DataFrame]:
        held = {
            name: [row for _, body in raw.bodies(name) for row in self.decode(name, body)] for name in raw.resources
        }
        return _Roster(held, raw.school_year, self.settings, inclusive=self.exit_dates == "inclusive").frames()

    def check(self, source: Source) -> str:
        district = self._district(source)
        current = district.get("SchoolYearCurrent") or {}
        year = current.get("Description") or current.get("NumericYear")
        return f"{self.title}: the key works; the current school year there is {year}."

    def whose(self, source: Source) -> frozenset[str]:
        district = self._district(source)
        return frozenset({district_id(district.get("Code"), district.get("DistrictID"))})

    def _district(self, source: Source) -> Record:
        """The district of the settings, or the only one. Raises ConfigError where that is not one."""
        what = "The system metadata"
        answer = source.send(Request(METADATA, headers=HEADERS, template=METADATA))
        listed = records(member(member(json_body(answer.body, what), ("System",), what), ("Districts",), what), what)
        wanted = self.settings.district_code
        found = [district for district in listed if wanted in (None, text(district.get("Code")))]
        if len(found) != 1:
            codes = ", ".join(str(district.get("Code")) for district in listed) or "none"
            raise ConfigError(
                f"Reading the system metadata: the system holds the districts {codes}.",
                code="config.district_code",
                advice="Set `district_code` to the code of the district to read.",
            )
        return found[0]

    def _year_id(self, source: Source, district: Record, entity: str, school_year: SchoolYear) -> str:
        current = district.get("SchoolYearCurrent") or {}
        years = [current]
        if text(current.get("NumericYear")) != str(school_year.end):
            listed = Object(
                "District/SchoolYear", ("SchoolYearID", "NumericYear", "Description"), yearly=False, optional=False
            )
            resource = self._resource(listed, entity, None, None)
            pages = resource.pager.pages(source.send, resource.request, lambda body: self.decode(listed.resource, body))
            years = [record for page in pages for record in page.records]
        for year in years:
            if text(year.get("NumericYear")) == str(school_year.end):
                return str(year.get("SchoolYearID"))
        shown = ", ".join(sorted(str(year.get("Description") or year.get("NumericYear")) for year in years)) or "none"
        raise ConfigError(
            f"Planning the school year {school_year}: {self.title} holds the school years {shown}.",
            code="config.school_year",
            advice="Choose a school year the system holds.",
        )

    def _resource(self, found: Object, entity: str, year_id: str | None, expected: int | None) -> Resource:
        size = self.settings.page_size or PAGE_SIZE
        stem = f"/{self.settings.object_access}"
        params: dict[str, str | Sequence[str]] = {"searchFields": found.fields}
        if found.yearly and year_id is not None:
            params["SchoolYearID"] = year_id
        return Resource(
            name=found.resource,
            request=Request(
                f"{stem}/{entity}/{found.name}/1/{size}",
                params,
                headers=HEADERS,
                template=f"{stem}/{{EntityID}}/{found.name}",
            ),
            pager=NextPathPager(size),
            identity=(found.key,),
            expected_rows=expected,
            optional=NOT_OFFERED if found.optional else frozenset(),
        )


def _changes(resource: Resource, asked: datetime) -> Resource:
    """A refused condition (400) must not pass for an object that is not offered."""
    fields = resource.request.params["searchFields"]
    condition = {
        "FieldName": MODIFIED,
        "ConditionType": "GreaterEqual",
        "Value": asked.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    request = replace(
        resource.request,
        method="POST",
        params={**resource.request.params, "searchFields": list(dict.fromkeys([*fields, MODIFIED]))},
        json={"SearchCondition": {"DateTimeSearchCondition": condition}},
    )
    return changes_of(replace(resource, optional=resource.optional - REFUSED), request, (MODIFIED,))


class _Roster:
    """One snapshot on its way to standard frames: what is linked by ids is put into one record, then mapped."""

    def __init__(
        self, held: dict[str, list[Record]], school_year: SchoolYear, settings: SkywardSettings, *, inclusive: bool
    ) -> None:
        self.held = held
        self.school_year = school_year
        self.settings = settings
        self.inclusive = inclusive
        self.mapping = mapping.Mapping.load("skyward_qmlativ.yaml", {"students": settings.custom_fields})

    def frames(self) -> dict[str, pd.DataFrame]:
        frames = {
            "schools": self.frame("schools", map(self._school, self.rows("Enrollment/School"))),
            "academic_sessions": session_frame(sorted(self.sessions), self.school_year),
            "courses": self.frame("courses", map(self._placed, self.rows("Scheduling/Course"))),
            "sections": self.frame("sections", map(self._section, self.rows("Scheduling/Section"))),
            "students": self.students(),
            "staff": self.frame("staff", self._staff()),
            "enrollments": self.enrollments,
            "section_enrollments": self._ends(
                self.frame("section_enrollments", [*self._seats(), *self._teaching()]), "end_date"
            ),
        }
        finished = {name: frame.reset_index(drop=True) for name, frame in frames.items()}
        self.mapping.annotate(finished)
        return finished

    def frame(self, entity: str, rows: Iterable[Record]) -> pd.DataFrame:
        return self.mapping.frame(entity, list(rows), school_year=self.school_year.key)

    def rows(self, name: str) -> list[Record]:
        return self.held.get(resource_name(name), [])

    def _ends(self, frame: pd.DataFrame, column: str) -> pd.DataFrame:
        return frame.assign(**{column: day_after(frame[column])}) if self.inclusive else frame

    def by(self, name: str, key: str, keep: Callable[[Record], bool] = lambda _: True) -> dict[str, Record]:
        """Objects by one of their ids; of several the first, by Rank where they have one. Who refers to nothing must not
        find those that have no id."""
        ranked = sorted(filter(keep, self.rows(name)), key=_rank)
        found: dict[str, Record] = {}
        for row in ranked:
            if known := text(row.get(key)):
                found.setdefault(known, row)
        return found

    # --- schools and sections ---

    @cached_property
    def entity_schools(self) -> dict[str, str | None]:
        return {key: text(row.get("SchoolID")) for key, row in self.by("Enrollment/EntitySchool", "EntityID").items()}

    def _school_of(self, row: Record) -> str | None:
        return self.entity_schools.get(text(row.get("EntityID")) or "")

    def _placed(self, row: Record) -> Record:
        return {**row, "school": self._school_of(row)}

    def _school(self, row: Record) -> Record:
        grades = self.by("Enrollment/GradeLevel", "GradeLevelID")
        low, high = (grades.get(text(row.get(f"GradeLevelID{end}")) or "") for end in ("Low", "High"))
        return {**row, "low": low, "high": high}

    @cached_property
    def sections(self) -> dict[str, Record]:
        return self.by("Scheduling/Section", "SectionID")

    @cached_property
    def spans(self) -> dict[str, list[tuple[str | None, str, str]]]:
        """Section -> the spans of its meets, with its school: Qmlativ's terms show only in these."""
        found: dict[str, list[tuple[str | None, str, str]]] = defaultdict(list)
        for meet in self.rows("Scheduling/Meet"):
            section = self.sections.get(text(meet.get("SectionID")) or "")
            begin, end = date_text(meet.get("StartDate")), date_text(meet.get("EndDate"))
            if section is not None and begin and end:
                last = day_after(pd.Series([end], dtype="str"))[0] if self.inclusive else end
                found[text(section.get("SectionID")) or ""].append((self._school_of(section), begin, last))
        return found

    @cached_property
    def sessions(self) -> set[tuple[str, str, str]]:
        return {(school or "", begin, end) for spans in self.spans.values() for school, begin, end in spans}

    @cached_property
    def teachers(self) -> dict[str, list[Record]]:
        """Section -> the staff that meet it, each once, the primary one first."""
        found: dict[str, dict[str, Record]] = defaultdict(dict)
        for row in sorted(
            self.rows("Scheduling/StaffMeet"), key=lambda row: boolean_text(row.get("IsPrimary")) != "true"
        ):
            found[text(row.get("SectionID")) or ""].setdefault(text(row.get("StaffID")) or "", row)
        return {section: list(staff.values()) for section, staff in found.items()}

    def _section(self, row: Record) -> Record:
        key = text(row.get("SectionID")) or ""
        leads = self.teachers.get(key, [])
        spans = sorted(set(self.spans.get(key, [])), key=lambda span: span[1:])
        return {
            **self._placed(row),
            "course": self.courses.get(text(row.get("CourseID")) or ""),
            "sessions": [session_id(begin, end, school) for school, begin, end in spans],
            "teacher": leads[0].get("StaffID") if leads else None,
        }

    @cached_property
    def courses(self) -> dict[str, Record]:
        return self.by("Scheduling/Course", "CourseID")

    def _seats(self) -> Iterator[Record]:
        for row in self.rows("Scheduling/StudentSection"):
            section = self.sections.get(text(row.get("SectionID")) or "", {})
            about = {"id": row.get("StudentSectionID"), "role": "student", "person": row.get("StudentID")}
            yield {**row, **about, "school": self._school_of(section)}

    def _teaching(self) -> Iterator[Record]:
        for section, staff in self.teachers.items():
            for row in staff:
                meet = text(row.get("StaffMeetID"))
                about = {"id": meet and f"staff-meet-{meet}", "role": "teacher", "person": row.get("StaffID")}
                yield {**row, **about, "school": self._school_of(self.sections.get(section, {}))}

    # --- people ---

    @cached_property
    def person(self) -> dict[str, dict[str, Record]]:
        """What a NameID is linked to, by the name it has in a mapped record."""
        addresses = self.by("Demographics/Address", "AddressID")

        def address(flag: str) -> dict[str, Record]:
            linked = self.by("Demographics/NameAddress", "NameID", lambda row: boolean_text(row.get(flag)) == "true")
            return {name: addresses.get(text(row.get("AddressID")) or "", {}) for name, row in linked.items()}

        return {
            "name": self.by("Demographics/Name", "NameID"),
            "email": self.by("Demographics/NameEmail", "NameID"),
            "phone": self.by("Demographics/NamePhone", "NameID"),
            "home": address("IsPhysical"),
            "mailing": address("IsMailing"),
            "user": self.by("Security/User", "NameID"),
        }

    def _person(self, row: Record) -> Record:
        name_id = text(row.get("NameID")) or ""
        return {**row, **{what: found.get(name_id) for what, found in self.person.items()}}

    def students(self) -> pd.DataFrame:
        """Students with a school enrollment or a section in the year."""
        seats = {text(row.get("StudentID")) for row in self.rows("Scheduling/StudentSection")}
        here = seats | set(self.enrollments["student_sis_id"])
        rows = [row for row in self.rows("Student/Student") if text(row.get("StudentID")) in here]
        students = self.frame("students", map(self._student, rows))
        students = students.assign(
            ssid_issuer=rostering.beside(students["ssid"], self.settings.state),
            local_id_issuer=rostering.beside(students["local_id"], self.settings.district),
        )
        return rostering.placed_students(students, self.enrollments)

    def _student(self, row: Record) -> Record:
        person = self._person(row)
        name = person["name"] or {}
        used, legal = text(name.get("FirstName")), text(name.get("FirstNameLegal"))
        return {
            **person,
            "year": self.years.get(text(row.get("StudentID")) or ""),
            "preferred": used if legal and used != legal else None,
            "hispanic": _hispanic(text(name.get("Ethnicity"))),
            "races": _races(text(name.get("Race"))),
        }

    @cached_property
    def years(self) -> dict[str, Record]:
        """Student -> the year row of the default entity, else of any."""
        rows = sorted(
            self.rows("Enrollment/StudentEntityYear"),
            key=lambda row: boolean_text(row.get("IsDefaultEntity")) == "true",
        )
        return {text(row.get("StudentID")) or "": row for row in rows}

    def _staff(self) -> Iterator[Record]:
        """Staff with a role in the year, or who meet a section of it; where year rows are not offered, all who are active."""
        yearly: dict[str, list[Record]] = defaultdict(list)
        for row in self.rows("Staff/StaffEntityYear"):
            if boolean_text(row.get("IsActive")) != "false":
                yearly[text(row.get("StaffID")) or ""].append(row)
        teaching = {text(row.get("StaffID")) for rows in self.teachers.values() for row in rows}
        for row in self.rows("Staff/Staff"):
            key = text(row.get("StaffID")) or ""
            roles = yearly.get(key, [])
            active = not yearly and boolean_text(row.get("IsActiveForDistrict")) != "false"
            if roles or key in teaching or active:
                teaches = key in teaching or any(boolean_text(each.get("IsTeacher")) == "true" for each in roles)
                schools = [school for each in roles if (school := self._school_of(each))]
                role = "teacher" if teaches else "staff"
                yield {**self._person(row), "role": role, "schools": list(dict.fromkeys(schools))}

    # --- enrollments ---

    @cached_property
    def enrollments(self) -> pd.DataFrame:
        return self._ends(
            self.frame("enrollments", map(self._enrollment, self.rows("Enrollment/EntryWithdrawal"))), "exit_date"
        )

    def _enrollment(self, row: Record) -> Record:
        codes = {
            what: self.codes[what].get(text(row.get(f"{name}ID")) or "")
            for what, name in (("entry_code", "EntryCode"), ("withdrawal_code", "WithdrawalCode"))
        }
        student, entity = text(row.get("StudentID")) or "", text(row.get("EntityID")) or ""
        return {
            **self._placed(row),
            **codes,
            "year": self.entity_years.get((student, entity)),
            "type": "secondary" if boolean_text(row.get("IsDefaultEntity")) == "false" else "primary",
            "status": self._status(row, codes["withdrawal_code"], self.entity_years.get((student, entity))),
        }

    @cached_property
    def codes(self) -> dict[str, dict[str, Record]]:
        return {
            "entry_code": self.by("Enrollment/EntryCode", "EntryCodeID"),
            "withdrawal_code": self.by("Enrollment/WithdrawalCode", "WithdrawalCodeID"),
        }

    @cached_property
    def entity_years(self) -> dict[tuple[str, str], Record]:
        rows = self.rows("Enrollment/StudentEntityYear")
        return {(text(row.get("StudentID")) or "", text(row.get("EntityID")) or ""): row for row in rows}

    def _status(self, row: Record, code: Record | None, year: Record | None) -> str:
        """From the withdrawal code where the settings say what it means; an exit on the entry date is a no-show; without
        an exit, a year row that is not active is a pre-registration."""
        begin, end = date_text(row.get("StartDate")), date_text(row.get("EndDate"))
        meaning = self.settings.withdrawal_statuses.get(text((code or {}).get("Code")) or "")
        if end is None:
            waiting = year is not None and boolean_text(year.get("IsActive")) == "false"
            return "pre_registered" if waiting else "active"
        if meaning is not None:
            return meaning
        return "no_show" if begin == end and not self.inclusive else "withdrawn"


def _hispanic(ethnicity: str | None) -> bool | None:
    if ethnicity is None:
        return None
    said = ethnicity.casefold()
    return "hispanic" in said and not said.startswith(("not ", "non"))


def _rank(row: Record) -> int:
    """An object's place among several of its kind; one that has none, or none that is a number, comes first."""
    said = text(row.get("Rank")) or ""
    return int(said) if re.fullmatch(r"\d{1,9}", said, re.ASCII) else 0


def _races(named: str | None) -> dict[str, bool]:
    """Race is a list of names in one text; none says nothing."""
    table = code_table("powerschool_races")
    known = {meaning for meaning, found in (table(name) for name in (named or "").split(",")) if found}
    return {column: column in known for column in RACES} if known else {}
