"""What a merge that led nowhere means for the next: nothing where nothing changed, a word where its result is missing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import text

from sis_pipeline.db.tables import guard_settings
from sis_pipeline.defs import merging
from sis_pipeline.defs.checks import waiting_result
from sis_pipeline.defs.merging import merge_districts, publish_districts
from sis_pipeline.store.erasure import Erasing
from sis_pipeline.store.undo import Undoing
from sis_pipeline_tests.defs.conftest import Installation
from sis_pipeline_tests.store.conftest import YEAR, add_integration, good_snapshot, sis_student


def unheard(_line: str) -> None:
    """Progress is nobody's concern here."""


@pytest.fixture
def published(installation: Installation) -> Installation:
    add_integration(installation.engine, "lincoln-ps")
    good_snapshot(installation.roster.snapshots)
    merge_and_publish(installation)
    return installation


def merge_and_publish(installation: Installation) -> list[str | None]:
    """What was wrong, per district."""
    roster = installation.roster
    merged = merge_districts(roster, YEAR, "run", unheard)
    done = publish_districts(roster, YEAR, "run", unheard)
    return [one.trouble.message if one.trouble else None for one in (*merged, *done)]


def statuses(installation: Installation) -> list[str]:
    return [status for (status,) in installation.rows("select status from sis.sync_operations order by epoch")]


def test_a_merge_whose_process_died_is_no_trouble_where_nothing_changed(published: Installation) -> None:
    published.roster.merges.gather("lincoln", YEAR)
    assert statuses(published) == ["published", "merging"]
    assert merge_and_publish(published) == [None, None]


def test_asked_for_whole_it_is_merged_and_published_though_nothing_changed(published: Installation) -> None:
    heard = list[str]()
    [merged] = merge_districts(published.roster, YEAR, "run", heard.append, whole=True)
    [done] = publish_districts(published.roster, YEAR, "run", unheard, whole=True)
    assert (merged.merged, merged.stats["whole"], done.trouble) == (True, True, None)
    assert "section enrollments anew, whole as it was asked for." in heard[0]
    assert done.published is not None
    assert done.published.unchanged
    assert statuses(published) == ["published"] * 2


def test_a_merge_that_was_not_published_is_not_once_its_inputs_have_gone_again(published: Installation) -> None:
    snapshots = published.roster.snapshots
    good_snapshot(snapshots, students=[sis_student("7"), sis_student("8", first_name="Grace")])
    assert [one.trouble for one in merge_districts(published.roster, YEAR, "run", unheard)] == [None]
    good_snapshot(snapshots)
    assert merge_and_publish(published) == [None, None]
    assert statuses(published) == ["published", "merged"]
    assert published.scalar("select count(*) from sis.students") == 1


def test_a_merge_whose_process_died_is_closed_by_the_next_publication(published: Installation) -> None:
    published.roster.merges.gather("lincoln", YEAR)
    good_snapshot(published.roster.snapshots, students=[sis_student("7"), sis_student("8", first_name="Grace")])
    assert merge_and_publish(published) == [None, None]
    assert statuses(published) == ["published", "superseded", "published"]


def test_what_was_undone_is_left_out_and_said_to_be(published: Installation) -> None:
    roster, heard = published.roster, list[str]()
    good_snapshot(roster.snapshots, students=[sis_student("7"), sis_student("8", first_name="Grace")])
    assert merge_and_publish(published) == [None, None]
    wrong = published.scalar("select operation_id from sis.sync_operations where epoch = 2")
    Undoing(roster.engine, roster.merges).undo(str(wrong), "ada", "the extract was another district's")
    merge_districts(roster, YEAR, "run", heard.append)
    [done] = publish_districts(roster, YEAR, "run", unheard)
    assert "What lincoln-ps says was undone, and is left out" in heard[0]
    assert (done.trouble, done.miscounted, done.summary()["left_out"]) == (None, (), ["lincoln-ps"])
    assert published.scalar("select count(*) from sis.students") == 1
    good_snapshot(roster.snapshots, students=[sis_student("7"), sis_student("9", first_name="Alan")])
    assert merge_and_publish(published) == [None, None]
    assert statuses(published) == ["published"] * 4
    assert published.scalar("select count(*) from sis.students") == 2


