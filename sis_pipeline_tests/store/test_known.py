"""A merge need not read what it published itself; but whatever anybody wrote beside the pipeline is found, and made good."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import polars as pl
import pytest
from sqlalchemy import text

from sis_pipeline.roster.contract import PUBLICATION, Memory
from sis_pipeline.roster.model import MERGED
from sis_pipeline.store import bulk
from sis_pipeline.store.bulk import Applied
from sis_pipeline.store.known import KNOWN, writes_mark
from sis_pipeline.store.merged import MergeStore, Operation
from sis_pipeline.store.news import news_of
from sis_pipeline.store.publish import publish
from sis_pipeline.store.undo import Undoing
from sis_pipeline_tests.store.conftest import YEAR, count, enrollment, merged_roster, student

SHARED = {name for name, way in PUBLICATION.items() if way == "upsert"}
MEMORY = Memory(
    pl.DataFrame({"integration": ["a"], "sis_id": ["1"], "said": [2**64 - 1]}, schema_overrides={"said": pl.UInt64}),
    "what matters to everybody",
    date(2025, 10, 1),
)
MADE_GOOD = "select entry_code from sis.enrollments order by 1"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the tables that were read, while a test runs."""
    found: set[str] = set()
    read = bulk.read

    def noting(connection, table, where, **more):
        found.add(table.name)
        return read(connection, table, where, **more)

    monkeypatch.setattr(bulk, "read", noting)
    return found


def roster(code: str = "E1", size: int = 3) -> dict[str, list[dict]]:
    return {
        "students": [student(n) for n in range(size)],
        "enrollments": [enrollment(n, entry_code=code) for n in range(size)],
    }


def merged(merges: MergeStore, code: str = "E1", *, whole: bool = False) -> Operation:
    made = merged_roster(**roster(code))
    gathered = merges.gather("lincoln", YEAR, whole=whole)
    stats = replace(made.stats, whole=gathered.inputs.whole)
    return merges.write_merged(gathered, replace(made, stats=stats, memory=MEMORY))


def published(database, merges: MergeStore, code: str = "E1", *, whole: bool = False) -> Applied:
    """Merge and publish; what that did to the enrollments."""
    return publish(database, merges, merged(merges, code, whole=whole)).applied["enrollments"]


def written(database, statement: str) -> None:
    with database.begin() as connection:
        connection.execute(text(statement))


def codes(database) -> list[str]:
    with database.connect() as connection:
        return list(connection.scalars(text(MADE_GOOD)))


def test_what_was_published_is_taken_from_the_data_folder(database, merges, reads):
    published(database, merges)
    reads.clear()
    found = merges.gather("lincoln", YEAR).inputs.existing
    assert reads == SHARED | {"conflicts"}
    with database.connect() as connection:
        for name in KNOWN:
            table = bulk.read(connection, MERGED[name], {"district": "lincoln", "school_year": YEAR})
            assert found[name].sort(MERGED[name].key).equals(table.sort(MERGED[name].key)), name


def test_a_publication_compares_with_it_and_is_no_write_beside_the_pipeline(database, merges, reads):
    published(database, merges)
    operation = merged(merges, "E2")
    reads.clear()
    assert publish(database, merges, operation).applied["enrollments"] == Applied(updated=3)
    assert not reads, "what differs was told when it was merged"
    assert codes(database) == ["E2"] * 3
    assert count(database, "select count(*) from sis.table_writes") == 0


def test_a_merge_is_told_what_the_one_that_is_published_remembers(database, merges):
    assert merges.gather("lincoln", YEAR).inputs.memory is None
    published(database, merges)
    remembered = merges.gather("lincoln", YEAR).inputs.memory
    assert remembered.said.equals(MEMORY.said)
    assert replace(remembered, said=MEMORY.said) == replace(MEMORY)
    assert merges.gather("lincoln", YEAR, whole=True).inputs.memory is None


def test_news_are_of_the_students_merged_anew_and_of_everybodys_links(merges):
    """Links are worked out for everybody: another school year's merge may have changed them."""
    link = {"district": "lincoln", "integration": "a", "sis_id": "1", "rule": "new", "confidence": 1.0, "active": True}
    link |= {"student_id": student(1)["student_id"]}
    made = merged_roster(**roster("E2"), student_links=[link])
    before = merged_roster(**roster("E1"), student_links=[{**link, "active": False}])
    inputs = replace(merges.gather("lincoln", YEAR).inputs, existing=before.frames)
    some = pl.Series([student(2)["student_id"]])
    news = news_of(inputs, replace(made, touched=some))
    assert {name: one.fresh.height for name, one in news.items() if one.fresh.height} == {
        "enrollments": 1,
        "student_links": 1,
    }
    assert news["enrollments"].replaced["entry_code"].to_list() == ["E1"]
    assert (news["enrollments"].rows, news_of(inputs, made)["enrollments"].fresh.height) == (3, 3)


