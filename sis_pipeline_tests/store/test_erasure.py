"""An erasure takes one student and nobody else, is heeded by merges and undos, and ends however much there is to look at."""

from __future__ import annotations

from contextlib import suppress
from datetime import date

import pytest
from sqlalchemy import text

from sis_pipeline.connect.errors import ConfigError, InternalError
from sis_pipeline.roster.district import merge_district
from sis_pipeline.store import erased, erasure
from sis_pipeline.store.conflicts import Conflicts
from sis_pipeline.store.erasure import Erasing
from sis_pipeline.store.files import DataFolder
from sis_pipeline.store.health import examine
from sis_pipeline.store.identity import Identities
from sis_pipeline.store.locks import lock_key
from sis_pipeline.store.merged import ErasedMeanwhileError
from sis_pipeline.store.publish import SupersededError, publish
from sis_pipeline.store.undo import Undoing
from sis_pipeline_tests.store.conftest import YEAR, add_integration, good_snapshot, sis_student
from sis_pipeline_tests.store.test_roundtrip import ACTIVE, delivery

WHY = ("ada", "the family asked")
BORN = date(2012, 3, 4)
PS, IC, SKY = "lincoln-ps/7", "lincoln-ic/70", "lincoln-sky/700"
ABOUT = ("students", "student_years", "student_links", "student_sources", "enrollments", "enrollment_changes")


@pytest.fixture
def erasing(database, merges, vault) -> Erasing:
    return Erasing(database, merges.files, lambda: vault)


def ready(merges):
    gathered = merges.gather("lincoln", YEAR)
    return merges.write_merged(gathered, merge_district(gathered.inputs))


def merge(database, merges):
    operation = ready(merges)
    publish(database, merges, operation)
    return merges.get(operation.operation_id)


def rows(database, query: str, **values) -> list[tuple]:
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query), values)]


def holders(database) -> dict[str, str]:
    found = rows(database, "select integration || '/' || sis_id, student_id from sis.student_links")
    return {record: str(student) for record, student in found}


def about(database, student_id: str) -> dict[str, int]:
    return {
        table: rows(database, f"select count(*) from sis.{table} where student_id = :id", id=student_id)[0][0]
        for table in ABOUT
    }


def deliver_sky(snapshots, **more) -> None:
    stay = {"sis_id": "e700", "student_sis_id": "700", "school_sis_id": "1", "school_year": YEAR, "grade_level": "07",
            "entry_date": "2025-08-18", "entry_date_source": "sis", "enrollment_type": "primary", "status": "active", **ACTIVE}  # fmt: skip
    good_snapshot(snapshots, "lincoln-sky", students=[sis_student("700", birth_date=BORN, **more)], enrollments=[stay])


@pytest.fixture
def parted(database, snapshots, merges) -> dict[str, str]:
    """Who holds which record, where `sky` was joined to `ic`, `ic` to `ps`, and `sky` then split off again."""
    for key, priority in (("lincoln-ic", 200), ("lincoln-sky", 300)):
        add_integration(database, key, priority=priority)
    good_snapshot(snapshots, students=[sis_student("7", birth_date=BORN)])
    merge(database, merges)
    good_snapshot(snapshots, "lincoln-ic", students=[sis_student("70", birth_date=BORN)])
    merge(database, merges)
    deliver_sky(snapshots)
    merge(database, merges)
    people = Identities(database)
    for joined in ({SKY, IC}, {PS, IC}):
        [near] = [one for one in people.near_matches() if {"/".join(side.record) for side in one.sides} == joined]
        people.confirm(near.near_match_id, *WHY)
        merge(database, merges)
    people.split(holders(database)[SKY], ("lincoln-sky", "700"), *WHY)
    merge(database, merges)
    found = holders(database)
    assert found[PS] == found[IC] != found[SKY]
    return found


def test_who_was_split_off_is_not_erased_with_the_other(database, snapshots, merges, erasing, parted):
    other = about(database, parted[SKY])
    done = erasing.erase(parted[PS], *WHY, force=True)
    assert (done.delivered_by, done.rows) == (("lincoln-ic", "lincoln-ps"), {"students": 3})
    assert (about(database, parted[SKY]), holders(database)) == (other, {SKY: parted[SKY]})
    deliver_sky(snapshots, email="ada@lincoln.example")
    merge(database, merges)
    assert holders(database)[SKY] == parted[SKY], "the next sync still knows the child"


