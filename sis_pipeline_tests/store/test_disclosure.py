"""Who was in which export is told exactly: by the export itself, however many there were, and for merged students too."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import disclosed_students, disclosures, sync_operations
from sis_pipeline.roster.model import MERGED
from sis_pipeline.store import bulk
from sis_pipeline.store.disclosure import Disclosing, Disclosures, record
from sis_pipeline.store.oneroster_export import export_oneroster
from sis_pipeline_tests.roster.elmsworth import DISTRICT, STREET, YEAR, published, uid
from sis_pipeline_tests.store.conftest import count


@pytest.fixture
def engine(database: Engine) -> Engine:
    """A database in which the district is published."""
    with database.begin() as connection:
        for name, frame in published().items():
            bulk.append(connection, MERGED[name], frame, scope={"district": DISTRICT})
        connection.execute(
            sync_operations.insert().values(
                district=DISTRICT, school_year=YEAR.key, operation_id=uid("operation"), epoch=7, base_epoch=6,
                status="published", fingerprint="f", inputs={},
            )
        )  # fmt: skip
    return database


def export(engine: Engine, folder: Path, **options: object) -> int:
    return export_oneroster(engine, folder, DISTRICT, YEAR.key, actor="registrar", **options).disclosure


def told(engine: Engine, name: str) -> list[tuple[str | None, bool | None]]:
    """Recipient of each disclosure that had a student, the newest first."""
    return [(one.recipient, one.included) for one in Disclosures(engine).of(uid(name)).disclosures]


def test_an_export_says_who_received_what_when_and_why(engine, tmp_path):
    number = export(engine, tmp_path / "out", recipient="the library", reason="library cards")
    found = Disclosures(engine).of(uid("Ada"))
    (one,) = found.disclosures
    assert (one.recipient, one.reason, one.actor, one.epoch) == ("the library", "library cards", "registrar", 7)
    assert (one.form, one.school_year, one.destination) == ("OneRoster 1.2 CSV", YEAR.key, str(tmp_path / "out"))
    assert {"givenName", "familyName"} <= set(one.fields["users"])
    assert "birthDate" in one.fields["demographics"]
    assert "password" not in one.fields["users"]
    assert {one.table for one in found.published} >= {"students", "enrollments", "student_years"}
    assert {one.school_year for one in found.published if one.table == "enrollments"} == {YEAR.key}
    with engine.connect() as connection:
        entry = connection.execute(
            text("select details from sis.audit_log where action = 'export.oneroster'")
        ).scalar_one()
    assert (entry["disclosure"], entry["recipient"]) == (number, "the library")


def test_only_who_was_in_a_set_is_told_to_have_been(engine, tmp_path):
    export(engine, tmp_path / "11", version="1.1", recipient="the portal")
    export(engine, tmp_path / "12", recipient="the library")
    assert told(engine, "Cy") == [("the library", True)]  # who left is in no set of 1.1
    assert told(engine, "Ada") == [("the library", True), ("the portal", True)]
    assert told(engine, "Eve") == []  # has no place in the format
    with engine.begin() as connection:
        connection.execute(text("delete from sis.students where student_id = :id"), {"id": uid("Ada")})
    export(engine, tmp_path / "12", recipient="the library, again")
    assert told(engine, "Ada") == [("the library", True), ("the portal", True)]
    assert told(engine, "Cy") == [("the library, again", True), ("the library", True)]


def test_the_same_roster_every_night_adds_no_rows_of_students(engine, tmp_path):
    export(engine, tmp_path / "out")
    students = count(engine, "select count(*) from sis.disclosed_students")
    for _ in range(3):
        export(engine, tmp_path / "out")
    assert count(engine, "select count(*) from sis.disclosed_students") == students > 0
    assert len(told(engine, "Ada")) == 4


def test_a_student_that_was_merged_away_brings_what_was_disclosed_along(engine, tmp_path):
    export(engine, tmp_path / "out")
    with engine.begin() as connection:
        connection.execute(
            text("""insert into sis.student_aliases (district, alias_id, student_id, records, operation_id)
                 values (:district, :alias, :student, '[]', gen_random_uuid())"""),
            {"district": DISTRICT, "alias": uid("Ada"), "student": uid("Cy")},
        )
        connection.execute(text("delete from sis.students where student_id = :id"), {"id": uid("Ada")})
    export(engine, tmp_path / "out")
    record_of = Disclosures(engine).of(uid("Ada"))
    assert (record_of.student_id, len(record_of.disclosures)) == (uid("Cy"), 2)


def test_an_export_from_before_is_told_as_not_known(engine):
    details = {"format": "OneRoster 1.1 CSV", "school_year": YEAR.key, "epoch": 1, "to": "/mnt/x", "reason": "cards"}
    with engine.begin() as connection:
        audit.append(connection, "export.oneroster", YEAR.key, district=DISTRICT, actor="ada", details=details)
        audit.append(connection, "export.oneroster", YEAR.key, district="elsewhere", actor="ada", details=details)
    (one,) = Disclosures(engine).of(uid("Ada")).disclosures
    assert (one.included, one.actor, one.reason, one.fields) == (None, "ada", "cards", {})


def test_an_export_that_was_not_recorded_is_not_made(engine, tmp_path, monkeypatch):
    def lost(*_: object) -> None:
        raise OSError(5, "lost")

    monkeypatch.setattr(bulk, "copy_in", lost)
    with pytest.raises(Exception, match="could not be written"):
        export(engine, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert count(engine, "select count(*) from sis.disclosures") == 0


def test_no_value_of_a_student_is_kept(engine, tmp_path):
    export(engine, tmp_path / "out", preferred_names=True)
    with engine.connect() as connection:
        kept = "".join(
            json.dumps(connection.scalars(text(f"select to_jsonb(t) from {table} t")).all())
            for table in (disclosures, disclosed_students)
        )
    names = [*published()["students"]["last_name"].drop_nulls(), *published()["students"]["ssid"].drop_nulls(), STREET]
    assert [name for name in names if f'"{name}"' in kept] == []


def test_nobody_is_refused(engine):
    with pytest.raises(ConfigError, match="There is no student"):
        Disclosures(engine).of(str(uuid.uuid4()))


SETS = st.lists(st.tuples(st.sampled_from("xy"), st.frozensets(st.integers(0, 3))), min_size=1, max_size=8)


@hypothesis_settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sets=SETS)
def test_who_was_in_which_of_many_is_never_mistaken(database, sets):
    with database.begin() as connection:
        connection.execute(disclosures.delete())
        connection.execute(disclosed_students.delete())
        for number, (where, who) in enumerate(sets):
            going = Disclosing("lincoln", "2025-2026", number, "set", where, None, None, "ada", {}, {})
            record(connection, going, pl.Series([uid(f"student {one}") for one in sorted(who)], dtype=pl.String))
            connection.execute(text("drop table disclosing"))  # which the end of a transaction does otherwise
    for one in {one for _, who in sets for one in who}:
        found = Disclosures(database).of(uid(f"student {one}")).disclosures
        assert [it.epoch for it in found] == [number for number, (_, who) in enumerate(sets) if one in who][::-1]