@pytest.mark.parametrize("reason", ["somebody wrote beside the pipeline", "the rules are others", "its file is gone"])
def test_nothing_is_remembered_of_what_may_be_otherwise_by_now(database, merges, monkeypatch, reason):
    published(database, merges)
    operation = merges.newest("lincoln", YEAR, "published")
    if reason == "the rules are others":
        monkeypatch.setattr("sis_pipeline.store.merged._code", lambda: "of another version")
    elif reason == "its file is gone":
        merges.files.delete(f"{operation.path}/said.parquet")
    else:
        written(database, "update sis.enrollments set entry_code = 'by hand'")
    assert merges.gather("lincoln", YEAR).inputs.memory is None


def test_asked_for_whole_a_merge_reads_the_tables(database, merges, reads):
    published(database, merges)
    reads.clear()
    assert merges.gather("lincoln", YEAR, whole=True).inputs.whole
    assert set(KNOWN) <= reads


def test_a_whole_merge_makes_good_even_what_no_trigger_noted(database, merges):
    published(database, merges)
    written(
        database,
        "alter table sis.enrollments disable trigger enrollments_note_write; "
        "update sis.enrollments set entry_code = 'unseen'; "
        "alter table sis.enrollments enable always trigger enrollments_note_write",
    )
    assert published(database, merges) == Applied(unchanged=3)
    assert published(database, merges, whole=True) == Applied(updated=3)
    assert codes(database) == ["E1"] * 3


@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize("name", KNOWN)
def test_every_write_to_such_a_table_is_noted(database, name, role):
    """Replication and several migration tools write as `replica`, which skips ordinary triggers."""
    for number, statement in enumerate(
        (f"update sis.{name} set district = district", f"delete from sis.{name}", f"truncate sis.{name}"), start=1
    ):
        written(database, f"set local session_replication_role = {role}; {statement}")
        assert count(database, f"select count(*) from sis.table_writes where table_name = '{name}'") == number


def test_what_somebody_wrote_is_read_and_made_good_and_then_known_again(database, merges, reads):
    published(database, merges)
    written(database, "update sis.enrollments set entry_code = 'by hand'")
    reads.clear()
    existing = merges.gather("lincoln", YEAR).inputs.existing["enrollments"]
    assert "enrollments" in reads
    assert existing["entry_code"].to_list() == ["by hand"] * 3
    assert published(database, merges) == Applied(updated=3)
    reads.clear()
    merges.gather("lincoln", YEAR)
    assert "enrollments" not in reads


def test_what_somebody_writes_between_merge_and_publication_is_made_good(database, merges):
    published(database, merges)
    operation = merged(merges)
    written(database, "update sis.enrollments set entry_code = 'by hand'")
    assert publish(database, merges, operation).applied["enrollments"] == Applied(updated=3)
    assert codes(database) == ["E1"] * 3


def test_what_is_committed_while_a_publication_runs_is_found_by_the_next(database, merges):
    published(database, merges)
    with database.begin() as other:
        other.execute(text("insert into sis.enrollments select * from sis.enrollments where false"))
        other.execute(text("update sis.enrollments set entry_code = 'by hand' where sis_id = '2'"))
        assert published(database, merges) == Applied(unchanged=3)
    assert codes(database) == ["E1", "E1", "by hand"]
    assert published(database, merges) == Applied(updated=1, unchanged=2)


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_frames_that_can_t_be_read_are_read_from_the_table(database, merges, reads, tmp_path, harm):
    published(database, merges)
    operation = merges.newest("lincoln", YEAR, "published")
    file = tmp_path / "data" / operation.path / "enrollments.parquet"
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(b"PAR1")
    reads.clear()
    assert merges.gather("lincoln", YEAR).inputs.existing["enrollments"].height == 3
    assert reads == SHARED | {"conflicts", "enrollments"}


def test_after_an_erasure_nothing_is_known(database, merges, reads):
    published(database, merges)
    written(
        database,
        "insert into sis.erasures (district, erasure_id, student_id, student_ids, records, erased_by, reason) "
        "values ('lincoln', gen_random_uuid(), gen_random_uuid(), '[]', '[]', 'ada', 'asked')",
    )
    reads.clear()
    merges.gather("lincoln", YEAR)
    assert set(KNOWN) <= reads


def test_what_an_undo_put_back_is_known(database, merges, reads):
    published(database, merges, "E1")
    published(database, merges, "E2")
    Undoing(database, merges).undo(merges.newest("lincoln", YEAR, "published").operation_id, "ada", "wrong")
    assert codes(database) == ["E1"] * 3
    reads.clear()
    existing = merges.gather("lincoln", YEAR).inputs.existing["enrollments"]
    assert "enrollments" not in reads
    assert existing["entry_code"].to_list() == ["E1"] * 3


def test_the_mark_tells_a_lower_number_that_was_committed_later(database):
    with database.connect() as connection, database.connect() as later:
        later.execute(text("delete from sis.sections"))  # has the lower number
        written(database, "delete from sis.courses")
        before = writes_mark(connection)
        later.commit()
        connection.rollback()
        assert writes_mark(connection) != before
