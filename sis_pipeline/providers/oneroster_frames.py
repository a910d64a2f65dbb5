"""The standard frames of one school year, of OneRoster's collections as columns: which people, sections and enrollments are
the year's, and what follows from what. What a record means is in `oneroster_records`, what a year implies in `rostering`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sis_pipeline.providers import mapping, rostering
from sis_pipeline.providers.base import RawSnapshot, Record
from sis_pipeline.providers.columns import Columns, Reader
from sis_pipeline.providers.mapping import Missing, code_table, day_after, text, text_series
from sis_pipeline.providers.oneroster_records import (
    LINKS,
    PEOPLE,
    STUDENT_ROLE,
    Delivered,
    RosterSettings,
    ending_year,
    reference,
    references,
    session_years,
    user_id,
    wanted,
)
from sis_pipeline.providers.rostering import iso_dates
from sis_pipeline.roster.model import ENTITIES as MODEL
from sis_pipeline.roster.texts import is_among, looked_up

ENTITIES = frozenset(MODEL) - {"departments"}
UNKNOWN_ROLE = "other"
CONTACT_ROLES = frozenset({"guardian", "parent", "relative"})
ExitDates = Literal["exclusive", "inclusive"]


def standard_frames(
    raw: RawSnapshot, reader: Reader, settings: RosterSettings, exit_dates: ExitDates, custom_fields: dict[str, str]
) -> dict[str, pd.DataFrame]:
    """Every entity of ENTITIES, scoped to the school year: its sessions, the sections that run in them, who sits in or
    teaches those, and, in the active year, who belongs to a school."""
    renames = mapping.Mapping.load("oneroster.yaml", {"students": custom_fields})
    columns = wanted(renames, settings)
    return _Roster(Delivered.of(raw, reader, columns), columns, renames, settings, exit_dates).frames()


class _Roster:
    """One snapshot on its way to standard frames; every step is worked out once, when first asked for."""

    def __init__(
        self,
        delivered: Delivered,
        columns: Mapping[str, Columns],
        renames: mapping.Mapping,
        settings: RosterSettings,
        exit_dates: ExitDates,
    ) -> None:
        self.delivered = delivered
        self.columns = columns
        self.mapping = renames
        self.settings = settings
        self.exit_dates: ExitDates = exit_dates
        self.year = rostering.Year(delivered.school_year, delivered.active)

    def frames(self) -> dict[str, pd.DataFrame]:
        leads = rostering.lead_teachers(self.section_enrollments)
        frames = {
            "schools": self.schools,
            "academic_sessions": self.sessions,
            "courses": self.courses,
            "sections": self.sections.assign(teacher_sis_id=self.sections["sis_id"].map(leads).astype("str")),
            "students": self.students_placed(),
            "staff": self.staff(),
            "enrollments": self.enrollments,
            "section_enrollments": self.section_enrollments,
            "contacts": self.contacts(),
        }
        finished = {name: frame.reset_index(drop=True) for name, frame in frames.items()}
        self.mapping.annotate(finished)
        return finished

    def frame(self, entity: str, records: Iterable[Record]) -> pd.DataFrame:
        """One entity of a small collection, by the mapping."""
        return self.finished(self.mapping.frame(entity, list(records)))

    def chosen(self, entity: str, again: Callable[[], Iterable[Record]], **rows: pa.Table) -> pd.DataFrame:
        """One entity of columns: `rows`, by collection, are those that belong to it. `again` reads their records, where a
        required column is empty in all of them: was the field there?"""
        values = {
            column: series
            for collection, table in rows.items()
            for column, series in self.columns[collection].values(table, entity, self.mapping).items()
        }
        spec = self.mapping.entities[entity]
        frame = pd.DataFrame({column.column: values[column.column] for column in spec.columns})
        empty = [one for one in spec.columns if one.required and one.paths and frame[one.column].isna().all()]
        if len(frame) and empty:
            missing, records = Missing(replace(spec, columns=tuple(empty))), list(again())
            missing.see(records)
            for column in empty:
                missing.look(column, column.raw({}, records), records)
            missing.complain()
        return frame

    def finished(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A row without a status is active, as in bulk CSV files."""
        if self.exit_dates == "inclusive" and "end_date" in frame:
            frame["end_date"] = day_after(frame["end_date"])
        return frame.assign(record_status=frame["record_status"].fillna("active"))

    # --- the school year ---

    @cached_property
    def schools(self) -> pd.DataFrame:
        return self.frame("schools", self.delivered["orgs"])

    @cached_property
    def all_sessions(self) -> pd.DataFrame:
        """All sessions, with the parent taken from the other side's `children` where the session names none."""
        records = self.delivered["academicSessions"]
        sessions = self.frame("academic_sessions", records)
        parents = {
            child: text(record.get("sourcedId")) for record in records for child in references(record.get("children"))
        }
        sessions["parent_sis_id"] = sessions["parent_sis_id"].fillna(sessions["sis_id"].map(parents).astype("str"))
        years = [ending_year(record.get("schoolYear")) for record in records]
        return sessions.assign(school_year=pd.Series([year.key if year else None for year in years], dtype="str"))

    @cached_property
    def sessions(self) -> pd.DataFrame:
        return rostering.sessions_of(self.all_sessions, self.delivered.school_year)

    @cached_property
    def all_sections(self) -> pd.DataFrame:
        classes = self.delivered.columns["classes"]
        again = partial(self.delivered.again, "classes")
        sections = self.finished(self.chosen("sections", again, classes=classes))
        return sections.assign(kind=sections["kind"].fillna("other"))

    @cached_property
    def terms(self) -> pd.DataFrame:
        """section_sis_id, session_sis_id: in which sessions every section runs."""
        classes = self.delivered.columns["classes"]
        terms = exploded(classes["terms"], classes["key"])
        return pd.DataFrame(
            {"section_sis_id": text_series(terms["owner"]), "session_sis_id": text_series(terms["item"])}
        )

    @cached_property
    def sections(self) -> pd.DataFrame:
        return rostering.sections_of(
            self.all_sections,
            self.terms,
            self.all_sessions["sis_id"],
            self.sessions["sis_id"],
            only_year=len(session_years(self.delivered["academicSessions"])) <= 1,
        )

    @cached_property
    def courses(self) -> pd.DataFrame:
        """The courses but those of another school year that no section of this one is of."""
        records = self.delivered["courses"]
        courses = self.frame("courses", records)
        session = [
            reference(record.get("schoolYear")) or reference(record.get("schoolYearSourcedId")) for record in records
        ]
        other = set(self.all_sessions["sis_id"]) - set(self.sessions["sis_id"])
        elsewhere = pd.Series(session, dtype="str").isin(other)
        return courses[~elsewhere | courses["sis_id"].isin(set(self.sections["course_sis_id"]))]

    @cached_property
    def section_enrollments(self) -> pd.DataFrame:
        seats = self.delivered.columns["enrollments"]
        again = partial(self.delivered.again, "enrollments")
        rows = self.finished(self.chosen("section_enrollments", again, enrollments=seats))
        return rostering.section_enrollments_of(rows, self.all_sections["sis_id"], self.sections, self.year)

    @cached_property
    def all_memberships(self) -> pd.DataFrame:
        """All that is said about belonging: `roles[]` (1.2), `role` and `orgs[]` (1.1), roles.csv, and the list a user was
        in. A user may have one primary role per org; where there is a `primaryOrg`, it decides."""
        held = [
            *(self.delivered.columns[name]["memberships"] for name in PEOPLE),
            self.delivered.columns["roles"]["memberships"],
        ]
        rows = pa.Table.from_struct_array(
            pc.list_flatten(pa.chunked_array([chunk for one in held for chunk in one.chunks]))
        )
        frame: pd.DataFrame = rows.to_pandas().drop_duplicates(ignore_index=True)
        named = self.people_rows.select(["key", "primary_org"]).to_pandas().dropna().drop_duplicates("key", keep="last")
        primary_org = looked_up(frame["person_sis_id"], named["key"], named["primary_org"])
        frame["is_primary"] = frame["is_primary"].where(primary_org.isna(), frame["school_sis_id"] == primary_org)
        if self.exit_dates == "inclusive":
            frame["end_date"] = day_after(frame["end_date"])
        return frame

    @cached_property
    def memberships(self) -> pd.DataFrame:
        return rostering.memberships_of(self.all_memberships, self.year)

    # --- the people ---

    @cached_property
    def people_rows(self) -> pa.Table:
        return pa.concat_tables([self.delivered.columns[name] for name in PEOPLE])

    @cached_property
    def users(self) -> pa.Table:
        """Users by id, the one modified last where lists overlap or pages drifted. Those without an id are one, with ``."""
        rows = self.people_rows
        keys = rows["key"].to_pandas()
        if keys.is_unique:
            return rows
        newest = rows["changed"].to_pandas().sort_values(ascending=False, kind="stable").index
        first_of = pd.Series(newest, index=keys.iloc[newest]).groupby(level=0, sort=False).first()
        return rows.take(pa.array(keys.drop_duplicates().map(first_of)))

    @cached_property
    def user_ids(self) -> pd.Series:
        return text_series(self.users["key"])

    @cached_property
    def seats(self) -> pd.DataFrame:
        return self.section_enrollments[self.section_enrollments["role"] == STUDENT_ROLE]

    @cached_property
    def student_memberships(self) -> pd.DataFrame:
        """Who attends where: at schools, and at organisations that nobody described."""
        above = set(self.schools.loc[self.schools["kind"] != "school", "sis_id"])
        rows = self.memberships[self.memberships["role"] == STUDENT_ROLE].dropna(subset=["school_sis_id"])
        return rows[~rows["school_sis_id"].isin(above)]

    @cached_property
    def staff_memberships(self) -> pd.DataFrame:
        rows = self.memberships.dropna(subset=["role"])
        return rows[~rows["role"].isin(CONTACT_ROLES | {STUDENT_ROLE})]

    def people(self, members: pd.DataFrame, attending: pd.Series) -> pa.Table:
        """The users of one side of the school: those who sit in or teach a section of the year, removed or not, and the
        members who are not removed. A delta speaks of everybody it names."""
        there = is_among(self.user_ids, members["person_sis_id"])
        if self.delivered.about.get("delta") != "true":
            there &= ~self.users["removed"].to_pandas()
        return self.users.filter(pa.array(there | is_among(self.user_ids, attending)))

    @cached_property
    def students(self) -> pd.DataFrame:
        users = self.people(self.student_memberships, self.seats["person_sis_id"])
        about = self.delivered.columns["demographics"]
        newest = last_of_each(about["key"])
        places = pc.take(newest, pc.index_in(users["key"], about["key"].take(newest)))
        again = partial(self.records, users["key"])
        students = self.finished(self.chosen("students", again, users=users, demographics=about.take(places)))
        ssid = text_series(users["state_id"]).fillna(students["ssid"])
        return students.assign(
            ssid=ssid,
            ssid_issuer=rostering.beside(ssid, self.settings.state),
            local_id_issuer=rostering.beside(students["local_id"], self.settings.district),
        )

    def records(self, keys: pa.ChunkedArray) -> Iterator[Record]:
        """The records of some users, read once more, with what is put into them."""
        chosen = set(keys.to_pylist())
        about = {user_id(record): record for record in self.delivered.again("demographics")}
        for collection in PEOPLE:
            for user in self.delivered.again(collection):
                if (key := user_id(user)) in chosen:
                    yield {**user, "demographics": about.get(key)}

    @cached_property
    def enrollments(self) -> pd.DataFrame:
        """School enrollments, which OneRoster does not have: see attendance."""
        from sis_pipeline.providers.attendance import school_enrollments

        spans, sections = self._spans(), self.seats["section_sis_id"]
        attendance = self.seats.rename(columns={"person_sis_id": "student_sis_id"}).assign(
            session_start=looked_up(sections, spans["section_sis_id"], spans["session_start"]),
            session_end=looked_up(sections, spans["section_sis_id"], spans["session_end"]),
        )
        years = self.sessions[self.sessions["kind"] == "school_year"]
        starts = iso_dates((self.sessions if years.empty else years)["start_date"]).dropna()
        ends = iso_dates(self.sessions["end_date"]).dropna()
        school_year = self.delivered.school_year
        return school_enrollments(
            self.students,
            self.student_memberships,
            attendance,
            session_start=starts.min() if len(starts) else school_year.first_day.isoformat(),
            year_end=ends.max() if len(ends) else school_year.day_after.isoformat(),
            school_year=school_year,
        )

    def _spans(self) -> pd.DataFrame:
        """section_sis_id, session_start, session_end: from when until when the sessions of a section run."""
        dated = self.sessions.set_index("sis_id").assign(
            session_start=lambda rows: iso_dates(rows["start_date"]),
            session_end=lambda rows: iso_dates(rows["end_date"]),
        )
        rows = self.terms.join(dated[["session_start", "session_end"]], on="session_sis_id", how="inner")
        spans = rows.groupby("section_sis_id", as_index=False).agg({"session_start": "min", "session_end": "max"})
        return spans.astype("str")

    def students_placed(self) -> pd.DataFrame:
        """The students with the school and status of their primary enrollment, and their homeroom."""
        homerooms = self.sections[self.sections["kind"] == "homeroom"].drop_duplicates("sis_id", keep="last")
        seats = self.seats[is_among(self.seats["section_sis_id"], homerooms["sis_id"])]
        seats = seats[seats["record_status"] == "active"]
        titles = looked_up(seats["section_sis_id"], homerooms["sis_id"], homerooms["title"])
        students = rostering.placed_students(self.students, self.enrollments)
        return students.assign(homeroom=looked_up(students["sis_id"], seats["person_sis_id"], titles))

    def staff(self) -> pd.DataFrame:
        # A role that the table does not know makes nobody a member of the staff: it may be a new word for student.
        teaching = self.section_enrollments[~self.section_enrollments["role"].isin({STUDENT_ROLE, UNKNOWN_ROLE})]
        users = self.people(self.staff_memberships, teaching["person_sis_id"])
        staff = self.finished(self.chosen("staff", partial(self.records, users["key"]), users=users))
        staff = staff.assign(state_staff_id=text_series(users["state_id"]))
        return rostering.placed_staff(staff, self.staff_memberships, teaching, code_table("staff_roles"))

    def contacts(self) -> pd.DataFrame:
        """The guardians of the students delivered, by `agents` on either side."""
        rows = self.all_memberships
        relations = rows[rows["role"].isin(CONTACT_ROLES)].drop_duplicates("person_sis_id")
        relation = dict(zip(relations["person_sis_id"], relations["role"], strict=True))
        found = dict[tuple[str, str], int]()
        for key, agent, position, of_student in self._agents(relation):
            if of_student:
                found[key, agent] = position
            else:
                found.setdefault((agent, key), 1)
        return self._contacts(found, relation)

    def _agents(self, guardians: Collection[str]) -> Iterator[tuple[str, str, int, bool]]:
        """Who names whom, at which place: students their guardians, where those are users, and guardians the students."""
        rows = exploded(self.users["agents"], self.users["key"]).to_pandas()
        rows["position"] = rows.groupby("row").cumcount() + 1
        owners, agents, students = rows["owner"], rows["item"], self.students["sis_id"]
        rows["of_student"] = is_among(owners, students) & is_among(agents, guardians) & is_among(agents, self.user_ids)
        rows = rows[rows["of_student"] | is_among(owners, guardians) & is_among(agents, students)]
        return zip(rows["owner"], rows["item"], rows["position"], rows["of_student"], strict=True)

    def _contacts(self, found: Mapping[tuple[str, str], int], relation: Mapping[str, str]) -> pd.DataFrame:
        guardians = pa.array([guardian for _, guardian in found], self.users["key"].type)
        users = self.users.take(pc.index_in(guardians, self.users["key"]))
        links = [
            {
                "contact": {
                    "id": f"{student}:{guardian}",
                    "student": student,
                    "relationship": relation[guardian],
                    "priority": str(place),
                }
            }
            for (student, guardian), place in found.items()
        ]
        rows = {"users": users, LINKS: self.columns[LINKS].of(links)}
        return self.finished(self.chosen("contacts", partial(self.records, users["key"]), **rows))


def exploded(lists: pa.ChunkedArray, owners: pa.ChunkedArray) -> pa.Table:
    """The elements of lists one by one: `row` and `owner` of the list, `item`."""
    together = lists.combine_chunks()
    rows = pc.list_parent_indices(together)
    return pa.table({"row": rows, "owner": owners.take(rows), "item": pc.list_flatten(together)})


def last_of_each(keys: pa.ChunkedArray) -> pa.Array:
    """The places of the last one of every key, in order."""
    return pa.array(np.flatnonzero(~keys.to_pandas().duplicated(keep="last")))