def test_broken_settings_of_one_district_stop_no_other(published: Installation) -> None:
    add_integration(published.engine, "franklin-ps", "franklin")
    good_snapshot(published.roster.snapshots, "franklin-ps")
    broken = {"settings": {"district": {"exit_floor": "many"}, "schools": {}}, "set_by": "x", "reason": "x"}
    with published.engine.begin() as connection:
        connection.execute(guard_settings.insert().values(district="lincoln", version=1, **broken))
    franklin_merged, lincoln_merged, *publications = merge_and_publish(published)
    assert franklin_merged is None
    assert "settings of lincoln would be wrong: exit_floor takes a whole number" in str(lincoln_merged)
    assert publications == [None, None]
    assert published.rows("select district, status from sis.sync_operations order by district") == [
        ("franklin", "published"), ("lincoln", "published"),
    ]  # fmt: skip


def test_a_merge_that_failed_is_told_where_its_result_is_missing(
    published: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_inputs: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr("sis_pipeline.defs.merging.merge_district", fail)
    good_snapshot(published.roster.snapshots, students=[sis_student("8")])
    _, publication = merge_and_publish(published)
    assert statuses(published) == ["published", "failed"]
    assert publication is not None
    assert "no merge that could be published" in publication


def test_a_district_is_merged_again_where_a_student_was_erased_meanwhile(
    published: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster, merge = published.roster, merging.merge_district
    good_snapshot(roster.snapshots, students=[sis_student("7"), sis_student("8", first_name="Grace")])

    def erase_first(inputs: Any) -> Any:
        monkeypatch.setattr(merging, "merge_district", merge)
        student = str(published.scalar("select student_id from sis.students"))
        Erasing(published.engine, roster.snapshots.files, lambda: roster.vault).erase(
            student, "ada", "asked", force=True
        )
        return merge(inputs)

    monkeypatch.setattr(merging, "merge_district", erase_first)
    assert merge_and_publish(published) == [None, None]
    assert published.rows("select first_name from sis.students") == [("Grace",)]
    assert statuses(published) == ["published", "failed", "published"]


def test_a_pre_registration_whose_day_has_come_is_merged_though_nothing_was_delivered_since(
    published: Installation,
) -> None:
    roster, tomorrow = published.roster, datetime.now(UTC).date() + timedelta(days=1)
    stay = {
        "sis_id": "e7", "student_sis_id": "7", "school_sis_id": "1", "school_year": YEAR, "record_status": "active",
        "entry_date": tomorrow.isoformat(), "entry_date_source": "sis", "enrollment_type": "primary", "status": "active",
    }  # fmt: skip
    sessions = [
        {
            "sis_id": "y", "title": "Year", "kind": "school_year", "school_year": YEAR, "record_status": "active",
            "start_date": "2025-08-18", "end_date": (tomorrow + timedelta(days=90)).isoformat(),
        }
    ]  # fmt: skip
    good_snapshot(roster.snapshots, academic_sessions=sessions, enrollments=[stay])
    status = "select status from sis.enrollments"
    assert (merge_and_publish(published), published.scalar(status)) == ([None, None], "pre_registered")
    assert roster.merges.stale_districts(YEAR) == []
    with published.engine.begin() as connection:
        connection.execute(text(f"alter database {published.engine.url.database} set sis.clock_offset = '24 hours'"))
    published.engine.dispose()
    roster.close()
    assert roster.merges.stale_districts(YEAR) == ["lincoln"]
    assert (merge_and_publish(published), published.scalar(status)) == ([None, None], "active")
    assert roster.merges.stale_districts(YEAR) == []


def test_records_that_wait_for_a_persons_word_are_a_warning_with_counts_and_a_way_out():
    waiting = {"lincoln-ps": {"recycled": 2, "cut_chains": 1}}
    told = waiting_result("merged_students", {"lincoln": {"undecided": waiting}, "washington": {}})
    assert (told.passed, told.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "lincoln-ps: 2 records set aside" in told.description
    assert "lincoln-ps: 1 records not joined" in told.description
    assert "sis links review" in told.description
    assert "washington" not in told.description
    assert {name: value.value for name, value in told.metadata.items()} == {"recycled": 2, "cut_chains": 1}
    assert waiting_result("merged_students", {"lincoln": {}}).passed
