"""OneRoster CSV sets: the header contract, encodings, cuts, lists and deltas, and a real set where there is one."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sis_pipeline.connect.errors import ConfigError, ContractError
from sis_pipeline.providers.base import End
from sis_pipeline.providers.conformance import ProviderConformance
from sis_pipeline.providers.oneroster_bundle import Bundle, records_of
from sis_pipeline.providers.oneroster_csv import OneRosterCsv, OneRosterCsvSettings
from sis_pipeline.providers.reading import verdict
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.validate import check_references
from sis_pipeline_tests.providers.sources import YEAR, Pulled, Script, pull, rows

REAL = Path(os.environ.get("SIS_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "oneroster_csv"

COMMON: dict[str, str] = {
    "academicSessions": """\
sourcedId,status,dateLastModified,title,type,startDate,endDate,parentSourcedId,schoolYear
y26,,,2025-26,schoolYear,2025-08-18,2026-06-06,,2026
s1,,,Semester 1,semester,2025-08-18,2026-01-10,y26,2026
""",
    "orgs": """\
sourcedId,status,dateLastModified,name,type,identifier,parentSourcedId
1,,,Fernhollow,district,,
310,,,"Larkspur, Upper",school,0310,1
320,,,Brook,school,0320,1
""",
    "courses": "sourcedId,status,dateLastModified,schoolYearSourcedId,title,courseCode,grades,orgSourcedId,subjects,"
    'subjectCodes\ncrs,,,,Algebra,MA1,"08,09",310,Mathematics,02052\n',
    "classes": "sourcedId,status,dateLastModified,title,grades,courseSourcedId,classCode,classType,location,"
    "schoolSourcedId,termSourcedIds,subjects,subjectCodes,periods\n"
    'alg,,,Algebra 1,"08,09",crs,A-1,scheduled,B1,310,"s1,y26",,,"3,4"\n',
    "enrollments": """\
