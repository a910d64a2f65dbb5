"""What was published, listed and shown, and undone: asked first, told afterwards, refused in words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import ExitCode
from sis_pipeline.roster.district import merge_district
from sis_pipeline.store.merged import MergeStore
from sis_pipeline.store.publish import publish
from sis_pipeline.store.snapshots import SnapshotStore
from sis_pipeline_tests.store.conftest import YEAR, add_integration, count, good_snapshot
from sis_pipeline_tests.store.test_roundtrip import delivery

WHY = ("--reason", "the extract was short")
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def published(home, database) -> tuple[str, str]:
    """Two publications of lincoln: a first load, and a day on which three came."""
    add_integration(database, "lincoln-ps")
    here = Installation()
    snapshots = SnapshotStore(here.engine, here.settings.data_url)
    merges = MergeStore(here.engine, snapshots)

    def sync(*numbers: int) -> str:
        good_snapshot(snapshots, **delivery(*numbers))
        gathered = merges.gather("lincoln", YEAR)
        operation = merges.write_merged(gathered, merge_district(gathered.inputs))
        publish(here.engine, merges, operation, actor="nightly")
        return operation.operation_id

    return sync(*range(4)), sync(*range(7))


def students(database) -> int:
    return count(database, "select count(*) from sis.students")


def test_a_bad_sync_is_found_looked_at_and_undone(published, database, sis):
    first, wrong = published
    listed = sis("operations", "list", "--district", "lincoln", "--json").json
    assert [(it["operation_id"], it["status"], it["actor"]) for it in listed["operations"]] == [
        (wrong, "published", "nightly"), (first, "published", "nightly"),
    ]  # fmt: skip
    assert "enroll 3" in sis("operations", "list").out
    shown = sis("operations", "show", wrong)
    assert (shown.code, "North" in shown.out, "lincoln-ps" in shown.out) == (0, True, True)
    way = sis("operations", "show", wrong, "--json").json["operation"]["way"]
    assert (way, "section enrollments anew" in " ".join(shown.out.split())) == (
        "3 of 7 students and 3 of 7 section enrollments anew",
        True,
    )
    assert not any(name in shown.out for name in ("First4", "O'Brien"))

    plan = sis("undo", wrong, *WHY, "--dry-run")
    assert (plan.code, f"This would undo operation {wrong}" in plan.out, students(database)) == (0, True, 7)
    assert "What lincoln-ps says would be left out" in plan.out
    asked = sis("undo", wrong, *WHY)
    assert (asked.code, f"This would undo operation {wrong}" in asked.out, "Add --yes" in asked.err) == (2, True, True)
    assert students(database) == 7

    done = sis("undo", wrong, *WHY, "--yes", "--json")
    assert (done.code, done.json["undone"], done.json["undoes"], done.json["back_to"]) == (0, True, wrong, first)
    assert (done.json["changes"]["withdraw"], done.json["withheld"], students(database)) == (3, ["lincoln-ps"], 4)
    told = sis("operations", "show", done.json["operation_id"], "--json").json["operation"]
    assert (told["undoes"], told["reason"], told["withheld"]) == (wrong, "the extract was short", ["lincoln-ps"])
    assert f"undone by {done.json['operation_id']}" in sis("operations", "show", wrong).out
    assert "roster.undo" in sis("audit", "show").out
    assert sis("audit", "verify").code == 0

    back = sis("undo", done.json["operation_id"], "--reason", "it was right", "--yes")
    assert (back.code, "left out" in back.out, students(database)) == (0, False, 7)


def test_what_is_wrong_is_refused_in_words(published, sis):
    first, last = published
    wrong = [
        (("undo", first, *WHY, "--yes"), ExitCode.CONFIG, "was published since"),
        (("undo", UNKNOWN, *WHY, "--yes"), ExitCode.CONFIG, "There is no operation"),
        (("undo", "the last one", *WHY), ExitCode.CONFIG, "is no operation id"),
        (("undo", last, "--reason", " ", "--yes"), ExitCode.CONFIG, "needs who undoes and why"),
        (("undo", last, *WHY, "--yes", "--dry-run"), ExitCode.USAGE, "Leave one of them out"),
        (("undo", last, "--yes"), ExitCode.USAGE, "--reason"),
        (("operations", "show", UNKNOWN), ExitCode.CONFIG, "There is no operation"),
        (("operations", "list", "--school-year", "2025"), ExitCode.USAGE, "--school-year"),
        (("operations", "list", "--limit", "0"), ExitCode.USAGE, "--limit"),
    ]
    for given, code, why in wrong:
        said = sis(*given)
        assert (given, said.code, why in said.err) == (given, code, True)
    assert sis("operations", "list", "--json").json["total"] == 2


def test_who_does_not_say_yes_changes_nothing(published, database, sis, monkeypatch):
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("sis_pipeline.cli.operations.sys", terminal)
    said = sis("undo", published[1], *WHY)
    assert ("This would undo" in said.out, "Undo it?" in said.err, said.code != 0) == (True, True, True)
    assert students(database) == 7


@pytest.mark.usefixtures("home")
def test_an_installation_that_published_nothing_has_an_empty_list(sis):
    assert sis("operations", "list", "--json").json == {"operations": [], "total": 0}
