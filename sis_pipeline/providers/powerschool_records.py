"""What PowerSchool's answers mean: their envelopes and loose types, and the standard frames of one school year.
Pure functions of raw pages; what is asked for, and how, is in `powerschool`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from sis_pipeline.connect.errors import ContractError
from sis_pipeline.providers.base import RawSnapshot, Record
from sis_pipeline.providers.decoding import Json, json_body, member, records, shape
from sis_pipeline.providers.mapping import Mapping as Renames
from sis_pipeline.providers.mapping import code_table, day_after, text
from sis_pipeline.roster.school_year import SchoolYear

Batch = tuple[Mapping[str, str], Sequence[Record]]

ENVELOPES = {
    "schools": ("schools", "school"),
    "terms": ("terms", "term"),
    "students": ("students", "student"),
    "staff": ("staffs", "staff"),
    "courses": ("courses", "course"),
    "sections": ("sections", "section"),
    "section_enrollments": ("section_enrollments", "section_enrollment"),
}
"""Kind of resource -> the plural wrapper and the singular key inside it."""

RACE_FLAGS = (
    "american_indian_or_alaska_native", "asian", "black_or_african_american",
    "native_hawaiian_or_other_pacific_islander", "white",
)  # fmt: skip


def kind_of(resource: str) -> str:
    """The kind of a resource: per-school and per-section resources carry the id after a dash."""
    return resource.partition("-")[0]


def decode(resource: str, body: bytes) -> list[Record]:
    """The records of one raw page. Raises ContractError for a body PowerSchool's API does not allow.

    One element comes as an object, none as a wrapper without the singular key, and an empty wrapper may be "".
    """
    kind, what = kind_of(resource), f"The {kind_of(resource)} page"
    document = json_body(body, what)
    if kind == "metadata":
        return records(member(document, ("metadata",), what), what)
    if kind in ENVELOPES and isinstance(document, dict) and ENVELOPES[kind][0] in document:
        found = _inside(document, *ENVELOPES[kind], what)
        return [_with_extensions(record) for record in found] if kind == "students" else found
    if kind in ENVELOPES and kind != "section_enrollments":
        member(document, ENVELOPES[kind][:1], what)
    return _rows(document, what)


def _inside(document: Json, plural: str, singular: str, what: str) -> list[Record]:
    wrapper = document[plural]
    if wrapper in (None, "", []):
        return []
    if not isinstance(wrapper, dict):
        raise ContractError(
            f"{what} has {shape(wrapper)} under {plural!r} where an object was expected.", code="contract.shape"
        )
    return records(wrapper.get(singular), what)


def _rows(document: Json, what: str) -> list[Record]:
    """The rows of a table or PowerQuery answer, flat and with lower-case names. `record` is missing where none match;
    the answer then still has its `name`."""
    member(document, ("record", "name"), what)
    return [_flat(row) for row in records(document.get("record"), what)]


def _flat(row: Record) -> Record:
    tables = row.get("tables")
    parts = tables.values() if isinstance(tables, dict) else [row]
    return {name.lower(): value for part in parts if isinstance(part, dict) for name, value in part.items()}


def _with_extensions(record: Record) -> Record:
    """`_extension_data` as `extension.<table>.<field>`, so that a custom field is one path."""
    data = record.get("_extension_data")
    if not isinstance(data, dict):
        return record
    tables = records(data.get("_table_extension"), "The students page")
    extension = {
        str(table.get("name", "")).lower(): {
            str(entry.get("name", "")).lower(): entry.get("value")
            for entry in records(table.get("_field"), "The students page")
        }
        for table in tables
    }
    return {**record, "extension": extension}


@dataclass(frozen=True)
class Rules:
    """What the integration's settings say about the records."""

    custom_fields: Mapping[str, str]
    skip_school_numbers: frozenset[str]
    state: str | None
    district: str | None
    inclusive_exits: bool
    digits: Mapping[str, int]
    """Column -> digits to which a shorter number is padded: PowerSchool drops leading zeros."""


