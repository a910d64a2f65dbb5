"""A person turns the comparison of districts on and off, and sees who went over."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from sis_pipeline.cli.output import ExitCode
from sis_pipeline.db.tables import roster_tables
from sis_pipeline.roster.school_year import SchoolYear

TODAY = datetime.now(UTC).date()
YEAR = SchoolYear.on(TODAY).key
LEFT, CAME, LONG_AGO = (TODAY - timedelta(days) for days in (9, 7, 60))
WREN, WREN_TOO, ANA, ANA_TOO, BEN = (str(uuid.UUID(int=number)) for number in range(1, 6))


@pytest.fixture
def districts(home, database):
    """Wren went from north to south, Ana is in both, Ben left north for nobody knows where."""
    with database.begin() as connection:

        def add(table, **values):
            connection.execute(roster_tables[table].insert().values(**values))

        schools = {}
        for district, name in (("north", "Pine"), ("south", "Oak")):
            schools[district] = str(uuid.uuid4())
            add("schools", district=district, school_id=schools[district], name=name, kind="school", integration="ps", sis_id="1")  # fmt: skip
        for district, student_id, ssid, name, stay in (
            ("north", WREN, "S1", "Wren", {"exit_date": LEFT, "status": "withdrawn"}),
            ("south", WREN_TOO, "S1", "Wren", {"entry_date": CAME}),
            ("north", ANA, "S2", "Ana", {}),
            ("south", ANA_TOO, "S2", "Ana", {"entry_date": CAME}),
            ("north", BEN, "S3", "Ben", {"exit_date": LEFT, "status": "withdrawn", "exit_code": "T2"}),
        ):
            who = {"district": district, "student_id": student_id}
            add("students", ssid=ssid, first_name=name, last_name="Moss", latest_school_year=YEAR, near_match=False, origins={"*": "ps/1"}, **who)  # fmt: skip
            known = {
                "entry_date": LONG_AGO,
                "entry_date_source": "sis",
                "enrollment_type": "primary",
                "status": "active",
            }
            add("enrollments", school_id=schools[district], school_year=YEAR, integration="ps", sis_id=f"e-{student_id}", **who, **{**known, **stay})  # fmt: skip
    return database


def test_it_is_off_until_somebody_turns_it_on(districts, sis):
    said = sis("transfers", "list")
    assert (said.code, said.out.strip()) == (
        ExitCode.OK,
        "Districts are not compared; `sis transfers on --reason …` begins it.",
    )
    assert sis("transfers", "list", "--json").json == {"enabled": False, "transfers": [], "total": 0}
    on = sis("transfers", "on", "--reason", "the state asks")
    assert (on.code, on.out.strip()) == (
        ExitCode.OK,
        "Districts are compared: concurrent 1, match 2, transfer 1.",
    )
    assert "statewide.on" in sis("audit", "show", "--district", "*").out
    off = sis("transfers", "off", "--reason", "no longer", "--json").json
    assert (off["matching"]["enabled"], off["found"]) == (False, {})


def test_who_went_over_is_listed_with_both_halves(districts, sis):
    sis("transfers", "on", "--reason", "the state asks")
    listed = sis("transfers", "list", "--json").json
    kinds = {row["kind"]: row for row in listed["transfers"]}
    assert (listed["total"], set(kinds)) == (3, {"transfer", "concurrent", "pending_transfer"})
    went, pending = kinds["transfer"], kinds["pending_transfer"]
    assert [went[it] for it in ("district", "school", "exit_date", "student_id")] == ["north", "Pine", f"{LEFT}", WREN]
    assert [went[f"other_{it}"] for it in ("district", "school", "student_id")] == ["south", "Oak", WREN_TOO]
    assert (went["entry_date"], went["first_name"]) == (f"{CAME}", "Wren")
    assert [pending[it] for it in ("student_id", "exit_date", "other_district", "entry_date")] == [BEN, f"{LEFT}", None, None]  # fmt: skip
    assert kinds["concurrent"]["exit_date"] is None

    assert sis("transfers", "list", "--kind", "concurrent", "--json").json["total"] == 1
    assert sis("transfers", "list", "--district", "south", "--json").json["total"] == 2
    said = sis("transfers", "list", "--limit", 1)
    assert "3 rows, 1 shown (--limit)" in said.out
    assert "Wren Moss" in sis("transfers", "list", "--kind", "transfer").out


@pytest.mark.parametrize(("student", "there"), [(WREN, WREN_TOO), (WREN_TOO, WREN)])
def test_a_student_is_shown_with_the_record_in_the_other_district(districts, sis, student, there):
    sis("transfers", "on", "--reason", "the state asks")
    [file] = sis("students", "show", student, "--json").json["students"]
    assert [(it["student_id"], it["decision"], it["evidence"]) for it in file["elsewhere"]] == [
        (there, "match", "ssid, first_name, last_name")
    ]
    assert [(it["kind"], it["district"], it["other_district"]) for it in file["transfers"]] == [("transfer", "north", "south")]  # fmt: skip
    said = sis("students", "show", student)
    assert "In other districts" in said.out
    assert "Between districts" in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("on",), ExitCode.USAGE, "--reason"),
        (("off", "--reason", " "), ExitCode.CONFIG, "who says so and why"),
        (("list", "--kind", "lost"), ExitCode.USAGE, "--kind"),
    ],
)
def test_what_can_not_be_done_is_refused_in_words(districts, sis, arguments, code, words):
    said = sis("transfers", *arguments)
    assert said.code == code
    assert words in said.err
