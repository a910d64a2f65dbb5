"""What a published roster is in OneRoster's words: who is in it, under which ids, and what stays out."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.formulas import quoted, unquoted
from sis_pipeline.roster.oneroster_export import VERSIONS, OneRosterSet, Version, oneroster_set
from sis_pipeline_tests.roster.elmsworth import DISTRICT, STREET, YEAR, published, uid
from sis_pipeline_tests.roster.rosters import laws


def exported(version: Version = "1.2", **options: Any) -> OneRosterSet:
    return oneroster_set(published(), DISTRICT, YEAR, version, **options)


def row(made: OneRosterSet, name: str, **where: str) -> dict[str, Any]:
    """The one row with these values, without its nulls."""
    (found,) = made.files[name].filter(**where).to_dicts()
    return {column: value for column, value in found.items() if value is not None}


NAMES = {uid(name): name for name in ("Ada", "Ben", "Cy", "Dee", "Eve", "Fay", "Gus", "Hal", "Tia", "Abe", "Pat", "Jo", "Sub", "Old", "North", "Brook", "ALG", "HR", "ART", "S1", "S2", "Year", "Q1", "Q2", "Q3", "G1")}  # fmt: skip


def named(ids: pl.Series) -> set[str]:
    return {NAMES.get(one, one) for one in ids}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_reference_leads_to_a_row(version: Version) -> None:
    files = exported(version).files
    ids = {name: set(frame["sourcedId"]) for name, frame in files.items()}
    for name, column, target in (
        ("orgs", "parentSourcedId", "orgs"),
        ("academicSessions", "parentSourcedId", "academicSessions"),
        ("courses", "orgSourcedId", "orgs"),
        ("classes", "courseSourcedId", "courses"),
        ("classes", "schoolSourcedId", "orgs"),
        ("classes", "termSourcedIds", "academicSessions"),
        ("enrollments", "classSourcedId", "classes"),
        ("enrollments", "schoolSourcedId", "orgs"),
        ("enrollments", "userSourcedId", "users"),
        ("demographics", "sourcedId", "users"),
        *([("users", "orgSourcedIds", "orgs")] if version == "1.1" else []),
        *([("users", "primaryOrgSourcedId", "orgs"), ("roles", "userSourcedId", "users"), ("roles", "orgSourcedId", "orgs")] if version == "1.2" else []),
    ):  # fmt: skip
        named_there = {one for cell in files[name][column].drop_nulls() for one in cell.split(",")}
        assert named_there, (name, column)
        assert named_there <= ids[target], (name, column)


@pytest.mark.parametrize("version", VERSIONS)
def test_ids_are_unique_and_rows_are_in_their_order_whatever_the_order_of_the_tables(version: Version) -> None:
    made = exported(version)
    for name, frame in made.files.items():
        assert frame["sourcedId"].is_sorted()
        assert frame["sourcedId"].n_unique() == frame.height > 0, name
    shuffled = {name: frame.reverse() for name, frame in published().items()}
    again = oneroster_set(shuffled, DISTRICT, YEAR, version)
    assert all(again.files[name].equals(frame) for name, frame in made.files.items())
    assert again.left_out == made.left_out


def test_who_left_is_in_1_2_with_dates_and_not_in_1_1() -> None:
    new, old = exported("1.2"), exported("1.1")
    assert named(new.files["demographics"]["sourcedId"]) == {"Ada", "Ben", "Cy", "Dee", "Fay", "Gus"}
    assert named(old.files["demographics"]["sourcedId"]) == {"Ada", "Ben", "Dee", "Fay", "Gus"}
    assert (new.left_out["students"], old.left_out["students"]) == (1, 2), "Eve, who never came; in 1.1 also Cy"
    gone = row(new, "roles", userSourcedId=uid("Cy"))
    assert (gone["beginDate"], gone["endDate"], gone["roleType"]) == ("2025-08-18", "2025-11-03", "primary")
    assert row(new, "users", sourcedId=uid("Cy"))["enabledUser"] == "false"
    assert row(old, "users", sourcedId=uid("Fay"))["orgSourcedIds"] == f"{uid('North')},{uid('Brook')}", "primary first"


def test_a_student_has_one_primary_role_per_school_and_a_primary_school() -> None:
    made = exported()
    gus = made.files["roles"].filter(userSourcedId=uid("Gus")).sort("beginDate")
    assert gus["roleType"].to_list() == ["secondary", "primary"]
    primaries = made.files["roles"].filter(roleType="primary").group_by("userSourcedId", "orgSourcedId").len()
    assert primaries["len"].to_list() == [1] * primaries.height
    assert {name: row(made, "users", sourcedId=uid(name))["primaryOrgSourcedId"] for name in ("Dee", "Fay")} == {
        "Dee": uid("Brook"), "Fay": uid("North"),
    }  # fmt: skip


def test_ids_outlive_corrections() -> None:
    """A corrected entry date, a new name and a new teacher change rows, never their ids."""
    before, tables = exported(), published()
    day = pl.col("entry_date").dt.offset_by("1d")
    tables["enrollments"] = tables["enrollments"].with_columns(entry_date=day)
    tables["students"] = tables["students"].with_columns(last_name=pl.lit("Renamed"))
    tables["staff"] = tables["staff"].with_columns(role=pl.lit("aide"))
    after = oneroster_set(tables, DISTRICT, YEAR, "1.2")
    assert not after.files["roles"].equals(before.files["roles"])
    for name, frame in before.files.items():
        assert after.files[name]["sourcedId"].equals(frame["sourcedId"]), name


def test_a_stay_that_goes_renumbers_the_later_ones_at_its_school() -> None:
    """Nothing of a stay is permanent but its place in the order: its dates and its record may be corrected."""
    before, tables = exported().files["roles"].filter(userSourcedId=uid("Gus")).sort("beginDate"), published()
    assert before["orgSourcedId"].n_unique() == 1
    first = (pl.col("student_id") == uid("Gus")) & (
        pl.col("entry_date") == pl.col("entry_date").min().over("student_id")
    )
    tables["enrollments"] = tables["enrollments"].filter(~first)
    (left,) = oneroster_set(tables, DISTRICT, YEAR, "1.2").files["roles"].filter(userSourcedId=uid("Gus")).to_dicts()
    assert (left["sourcedId"], left["beginDate"]) == (before["sourcedId"][0], before["beginDate"][1])


def test_a_role_in_a_section_is_part_of_its_id() -> None:
    before, tables = exported(), published()
    subs = (pl.col("person_id") == uid("Sub")) & (pl.col("section_id") == uid("HR"))
    role = pl.when(subs).then(pl.lit("aide")).otherwise("role")
    tables["section_enrollments"] = tables["section_enrollments"].with_columns(role=role)
    after = oneroster_set(tables, DISTRICT, YEAR, "1.2")
    seats = [row(made, "enrollments", userSourcedId=uid("Sub"), classSourcedId=uid("HR")) for made in (before, after)]
    assert [seat["role"] for seat in seats] == ["teacher", "ext:aide"]
    assert seats[0]["sourcedId"] != seats[1]["sourcedId"]


def test_what_several_systems_call_the_district_is_one_organisation() -> None:
    orgs = exported().files["orgs"]
    (district,) = orgs.filter(type="district").to_dicts()
    assert district["identifier"] == "900"
    assert named(orgs.filter(parentSourcedId=district["sourcedId"])["sourcedId"]) == {"North", "Brook"}
    made = exported()
    assert row(made, "roles", userSourcedId=uid("Pat"))["orgSourcedId"] == district["sourcedId"]
    nameless = {**published(), "schools": published()["schools"].filter(pl.col("kind") == "school")}
    alone = oneroster_set(nameless, DISTRICT, YEAR, "1.2").files["orgs"].filter(type="district").to_dicts()
    assert alone == [{**district, "name": DISTRICT, "identifier": DISTRICT}], "the same id, whoever lists it"


def test_sections_get_the_sessions_that_their_dates_consist_of() -> None:
    made = exported()
    terms = {name: row(made, "classes", sourcedId=uid(name))["termSourcedIds"] for name in ("ALG", "ART", "HR")}
    assert terms["ALG"] == uid("S1"), "not the grading period in it"
    assert set(terms["ART"].split(",")) == {uid("Q1"), uid("Q2")}, "of its own system and school"
    whole = row(made, "academicSessions", sourcedId=terms["HR"])
    assert (whole["type"], whole["startDate"], whole["endDate"], whole["schoolYear"]) == (
        "schoolYear", "2025-07-01", "2026-07-01", "2026",
    )  # fmt: skip
    parents = {
        name: row(made, "academicSessions", sourcedId=uid(name)).get("parentSourcedId")
        for name in ("Year", "S1", "G1", "Q3")
    }
    assert parents == {"Year": None, "S1": uid("Year"), "G1": uid("S1"), "Q3": None}


def test_a_section_has_a_course_and_its_lead_teacher_even_if_the_tables_do_not_say_so() -> None:
    made = exported()
    own = row(made, "classes", sourcedId=uid("HR"))["courseSourcedId"]
    assert row(made, "courses", sourcedId=own)["title"] == "HR"
    lead = row(made, "enrollments", classSourcedId=uid("ART"), role="teacher")
    assert (lead["userSourcedId"], lead["primary"]) == (uid("Tia"), "true")
    assert row(made, "enrollments", classSourcedId=uid("ALG"), role="teacher")["primary"] == "true"
    assert row(made, "enrollments", classSourcedId=uid("HR"), role="teacher")["primary"] == "false", "HR has no lead"
    assert "primary" not in row(made, "enrollments", classSourcedId=uid("ALG"), userSourcedId=uid("Ada"))
    assert row(made, "courses", sourcedId=uid("Algebra"))["subjects"] == "Mathematics; pure"


@pytest.mark.parametrize(
    ("version", "roles"),
    [
        ("1.1", {"Tia": "teacher", "Abe": "aide", "Pat": "administrator", "Jo": "aide", "Sub": "aide"}),
        ("1.2", {"Tia": "teacher", "Abe": "counselor", "Pat": "principal", "Jo": "aide", "Sub": "aide"}),
    ],
)
def test_staff_who_work_or_teach_here_get_no_more_rights_than_they_have(
    version: Version, roles: dict[str, str]
) -> None:
    made = exported(version)
    file, key = ("users", "sourcedId") if version == "1.1" else ("roles", "userSourcedId")
    staff = made.files[file].filter(pl.col("role") != "student")
    assert {NAMES[person]: role for person, role in staff.select(key, "role").iter_rows()} == roles
    assert made.left_out["staff"] == 1, "Old, whom nobody lists any more"
    assert row(made, "users", sourcedId=uid("Sub"))["enabledUser"] == "false"


def test_seats_without_a_place_are_counted() -> None:
    made = exported()
    assert made.left_out["section enrollments"] == 3, "Eve's, one of nobody known, one of a role nobody understood"
    assert row(made, "enrollments", userSourcedId=uid("Jo"))["role"] == "ext:aide"
    assert row(exported("1.1"), "enrollments", userSourcedId=uid("Jo"))["role"] == "aide"


@pytest.mark.parametrize("version", VERSIONS)
def test_protected_addresses_and_near_matches(version: Version) -> None:
    made = exported(version)
    text = " ".join(frame.write_csv() for frame in made.files.values())
    assert STREET not in text
    assert "Elm Street" not in text, "the format has no addresses"
    ben = row(made, "users", sourcedId=uid("Ben"))
    assert ben["givenName"] == "Ben", "a refusal of directory information does not take a child off the roster"
    assert ben["enabledUser"] == "false", "no account for a near match"
    assert ("sex" in row(made, "demographics", sourcedId=uid("Ben"))) == (version == "1.2"), "1.1 has no word for it"


def test_preferred_names_only_where_asked_for() -> None:
    plain, asked = exported(), exported(preferred_names=True)
    assert not {"preferredGivenName", "pronouns"} & set(plain.files["users"].columns)
    ada = row(asked, "users", sourcedId=uid("Ada"))
    assert (ada["givenName"], ada["preferredGivenName"], ada["pronouns"]) == ("Ada", "Addie", "she")
    assert row(asked, "users", sourcedId=uid("Tia"))["preferredGivenName"] == "T."
    with pytest.raises(ValueError, match=r"1\.1"):
        exported("1.1", preferred_names=True)


def test_what_a_user_and_demographics_hold() -> None:
    made = exported()
    ada = row(made, "users", sourcedId=uid("Ada"))
    assert {name: ada[name] for name in ("familyName", "middleName", "username", "phone", "userIds", "grades")} == {
        "familyName": "'=cmd|' /C calc'!A0", "middleName": "''-x", "username": "'@ada", "phone": "+1 (555) 010-7788",
        "userIds": "{stateID:00Ada}", "grades": "09",
    }  # fmt: skip
    races = row(made, "demographics", sourcedId=uid("Ada"))
    assert (races["asian"], races["demographicRaceTwoOrMoreRaces"]) == ("true", "true")
    assert row(made, "demographics", sourcedId=uid("Cy"))["demographicRaceTwoOrMoreRaces"] == "false"
    assert "demographicRaceTwoOrMoreRaces" not in row(made, "demographics", sourcedId=uid("Dee")), "unknown is not no"
    old = exported("1.1")
    assert [row(old, "users", sourcedId=uid(name))["username"] for name in ("Ada", "Tia", "Gus")] == [
        "'@ada", "tia@elmsworth.example", uid("Gus"),
    ]  # fmt: skip


def test_a_roster_of_nothing_is_a_set_of_one_organisation() -> None:
    empty = {name: frame.clear() for name, frame in published().items()}
    for version in VERSIONS:
        made = oneroster_set(empty, DISTRICT, YEAR, version)
        assert {name: frame.height for name, frame in made.files.items() if frame.height} == {"orgs": 1}


@laws(300)
@given(st.lists(st.text(alphabet="'=+-@\t\r 1a(", max_size=5), min_size=1, max_size=8))
def test_no_cell_begins_a_formula_and_every_value_comes_back(values: list[str]) -> None:
    written = pl.DataFrame({"cell": values}).select(cell=quoted(pl.col("cell")))["cell"].to_list()
    assert [unquoted(cell) for cell in written] == values
    for cell in written:
        assert cell[:1] not in set("=-@\t\r")
        assert cell[:1] != "+" or not set(cell[1:]) - set("0123456789 ().-"), "a phone number is no formula"
