"""In SQL, whose value of an attribute is published and whose it would be without that one: as the merge itself would say."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest
from sqlalchemy import text

from sis_pipeline.roster.attributes import ATTRIBUTES, EDITED
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.merge import LOCAL, merge_students
from sis_pipeline.roster.model import STUDENT_SOURCES, STUDENTS
from sis_pipeline.store import bulk, survivorship
from sis_pipeline.store.conflicts import Conflicts
from sis_pipeline.store.publish import publish
from sis_pipeline.store.survivorship import Survivorship
from sis_pipeline_tests.store.conftest import YEAR, add_integration, good_snapshot, sis_student

BY = {"actor": "ada", "reason": "to see who is next"}
PRIORITIES = {"lincoln-ps": 100, "lincoln-ic": 50, "lincoln-or": 100}
VARIED: dict[str, tuple[Any, ...]] = {
    "email": ("a@x.org", "b@x.org", None),
    "phone": ("5125550100", "5125550111", None),
    "middle_name": ("Ann", "Bo", None),
    "home_street": ("1 Elm", None),
    "home_city": ("Pine", None),
    "address_confidential": (True, False, None),
    "graduation_year": (2030, 2031, None),
    "modified_at": (datetime(2025, 9, 1, tzinfo=UTC), datetime(2025, 9, 2, tzinfo=UTC), None),
}


@pytest.fixture
def published(database, merges, snapshots):
    """Twelve children in up to four records of three systems that say this and that."""
    rng = random.Random(7)
    for key, priority in PRIORITIES.items():
        if key != "lincoln-ps":
            add_integration(database, key, priority=priority)
        records = [
            sis_student(f"{number}.{copy}", ssid=str(number), birth_date=date(2012, 3, 4), last_name=f"Null{number}",
                        **{name: rng.choice(values) for name, values in VARIED.items()})
            for number in range(12)
            for copy in range(rng.choice((0, 1, 1, 1, 2)))
        ]  # fmt: skip
        good_snapshot(snapshots, key, students=records or [sis_student("x")])

    def roster():
        gathered = merges.gather("lincoln", YEAR)
        return publish(database, merges, merges.write_merged(gathered, merge_district(gathered.inputs)))

    roster()
    return roster


def told(database) -> dict[tuple[str, str], Any]:
    query = """
    select s.student_id::text, p.* from sis.students s
    cross join lateral sis.provenance(s.district, s.student_id) p
    """
    with database.connect() as connection:
        return {(row.student_id, row.attribute): row for row in connection.execute(text(query))}


def named(origins: Mapping[str, str], attribute: str) -> str:
    """`integration/sis_id` of an attribute in `origins`, an edit's time aside."""
    return origins.get(attribute, origins["*"]).split(" ")[0] if attribute in origins else origins["*"]


def without_winners(database, found: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, str]]:
    """Student -> origins, had the record that gave each attribute said nothing of it; of those who have another."""
    with database.connect() as connection:
        sources = bulk.read(connection, STUDENT_SOURCES, {"district": "lincoln"})
        policies = survivorship.policies(connection, "lincoln")
    columns = []
    for attribute in (one for one in ATTRIBUTES if one.is_personal):
        won = pl.DataFrame(
            [(student, row.integration, row.sis_id, True) for (student, name), row in found.items() if name == attribute.name],
            schema={"student_id": pl.String, "integration": pl.String, "sis_id": pl.String, "won": pl.Boolean},
            orient="row",
        )  # fmt: skip
        beside = sources.join(won, on=["student_id", "integration", "sis_id"], how="left", maintain_order="left")["won"]
        columns += [pl.when(beside.is_null()).then(pl.col(name)).alias(name) for name in attribute.columns]
    told = pl.struct("student_id", "integration", "sis_id", "cleared").map_elements(
        lambda it: json.dumps([name for name in json.loads(it["cleared"] or "[]") if not _won(found, it, name)]),
        return_dtype=pl.String,
    )
    silenced = sources.with_columns(*columns, cleared=told, school_id=pl.lit(None, pl.String))
    merged = merge_students(silenced, policies, PRIORITIES)
    values = merged.students.rows(named=True)
    return {
        row["student_id"]: {
            name: named(json.loads(row["origins"]), name)
            for name, block in EDITED.items()
            if any(row[column] is not None for column in block) or name in json.loads(row["origins"])
        }
        for row in values
    }


def _won(found: Mapping[tuple[str, str], Any], record: Mapping[str, str], attribute: str) -> bool:
    row = found.get((record["student_id"], attribute))
    return row is not None and (row.integration, row.sis_id) == (record["integration"], record["sis_id"])


TAKEN = (("email",), ("phone",), ("home_street", "home_city"), (), ())


def without(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != column}