def test_who_is_erased_leaves_the_other_the_ids_that_were_merged(database, erasing, parted):
    [alias] = rows(database, "select alias_id, records from sis.student_aliases where restored_at is null")
    assert alias[1] == [["lincoln-ic", "70"], ["lincoln-sky", "700"]]
    erasing.erase(parted[SKY], *WHY, force=True)
    assert rows(database, "select alias_id, student_id::text, records from sis.student_aliases") == [
        (alias[0], parted[PS], [["lincoln-ic", "70"]])
    ]
    assert set(holders(database)) == {PS, IC}


SAME = {"ssid": "1", "ssid_issuer": "IL", "birth_date": BORN}


def test_a_choice_for_another_student_stays_but_for_the_record(database, snapshots, merges, erasing):
    """The value of the one that stays is the id of the one that goes: it is no record."""
    add_integration(database, "lincoln-ic", priority=200)
    good_snapshot(snapshots, students=[sis_student("7", local_id="8", **SAME), sis_student("8", first_name="Bea")])
    good_snapshot(snapshots, "lincoln-ic", students=[sis_student("70", local_id="9", **SAME)])
    merge(database, merges)
    found = holders(database)
    Conflicts(database).decide(found[PS], "local_id", "lincoln-ic", actor="ada", reason="saw the card")
    seen = rows(database, "select seen from sis.conflict_decisions")
    erasing.erase(found["lincoln-ps/8"], *WHY, force=True)
    assert rows(database, "select seen from sis.conflict_decisions") == seen

    Identities(database).split(found[PS], ("lincoln-ic", "70"), *WHY)
    good_snapshot(snapshots, "lincoln-ic", students=[sis_student("70", local_id="9", birth_date=BORN)])
    merge(database, merges)
    erasing.erase(holders(database)[IC], *WHY, force=True)
    [(left, integration, sis_id)] = rows(database, "select seen, integration, sis_id from sis.conflict_decisions")
    assert sorted(left) == [["lincoln-ic", None, None], ["lincoln-ps", "7", "8"]]
    assert (integration, sis_id) == ("lincoln-ic", None)
    merge(database, merges)
    assert rows(database, "select local_id from sis.students where student_id = :id", id=found[PS]) == [("8",)]


@pytest.fixture
def gone(database, snapshots, merges) -> str:
    """A student who was published, and whom the newest reading has no more."""
    good_snapshot(snapshots, **delivery(0, 1, 2))
    merge(database, merges)
    good_snapshot(snapshots, **delivery(0, 1))
    return holders(database)["lincoln-ps/2"]


def test_an_erasure_after_the_merge_read_and_before_it_has_its_number_is_heeded(
    database, merges, erasing, gone, monkeypatch
):
    opening = merges.open

    def erase_first(*arguments, **more):
        monkeypatch.setattr(merges, "open", opening)
        erasing.erase(gone, *WHY, force=True)
        return opening(*arguments, **more)

    monkeypatch.setattr(merges, "open", erase_first)
    with pytest.raises(ErasedMeanwhileError):
        ready(merges)
    merge(database, merges)
    assert sum(about(database, gone).values()) == 0


def test_a_merge_that_read_what_an_erasure_had_not_reached_yet_is_not_published(
    snapshots, erasing, gone, monkeypatch, merges
):
    good_snapshot(snapshots, **delivery(0, 1, 2))
    read = []
    monkeypatch.setattr(erasure, "crash_point", lambda name: read.append(ready(merges)) if "rows" in name else None)
    erasing.erase(gone, *WHY, force=True)
    with pytest.raises(SupersededError, match="a student was erased since"):
        publish(merges._engine, merges, read[0])
    assert sum(about(merges._engine, gone).values()) == 0


def broken_off(erasing, student_id: str, monkeypatch) -> None:
    def kill(name: str) -> None:
        if name == "erase.rows_gone":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(erasure, "crash_point", kill)
        erasing.erase(student_id, *WHY, force=True)


def test_nothing_is_undone_while_an_erasure_is_unfinished_and_nothing_back_over_it(
    database, snapshots, merges, erasing, monkeypatch
):
    good_snapshot(snapshots, **delivery(0, 1, 2))
    merge(database, merges)
    student_id = holders(database)["lincoln-ps/2"]
    good_snapshot(snapshots, **delivery(0, 1, 2, email="a@lincoln.example"))
    last = merge(database, merges)
    broken_off(erasing, student_id, monkeypatch)
    with pytest.raises(ConfigError, match=f"the erasure of student {student_id} is not finished") as refused:
        Undoing(database, merges).undo(last.operation_id, *WHY)
    assert f"sis erase {student_id}" in refused.value.advice
    assert sum(about(database, student_id).values()) == 0
    erasing.erase(student_id, *WHY)
    with pytest.raises(ConfigError, match="can't be undone"):
        Undoing(database, merges).undo(last.operation_id, *WHY)