def standard_frames(raw: RawSnapshot, rules: Rules) -> dict[str, pd.DataFrame]:
    """The standard frames of the snapshot's school year, one per entity."""
    return _Roster(raw, rules).frames()


class _Roster:
    """One snapshot while it is standardised. Every list is worked out once, when first asked for."""

    def __init__(self, raw: RawSnapshot, rules: Rules) -> None:
        self.raw = raw
        self.rules = rules
        self.year = raw.school_year
        self.mapping = Renames.load("powerschool.yaml", {"students": rules.custom_fields})

    def frames(self) -> dict[str, pd.DataFrame]:
        frames = {
            "schools": self.schools,
            "academic_sessions": self.sessions,
            "students": self.students,
            "staff": self.staff,
            "courses": self.mapping.gather("courses", self.batches("courses")).drop_duplicates("sis_id"),
            "sections": self.sections,
            "enrollments": self.enrollments,
            "section_enrollments": self.section_enrollments,
        }
        frames = {entity: frame.reset_index(drop=True) for entity, frame in frames.items()}
        self.mapping.annotate(frames)
        frames["students"].attrs["placeholders"] = len(self.placeholders)
        return frames

    def batches(self, kind: str) -> Iterator[Batch]:
        for resource in self.raw.resources:
            if kind_of(resource) == kind:
                for about, body in self.raw.bodies(resource):
                    yield about, decode(resource, body)

    def all(self, kind: str) -> Iterator[Record]:
        """Every record of a kind; one from a per-school list has its school's id."""
        for about, batch in self.batches(kind):
            for record in batch:
                yield {"school_id": about["school"], **record} if "school" in about else record

    # --- schools and terms -------------------------------------------------------------------------------------------

    @cached_property
    def schools(self) -> pd.DataFrame:
        found = [_school(record) for record in self.all("schools") if not self._skipped(record.get("school_number"))]
        return self._padded(self.mapping.frame("schools", found)).drop_duplicates("sis_id")

    @cached_property
    def skipped_schools(self) -> frozenset[str]:
        """DCIDs of the pseudo schools: the graduated students, the district office."""
        return frozenset(
            _id(record, "id") for record in self.all("schools") if self._skipped(record.get("school_number"))
        )

    def _skipped(self, school_number: Any) -> bool:
        return (text(school_number) or "") in self.rules.skip_school_numbers

    @cached_property
    def sessions(self) -> pd.DataFrame:
        """The terms of the year, of each school. `end_date` is TERMS.LastDay, the last day: exclusive ends are a day later."""
        terms = [term for term in self.all("terms") if text(term.get("start_year")) == str(self.year.start)]
        whole = {_id(term, "school_id"): _id(term, "id") for term in terms if text(term.get("portion")) == "1"}
        named = [
            {**term, "year_term": above if (above := whole.get(_id(term, "school_id"))) != _id(term, "id") else None}
            for term in terms
        ]
        frame = self.mapping.frame("academic_sessions", named, school_year=self.year.key)
        return frame.assign(end_date=day_after(frame["end_date"])).drop_duplicates("sis_id")

    # --- staff and sections ------------------------------------------------------------------------------------------

    @cached_property
    def staff(self) -> pd.DataFrame:
        """Each person once: PowerSchool lists the same one per school, with another id each time. A row that does not say
        who it is stays a row by itself, to be rejected as such."""
        people: dict[object, Record] = {}
        for number, record in enumerate(self.all("staff")):
            who = _person(record)
            person = people.setdefault(who or number, {**record, "person": who, "schools": [], "types": []})
            for school, role in _affiliations(record):
                person["types"].append(role)
                if school not in self.skipped_schools | {"0"} and school not in person["schools"]:
                    person["schools"].append(school)
        frame = self.mapping.frame(
            "staff", [{**person, "role_type": _main(person["types"])} for person in people.values()]
        )
        return frame.assign(role=frame["role"].fillna("other"))

    @cached_property
    def people(self) -> dict[str, str]:
        """SCHOOLSTAFF.DCID, which sections name, to the person."""
        return _known((_id(record, "id"), _person(record)) for record in self.all("staff"))

    @cached_property
    def sections(self) -> pd.DataFrame:
        """The sections whose term lies in the year. A teacher who is no longer listed is left out."""
        terms = set(self.sessions["sis_id"])
        found = [
            {**section, "teacher": self.people.get(_id(section, "staff_id"))}
            for section in self.all("sections")
            if _id(section, "term_id") in terms
        ]
        return self.mapping.frame("sections", found).drop_duplicates("sis_id")

    @cached_property
    def section_enrollments(self) -> pd.DataFrame:
        """Students in sections and, one row per section, its teacher. Who left no later than they came never sat there."""
        seats = self.seats
        taught = self.sections[self.sections["teacher_sis_id"].notna()]
        teaching = pd.DataFrame(
            {
                "sis_id": "teacher-" + taught["sis_id"] + "-" + taught["teacher_sis_id"],
                "section_sis_id": taught["sis_id"],
                "role": "teacher",
                "person_sis_id": taught["teacher_sis_id"],
                "is_primary": "true",
                "record_status": "active",
            },
            dtype="str",
        )
        rows = pd.concat([seats, teaching], ignore_index=True)
        schools = dict(zip(self.sections["sis_id"], self.sections["school_sis_id"], strict=True))
        return rows.assign(school_sis_id=rows["section_sis_id"].map(schools).astype("str"))

    @cached_property
    def seats(self) -> pd.DataFrame:
        batches = ((about, list(self._of_students(batch))) for about, batch in self.batches("section_enrollments"))
        frame = self._exclusive(self.mapping.gather("section_enrollments", batches), "end_date").drop_duplicates(
            "sis_id"
        )
        never = _is_date(frame["begin_date"]) & _is_date(frame["end_date"]) & (frame["end_date"] <= frame["begin_date"])
        return frame[~never]

    def _of_students(self, batch: Iterable[Record]) -> list[Record]:
        """Rows of a table or query, joined; without those of placeholders."""
        return [row for row in self._joined(batch) if _id(row, "students_dcid") not in self.placeholders]

    def _joined(self, batch: Iterable[Record]) -> Iterator[Record]:
        """Rows with DCIDs: the table names students, sections and schools by other ids, negative for a dropped class."""
        for row in batch:
            yield (
                row
                if "studentid" not in row or "students_dcid" in row
                else {
                    **row,
                    "students_dcid": self.student_dcids.get(_id(row, "studentid")),
                    "sections_dcid": self.section_dcids.get(_id(row, "sectionid").lstrip("-")),
                    "schools_dcid": self.school_dcids.get(_id(row, "schoolid")),
                }
            )

    @cached_property
    def student_dcids(self) -> dict[str, str]:
        return _known((_id(row, "id"), _id(row, "dcid")) for row in self.all("student_ids"))

    @cached_property
    def section_dcids(self) -> dict[str, str]:
        return _known((_id(row, "id"), _id(row, "dcid")) for row in self.all("section_ids"))

    @cached_property
    def school_dcids(self) -> dict[str, str]:
        """School number, by which tables name a school, to DCID."""
        return _known((_id(school, "school_number"), _id(school, "id")) for school in self.all("schools"))

    # --- students and their enrollments ------------------------------------------------------------------------------

    @cached_property
    def student_records(self) -> dict[str, Record]:
        """Each student once, without the vendor's placeholders; of two rows for one, the later page's."""
        return {dcid: student for dcid, student in self.listed.items() if not _is_placeholder(student)}

    @cached_property
    def placeholders(self) -> frozenset[str]:
        """DCIDs of the students that are none."""
        return frozenset(dcid for dcid, student in self.listed.items() if _is_placeholder(student))

    @cached_property
    def listed(self) -> dict[str, Record]:
        return {_id(student, "id"): student for student in self.all("students")}

    @cached_property
    def enrollments(self) -> pd.DataFrame:
        """Earlier and current enrollments that fall in the year, no-shows included. PowerSchool gives the current one no
        id, and moves it among the earlier ones later: student, school and entry date name it all along."""
        current = self.mapping.frame("enrollments", self._enrolled(), school_year=self.year.key)
        frame = self._exclusive(pd.concat([self._earlier(), current], ignore_index=True), "exit_date")
        frame = frame[_touches(frame, self.year) & ~frame["school_sis_id"].isin(self.skipped_schools)]
        status = frame["status"].mask(self._graduating(frame), "graduated")
        never = _is_date(frame["entry_date"]) & (frame["exit_date"] <= frame["entry_date"]).fillna(value=False)
        named = frame["student_sis_id"] + "-" + frame["school_sis_id"].fillna("") + "-" + frame["entry_date"].fillna("")
        named = named.mask(named.duplicated(keep="last"), named + "-" + frame["sis_id"].fillna(""))
        return frame.assign(sis_id=named, status=status.mask(never, "no_show"))

    def _earlier(self) -> pd.DataFrame:
        """Rows of REENROLLMENTS, each once; a query that also gives the current enrollments gives those without a dcid."""
        batches = (
            ({"school_year": self.year.key}, [row for row in self._of_students(batch) if row.get("dcid")])
            for _, batch in self.batches("school_enrollments")
        )
        return self.mapping.gather("enrollments.earlier", batches).drop_duplicates("sis_id", keep="last")

    def _enrolled(self) -> list[Record]:
        return [record for record in self.student_records.values() if isinstance(record.get("school_enrollment"), dict)]

    def _graduating(self, frame: pd.DataFrame) -> pd.Series:
        """The last enrollment, in the year, of a student who was moved to the graduated students in that year."""
        graduated = {
            student
            for student, record in self.student_records.items()
            if isinstance(now := record.get("school_enrollment"), dict)
            and _id(now, "school_id") in self.skipped_schools
            and text(now.get("enroll_status_code", now.get("status_code"))) == "3"
            and self.year.first_day.isoformat()
            <= (text(now.get("entry_date")) or "")
            <= self.year.day_after.isoformat()
        }
        last = frame.sort_values("entry_date").drop_duplicates("student_sis_id", keep="last").index
        return frame["student_sis_id"].isin(graduated) & frame.index.isin(last)

    @cached_property
    def students(self) -> pd.DataFrame:
        """The students of the year: those enrolled in it or seated in one of its sections. What holds for the year
        (grade, school, status) comes from their latest enrollment in it, not from where they are now."""
        latest = _latest(self.enrollments)
        chosen = set(latest.index) | set(self.seats["person_sis_id"].dropna())
        found = [self._student(record) for student, record in self.student_records.items() if student in chosen]
        frame = self._padded(self.mapping.frame("students", found, **self._issuers))
        for number in ("ssid", "local_id"):
            frame[f"{number}_issuer"] = frame[f"{number}_issuer"].where(frame[number].notna())
        for column in ("grade_level", "school_sis_id", "fte"):
            if column not in self.rules.custom_fields:
                frame[column] = frame["sis_id"].map(latest[column]).astype("str")
        frame["enrollment_status"] = frame["sis_id"].map(latest["status"]).astype("str")
        frame["graduation_year"] = frame["graduation_year"].where(frame["graduation_year"] != "0")
        return frame

    @property
    def _issuers(self) -> dict[str, str]:
        """Who issued the ids: the district as set; the state as set, else as PowerSchool's metadata say."""
        state = self.rules.state or next((text(record.get("state")) for record in self.all("metadata")), None)
        return {name: value for name, value in (("state", state), ("district", self.rules.district)) if value}

    def _student(self, record: Record) -> Record:
        block = record.get("ethnicity_race")
        codes = _races(block.get("races")) if isinstance(block, dict) else []
        looked_up = {code: code_table("powerschool_races")(code) for code in codes}
        self.mapping.unknown_codes.update(
            ("students", "races", code) for code, (_, known) in looked_up.items() if not known
        )
        held = {flag for flag, known in looked_up.values() if known}
        return {**record, "race_flags": {flag: flag in held for flag in RACE_FLAGS}} if held else record

    # --- values ------------------------------------------------------------------------------------------------------

    def _exclusive(self, frame: pd.DataFrame, column: str) -> pd.DataFrame:
        return frame.assign(**{column: day_after(frame[column])}) if self.rules.inclusive_exits else frame

    def _padded(self, frame: pd.DataFrame) -> pd.DataFrame:
        for column, digits in self.rules.digits.items():
            if column in frame:
                number = frame[column].str.fullmatch(r"\d+").fillna(value=False).astype(bool)
                frame[column] = frame[column].mask(number, frame[column].str.zfill(digits))
        return frame