sourcedId,status,dateLastModified,classSourcedId,schoolSourcedId,userSourcedId,role,primary,beginDate,endDate
e1,,,alg,310,u1,student,false,2025-08-20,2026-01-10
e2,,,alg,310,t1,teacher,true,,
""",
    "demographics": "sourcedId,status,dateLastModified,birthDate,sex,asian\nu1,,,2012-02-29,female,true\n",
}
USERS_11 = (
    "sourcedId,status,dateLastModified,enabledUser,orgSourcedIds,role,username,userIds,givenName,familyName,middleName,"
    "identifier,email,sms,phone,agentSourcedIds,grades,password\n"
    'u1,,,true,"310,320",student,00042,"{LDAP:mo},{stateID:0078}",None,NA,Null,00042,,,,g1,"08",hunter2\n'
    "t1,,,true,310,teacher,ada,,Ada,Quist,,T7,,,,,,\n"
    "g1,,,true,310,guardian,gi,,Gil,Okafor,,,,,555,u1,,\n"
)
USERS_12 = (
    "sourcedId,status,dateLastModified,enabledUser,username,userIds,givenName,familyName,middleName,identifier,email,sms,"
    "phone,agentSourcedIds,grades,password,userMasterIdentifier,resourceSourcedIds,preferredGivenName,"
    "preferredMiddleName,preferredFamilyName,primaryOrgSourcedId,pronouns\n"
    "u1,,,true,,,Maribel,Okafor,,00042,,,,,08,,0078,,Mari,,,320,she\n"
    "t1,,,true,,,Ada,Quist,,T7,,,,,,,,,,,,,\n"
)
ROLES_12 = """\
sourcedId,status,dateLastModified,userSourcedId,roleType,role,beginDate,endDate,orgSourcedId,userProfileSourcedId
r1,,,u1,primary,student,2025-08-19,,310,
r2,,,u1,primary,student,,,320,
r3,,,t1,primary,teacher,,,310,
r4,tobedeleted,,u1,secondary,aide,,,310,
"""
V11 = COMMON | {"users": USERS_11}
V12 = COMMON | {"users": USERS_12, "roles": ROLES_12}


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, text in files.items():
        (folder / f"{name}.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def zipped(path: Path, files: Mapping[str, str], within: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(f"{within}{name}.csv", text)
    return path


def provider(path: Path, **settings: Any) -> OneRosterCsv:
    return OneRosterCsv(OneRosterCsvSettings(path=path, state="TX", district="fernhollow", **settings))


def synced(path: Path, year: SchoolYear = YEAR, **settings: Any) -> Pulled:
    return pull(provider(path, **settings), Script({}), year)


class TestSets:
    def test_version_1_1(self, tmp_path: Path) -> None:
        found = synced(write(tmp_path, V11))
        assert verdict(found.readings) == "complete"
        assert all(not checked.rejected_rows for checked in found.validated.values())
        assert rows(found.good("students"), "sis_id", "ssid", "local_id", "username", "grade_level", "homeroom") == [
            ("u1", "0078", "00042", "00042", "08", None)
        ]
        assert rows(found.good("students"), "first_name", "last_name", "middle_name") == [("None", "NA", "Null")]
        assert rows(found.good("enrollments"), "school_sis_id", "enrollment_type", "entry_date_source") == [
            ("310", "primary", "class_begin"), ("320", "secondary", "session_start"),
        ]  # fmt: skip
        assert rows(found.good("sections"), "session_sis_ids", "periods", "grade_levels", "teacher_sis_id") == [
            ('["s1", "y26"]', '["3", "4"]', '["08", "09"]', "t1")
        ]
        assert rows(found.good("contacts"), "student_sis_id", "last_name", "phone") == [("u1", "Okafor", "555")]
        assert rows(found.good("schools"), "name", "school_number")[1] == ("Larkspur, Upper", "0310")
        assert not any("hunter2" in frame.to_json() for frame in found.frames.values())

    def test_version_1_2_has_roles_of_its_own(self, tmp_path: Path) -> None:
        found = synced(write(tmp_path, V12))
        assert rows(found.good("students"), "ssid", "preferred_first_name", "pronouns", "school_sis_id") == [
            ("0078", "Mari", "she", "320")
        ]
        assert rows(found.frames["enrollments"], "school_sis_id", "entry_date", "entry_date_source") == [
            ("310", "2025-08-19", "sis"), ("320", "2025-08-18", "session_start"),
        ]  # fmt: skip
        assert rows(found.good("staff"), "sis_id", "role") == [("t1", "teacher")]

    @pytest.mark.parametrize("within", ["", "export/"])
    def test_a_zip_also_with_one_folder_inside(self, tmp_path: Path, within: str) -> None:
        found = synced(zipped(tmp_path / "set.zip", V12, within))
        assert verdict(found.readings) == "complete"
        assert len(found.good("students")) == 1

    def test_the_pages_are_the_files(self, tmp_path: Path) -> None:
        write(tmp_path, V11)
        plan = provider(tmp_path).plan(Script({}), YEAR, {})
        pages = {
            resource.name: list(resource.pager.pages(None, resource.request, lambda _: []))
            for resource in plan.resources
        }  # type: ignore[arg-type]
        assert {name: [page.body for page in each] for name, each in pages.items()} == {
            name: [text.encode()] for name, text in V11.items()
        }
        assert plan.calls == 0

    def test_the_manifest_says_version_mode_and_what_is_absent(self, tmp_path: Path) -> None:
        manifest = "propertyName,value\nmanifest.version,1.0\noneroster.version,1.1\nfile.users,bulk\nfile.demographics,absent\n"
        write(tmp_path, V11 | {"manifest": manifest})
        bundle = Bundle(tmp_path)
        assert (bundle.version, bundle.delta, "demographics" in bundle.names) == ("1.1", False, False)

    def test_a_delta_is_said_to_be_one_and_keeps_tombstones(self, tmp_path: Path) -> None:
        users = USERS_11.splitlines()
        gone = users[1].replace("u1,,,", "u1,tobedeleted,2025-11-03T08:00:00Z,", 1)
        files = {
            "manifest": "propertyName,value\noneroster.version,1.1\nfile.users,delta\nfile.orgs,absent\n",
            "users": "\n".join([users[0], gone]) + "\n",
        }
        current = SchoolYear.on(datetime.now(UTC).date())
        plan = provider(write(tmp_path, files)).plan(Script({}), current, {})
        assert plan.delta
        found = synced(tmp_path, current)
        assert rows(found.frames["students"], "sis_id", "record_status") == [("u1", "to_be_deleted")]

    def test_check_says_what_is_there(self, tmp_path: Path) -> None:
        write(tmp_path, V11 | {"notes": "a\n1\n", "userProfiles": "x\n1\n"})
        assert provider(tmp_path).check(Script({})) == (
            "OneRoster CSV 1.1: a bulk set of 7 files can be read. Not part of OneRoster 1.1 and not read: "
            "notes.csv, userProfiles.csv."
        )


class TestContract:
    @pytest.mark.parametrize(
        ("name", "old", "new", "message"),
        [
            ("users", "givenName", "firstName", "users.csv: required column givenName is missing"),
            ("classes", "termSourcedIds", "terms", "classes.csv: required column termSourcedIds is missing"),
            ("orgs", "identifier", "name", "orgs.csv: column name is there more than once"),
        ],
    )
    def test_a_header_that_breaks_it_stops_the_set_by_name(
        self, tmp_path: Path, name: str, old: str, new: str, message: str
    ) -> None:
        write(tmp_path, V11 | {name: V11[name].replace(old, new, 1)})
        with pytest.raises(ContractError, match=message):
            provider(tmp_path).plan(Script({}), YEAR, {})

    def test_extra_columns_are_reported_and_ignored(self, tmp_path: Path) -> None:
        orgs = COMMON["orgs"].replace("parentSourcedId", "parentSourcedId,metadata.x").replace("\n1,", "\n1,", 1)
        lines = orgs.splitlines()
        write(tmp_path, V11 | {"orgs": "\n".join([lines[0], *(line + ",x" for line in lines[1:])]) + "\n"})
        plan = provider(tmp_path).plan(Script({}), YEAR, {})
        assert plan.notes == ("orgs.csv has columns beyond the standard: metadata.x.",)
        assert len(synced(tmp_path).good("schools")) == 3

    def test_a_file_no_roster_is_complete_without(self, tmp_path: Path) -> None:
        write(tmp_path, {name: text for name, text in V11.items() if name != "enrollments"})
        with pytest.raises(ContractError, match=r"enrollments\.csv missing"):
            provider(tmp_path).plan(Script({}), YEAR, {})

    def test_a_file_the_manifest_promises(self, tmp_path: Path) -> None:
        files = {name: text for name, text in V11.items() if name != "demographics"}
        write(tmp_path, files | {"manifest": "propertyName,value\nfile.demographics,bulk\n"})
        with pytest.raises(ContractError, match=r"promises demographics\.csv"):
            provider(tmp_path).plan(Script({}), YEAR, {})

    def test_a_year_that_is_not_in_the_set(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="holds 2025-2026"):
            provider(write(tmp_path, V11)).plan(Script({}), SchoolYear.parse("2019-2020"), {})

    def test_a_path_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no such folder or zip"):
            provider(tmp_path / "nowhere").plan(Script({}), YEAR, {})


class TestText:
    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
    def test_encodings_are_found_out_and_reported(self, tmp_path: Path, encoding: str) -> None:
        users = USERS_11.replace("Ada,Quist", "Zoë,Núñez")
        write(tmp_path, V11 | {"users": users.encode(encoding)})
        plan = provider(tmp_path).plan(Script({}), YEAR, {})
        assert bool(plan.notes) == (encoding != "utf-8-sig")
        assert rows(synced(tmp_path).good("staff"), "first_name", "last_name") == [("Zoë", "Núñez")]

    def test_american_dates(self, tmp_path: Path) -> None:
        write(tmp_path, V11 | {"enrollments": COMMON["enrollments"].replace("2025-08-20", "8/20/2025")})
        assert rows(synced(tmp_path).frames["enrollments"], "entry_date")[0] == ("2025-08-20",)

    def test_line_breaks_and_quotes_inside_cells(self) -> None:
        body = b'sourcedId,title\r\n1,"a ""b""\r\nc, d"\r\n'
        assert records_of(body, "courses") == [{"sourcedId": "1", "title": 'a "b"\r\nc, d'}]

    def test_a_row_whose_cells_have_shifted_keeps_its_id_only(self) -> None:
        body = b"sourcedId,title,courseCode\n1,Algebra, Honors,MA1\n2,Art\n3,Latin, Old,\n4,Chess,C1\n"
        assert records_of(body, "courses") == [
            *({"sourcedId": row, "title": None, "courseCode": None} for row in ("1", "2", "3")),
            {"sourcedId": "4", "title": "Chess", "courseCode": "C1"},
        ]

    def test_empty_cells_at_the_end_of_every_row_are_padding(self) -> None:
        body = b"sourcedId,title,courseCode,,\n1,Algebra,MA1,,\n2,Art,,,\n"
        assert records_of(body, "courses") == [
            {"sourcedId": "1", "title": "Algebra", "courseCode": "MA1"}, {"sourcedId": "2", "title": "Art", "courseCode": None},
        ]  # fmt: skip
        assert records_of(b"sourcedId,title\n1,Algebra,,\n", "courses") == [{"sourcedId": "1", "title": "Algebra"}]

    def test_such_a_row_is_quarantined_and_counted(self, tmp_path: Path) -> None:
        shifted = USERS_11.replace("t1,,,true,310,teacher,ada,,Ada,Quist", "t1,,,true,310,teacher,ada,,Ada,Quist, Dr.")
        found = synced(write(tmp_path, V11 | {"users": shifted}))
        assert found.validated["staff"].rejected_rows == 1
        assert len(found.good("students")) == 1


class TestCuts:
    def test_a_last_line_without_all_columns(self, tmp_path: Path) -> None:
        cut = COMMON["enrollments"].rstrip("\n").rpartition(",")[0].rpartition(",")[0]
        with pytest.raises(ContractError, match="its last line has 8 of 10 columns"):
            synced(write(tmp_path, V11 | {"enrollments": cut}))

    def test_an_open_quote(self, tmp_path: Path) -> None:
        cut = COMMON["orgs"][: COMMON["orgs"].index("Upper")]
        with pytest.raises(ContractError, match="quotes do not pair up"):
            synced(write(tmp_path, V11 | {"orgs": cut}))

    def test_a_bare_file_without_a_last_line_break_proves_nothing(self, tmp_path: Path) -> None:
        found = synced(write(tmp_path, V11 | {"enrollments": COMMON["enrollments"].rstrip("\n")}))
        assert verdict(found.readings) == "partial"

    def test_in_a_zip_the_checksum_proves_it(self, tmp_path: Path) -> None:
        whole = zipped(tmp_path / "a.zip", V11 | {"enrollments": COMMON["enrollments"].rstrip("\n")})
        assert verdict(synced(whole).readings) == "complete"

    def test_a_cut_zip(self, tmp_path: Path) -> None:
        whole = zipped(tmp_path / "a.zip", V11).read_bytes()
        (tmp_path / "b.zip").write_bytes(whole[:-40])
        with pytest.raises(ContractError, match="not a whole zip"):
            provider(tmp_path / "b.zip").plan(Script({}), YEAR, {})

    def test_a_damaged_zip(self, tmp_path: Path) -> None:
        place = zipped(tmp_path / "a.zip", V11)
        body = bytearray(place.read_bytes())
        body[60] ^= 0xFF
        place.write_bytes(bytes(body))
        with pytest.raises(ContractError, match="damaged, cut or encrypted"):
            provider(place).plan(Script({}), YEAR, {})

    def test_errors_never_repeat_a_row(self, tmp_path: Path) -> None:
        cut = USERS_11.rstrip("\n").rpartition(",")[0]
        with pytest.raises(ContractError) as raised:
            synced(write(tmp_path, V11 | {"users": cut}))
        assert "Okafor" not in str(raised.value)
        assert raised.value.__cause__ is None


class TestOneRosterCsvConformance(ProviderConformance):
    @pytest.fixture
    def provider(self, tmp_path: Path) -> OneRosterCsv:
        return provider(write(tmp_path, V11))

    @pytest.fixture
    def source(self) -> Script:
        return Script({})

    def test_a_cut_off_page_is_no_data(self, provider: OneRosterCsv) -> None:  # type: ignore[override]
        """A file that was cut may end on what looks like a whole row: then its end is not proven."""
        for resource in provider.plan(Script({}), YEAR, {}).resources:
            path = provider.settings.path / f"{resource.name}.csv"
            body = path.read_bytes()
            path.write_bytes(body[:-1])
            pages = resource.pager.pages(None, resource.request, lambda _: [])  # type: ignore[arg-type]
            assert [page.end for page in pages] == [End.UNPROVEN]
            path.write_bytes(body)


@pytest.mark.skipif(
    not REAL.is_dir(), reason=f"no real CSV set at {REAL}; set SIS_TEST_DATA to the folder that holds it"
)
class TestRealSet:
    @pytest.fixture(scope="class")
    @classmethod
    def found(cls) -> Pulled:
        return synced(REAL, SchoolYear.parse("2021-2022"))

    def test_everybody_and_nobody_quarantined(self, found: Pulled) -> None:
        assert verdict(found.readings) == "complete"
        assert {name: len(checked.frame) for name, checked in found.validated.items()} == {
            "schools": 6, "academic_sessions": 2, "courses": 87, "sections": 87, "students": 600, "staff": 0,
            "enrollments": 600, "section_enrollments": 3600, "contacts": 0,
        }  # fmt: skip
        assert sum(checked.rejected_rows + checked.duplicates for checked in found.validated.values()) == 0
        assert check_references({name: checked.frame for name, checked in found.validated.items()}) == []

    def test_a_session_that_overruns_its_parent_only_warns(self, found: Pulled) -> None:
        assert rows(found.validated["academic_sessions"].warnings, "column", "reason") == [
            ("end_date", "after its parent session")
        ]

    def test_every_student_has_one_primary_school(self, found: Pulled) -> None:
        enrollments = found.good("enrollments")
        assert set(enrollments["enrollment_type"]) == {"primary"}
        assert set(enrollments["entry_date_source"]) == {"class_begin"}
        assert found.good("students")["school_sis_id"].notna().all()