@pytest.fixture
def cleared(database, published, snapshots):
    """The same children, of whom some systems took away what they had said."""
    rng = random.Random(8)
    with database.connect() as connection:
        sources = bulk.read(connection, STUDENT_SOURCES, {"district": "lincoln"})
    said = sources.select("integration", *(name for name in STUDENTS.names if name in sources.columns)).to_dicts()
    for key in PRIORITIES:
        mine = [{**row, **dict.fromkeys(rng.choice(TAKEN))} for row in said if row["integration"] == key]
        good_snapshot(snapshots, key, students=[sis_student(**without(row, "integration")) for row in mine])
    published()


def told_right(database, published, policy):
    """What is told under a policy, once every runner-up was found to be whom the merge would take next."""
    if policy != "sis_wins":
        Survivorship(database).set("lincoln", {"default": policy}, **BY)
        published()
    found = told(database)
    expected = without_winners(database, found)
    for (student, attribute), row in found.items():
        next_one = f"{row.runner_up_integration}/{row.runner_up_sis_id}" if row.runner_up_sis_id else None
        assert next_one == expected[student].get(attribute), (student, attribute)
    return found


@pytest.mark.parametrize("policy", ["sis_wins", "newest_wins"])
def test_what_was_cleared_has_a_source_and_a_runner_up_too(database, published, cleared, policy):
    found = told_right(database, published, policy)
    empty = [row for row in found.values() if row.rule == "cleared"]
    assert len(empty) > 2
    assert all(row.read_at is not None for row in empty)
    assert any(row.runner_up_sis_id for row in empty), "whose value it would be else"


@pytest.mark.parametrize("policy", ["sis_wins", "newest_wins"])
def test_who_is_next_is_whom_the_merge_would_take_if_the_first_said_nothing(database, published, policy):
    found = told_right(database, published, policy)
    assert sum(row.runner_up_sis_id is not None for row in found.values()) > 60
    rules = {
        row.rule
        for (_, attribute), row in found.items()
        if attribute not in {"address_confidential", "directory_opt_out"}
    }
    assert rules == {policy}
    assert {row.rule for (_, attribute), row in found.items() if attribute == "address_confidential"} == {"any_true"}


def test_who_is_first_is_as_the_origins_say_and_since_when(database, published):
    found = told(database)
    with database.connect() as connection:
        query = "select student_id::text, origins, to_jsonb(s) as said from sis.students s"
        students = connection.execute(text(query)).all()
    assert {student for student, _ in found} == {row.student_id for row in students}
    for row in students:
        mine = {attribute: one for (student, attribute), one in found.items() if student == row.student_id}
        assert set(mine) == {name for name, block in EDITED.items() if any(row.said[it] is not None for it in block)}
        for attribute, one in mine.items():
            assert f"{one.integration}/{one.sis_id}" == named(row.origins, attribute)
            assert one.read_at is not None


def test_an_edit_and_a_decision_have_a_runner_up_too(database, published):
    with database.begin() as connection:
        student = connection.scalar(text("select min(student_id::text) from sis.conflicts where attribute = 'phone'"))
        connection.execute(text("update sis.students set phone = '5125550199' where student_id = :s"), {"s": student})
    before = told(database)[student, "phone"]
    assert (before.rule, before.runner_up_integration is not None) == ("sis_wins", True)
    published()
    overruled = told(database)[student, "phone"]
    assert (overruled.integration, overruled.sis_id) == (before.integration, before.sis_id)

    Survivorship(database).set("lincoln", {"phone": "local_wins"}, **BY)
    published()
    won = told(database)[student, "phone"]
    assert (won.integration, won.rule) == (LOCAL, "local_wins")
    assert (won.runner_up_integration, won.runner_up_sis_id) == (before.integration, before.sis_id)
    assert won.read_at is not None

    Conflicts(database).decide(student, "phone", f"{before.integration}/{before.sis_id}", **BY)
    published()
    decided = told(database)[student, "phone"]
    assert (decided.integration, decided.rule) == (before.integration, "decided")
    assert decided.runner_up_integration == LOCAL, "whom the policy would take"


def test_every_attribute_of_a_person_is_known_to_it(database, published, snapshots):
    everything = {name: _any(name) for block in EDITED.values() for name in block}
    good_snapshot(snapshots, "lincoln-or", students=[sis_student("all", **{**everything, "ssid": "999"})])
    published()
    [student] = {student for (student, _), row in told(database).items() if row.sis_id == "all"}
    assert {attribute for who, attribute in told(database) if who == student} == set(EDITED)


def _any(name: str) -> Any:
    kinds = {"date": date(2012, 3, 4), "bool": True, "int": 2030}
    column = STUDENTS[name]
    return kinds.get(column.kind, column.codes[0] if column.codes else "x")