def _id(record: Record, name: str) -> str:
    return text(record.get(name)) or ""


def _is_placeholder(student: Record) -> bool:
    """PowerSchool keeps rows that stand for nobody: a DCID below 1, or the student number 0."""
    dcid, number = _id(student, "id"), _id(student, "local_id")
    return re.fullmatch(r"0+|-\d+", dcid) is not None or re.fullmatch("0+", number) is not None


def _school(record: Record) -> Record:
    principal = record.get("principal")
    name = principal.get("name") if isinstance(principal, dict) else None
    if not isinstance(name, dict):
        return record
    parts = [text(name.get("first_name")), text(name.get("last_name"))]
    return {**record, "principal_name": " ".join(part for part in parts if part)}


def _known(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Id -> id. Who refers to nothing must not find what has no id."""
    return {key: value for key, value in pairs if key and value}


def _person(record: Record) -> str:
    """USERS.DCID identifies the person, who has another staff id at every school: without it nobody is guessed."""
    return _id(record, "users_dcid")


def _affiliations(record: Record) -> Iterator[tuple[str, str]]:
    """(school, type) of the active affiliations, and of the list that the record is on."""
    block = record.get("school_affiliations")
    given = records(block.get("school_affiliation"), "The staff page") if isinstance(block, dict) else []
    listed = _id(record, "school_id")
    if listed:
        yield listed, next((_id(one, "type") for one in given if _id(one, "school_id") == listed), "")
    for one in given:
        if _id(one, "status") in {"", "1"} and _id(one, "school_id") != listed:
            yield _id(one, "school_id"), _id(one, "type")


def _main(types: Sequence[str]) -> str | None:
    """A person's main type: a teacher anywhere is a teacher, else the first that says anything."""
    return "1" if "1" in types else next((one for one in types if one not in {"", "0"}), None)


def _races(value: Any) -> list[str]:
    """Race codes, from one object, a list of them, or either inside `race`."""
    if isinstance(value, list):
        return [code for item in value for code in _races(item)]
    if not isinstance(value, dict):
        return []
    if "race" in value:
        return _races(value["race"])
    code = text(value.get("federal_race_code_category")) or text(value.get("district_race_code"))
    return [code] if code else []


def _is_date(values: pd.Series) -> pd.Series:
    return values.str.fullmatch(r"\d{4}-\d{2}-\d{2}").fillna(value=False).astype(bool)


def _touches(frame: pd.DataFrame, year: SchoolYear) -> pd.Series:
    """Which enrollments fall in the year; a current one without an entry date does, so that it is quarantined."""
    first, after = year.first_day.isoformat(), year.day_after.isoformat()
    entry, leave = frame["entry_date"], frame["exit_date"]
    dated = _is_date(entry)
    within = (entry < after) & (leave.isna() | (leave > first) | (entry >= first))
    return (dated & within.fillna(value=False)) | (~dated & (frame["status"] == "active"))


def _latest(enrollments: pd.DataFrame) -> pd.DataFrame:
    """Per student the latest enrollment, a no-show only for want of another; by student."""
    ordered = enrollments.assign(attended=enrollments["status"] != "no_show").sort_values(["attended", "entry_date"])
    return ordered.drop_duplicates("student_sis_id", keep="last").set_index("student_sis_id")