def test_an_erasure_that_overtakes_an_undo_is_heeded(database, snapshots, merges, erasing, monkeypatch):
    good_snapshot(snapshots, **delivery(0, 1, 2))
    merge(database, merges)
    student_id = holders(database)["lincoln-ps/2"]
    good_snapshot(snapshots, **delivery(0, 1, 2, email="a@lincoln.example"))
    last = merge(database, merges)
    opening = merges.open

    def erase_meanwhile(*arguments, **more):
        opened = opening(*arguments, **more)
        broken_off(erasing, student_id, monkeypatch)
        return opened

    monkeypatch.setattr(merges, "open", erase_meanwhile)
    with pytest.raises(ConfigError, match="is not finished"):
        Undoing(database, merges).undo(last.operation_id, *WHY)
    assert sum(about(database, student_id).values()) == 0


def test_an_undo_does_not_go_back_over_an_erasure_whose_files_it_finds(database, snapshots, merges, erasing, gone):
    """As where a merge that was under way wrote its frames after the erasure had looked."""
    last = merge(database, merges)
    before = merges.get(str(rows(database, "select operation_id from sis.sync_operations order by epoch")[0][0]))
    kept = {name: merges.files.read(f"{one.path}/{name}") for one in (before,) for name in files_of(merges, before)}
    own = {name: merges.files.read(f"{last.path}/{name}") for name in files_of(merges, last)}
    erasing.erase(gone, *WHY, force=True)
    for operation, found in ((before, kept), (last, own)):
        for name, body in found.items():
            merges.files.write(f"{operation.path}/{name}", body, replace=True)
    with pytest.raises(ConfigError, match="a student was erased since"):
        Undoing(database, merges).plan(last.operation_id)


def files_of(merges, operation) -> list[str]:
    return [name for name in merges.files.names(operation.path) if "." in name]


def test_an_unfinished_erasure_is_a_problem_for_a_person(database, merges, erasing, gone, monkeypatch):
    broken_off(erasing, gone, monkeypatch)
    with database.connect() as connection:
        [problem] = [one for one in examine(connection, YEAR).problems if one.kind == "erasure"]
        assert (problem.subject, problem.person) == ("lincoln", True)
        assert gone in problem.message
        assert f"sis erase {gone}" in problem.advice
        assert erased.unfinished(connection, "washington") == []
    erasing.erase(gone, *WHY)
    with database.connect() as connection:
        assert [one for one in examine(connection, YEAR).problems if one.kind == "erasure"] == []


def test_files_are_looked_at_while_the_district_can_publish(database, erasing, gone, monkeypatch):
    """They may take hours together, and PostgreSQL ends a transaction that does nothing for 5 minutes."""
    free = []

    def watch(name: str) -> None:
        reading = getattr(DataFolder, name)

        def watched(self, path, *arguments):
            with database.begin() as connection:
                key = {"key": lock_key("publish", "lincoln")}
                free.append(connection.scalar(text("select pg_try_advisory_xact_lock(:key)"), key))
            return reading(self, path, *arguments)

        monkeypatch.setattr(DataFolder, name, watched)

    watch("read")
    watch("read_columns")
    erasing.erase(gone, *WHY, force=True)
    assert rows(database, "select finished_at is not null from sis.erasures") == [(True,)]
    assert (len(free) > 10, all(free)) == (True, True)


def test_what_comes_while_files_are_looked_at_is_found_at_the_end(database, snapshots, erasing, gone, monkeypatch):
    def read_another_year(name: str) -> None:
        if name == "erase.file_done":
            monkeypatch.undo()
            good_snapshot(snapshots, year="2026-2027", **delivery(0, 2))

    monkeypatch.setattr(erasure, "crash_point", read_another_year)
    with pytest.raises(InternalError, match="is still in roster"):
        erasing.erase(gone, *WHY, force=True)
    assert erasing.erase(gone, *WHY).rows == {"students": 1, "enrollments": 1, "section_enrollments": 1}


def test_what_a_killed_process_left_half_written_goes_too(snapshots, merges, erasing, gone):
    snapshot = good_snapshot(snapshots, **delivery(0, 1))
    [merged] = [one for one in [merges.newest("lincoln", YEAR, "published")] if one]
    left = [f"{snapshot.folder('roster')}/.students.parquet.77.part", f"{merged.path}/.students.parquet.77.part"]
    for path in left:
        merges.files.write(path, b"PAR1 cut off")
    erasing.erase(gone, *WHY, force=True)
    assert [path for path in left if merges.files.exists(path)] == []
