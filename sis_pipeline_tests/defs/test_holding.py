"""Holds in Dagster: the check says what is held and how to release it, and the job releases as the command does."""

from __future__ import annotations

from dataclasses import replace

import dagster as dg
import pytest

from sis_pipeline.defs.holding import HOLDS_SHOWN, NO_HOLDS, holds_result, release_job
from sis_pipeline.roster.guard import Part
from sis_pipeline.store.publish import publish
from sis_pipeline_tests.defs.conftest import Installation
from sis_pipeline_tests.store.conftest import YEAR, add_integration, good_snapshot, hold, merged_roster, uid


@pytest.fixture
def holding(installation: Installation) -> Installation:
    """With one open hold: a withdrawal and a no-show."""
    add_integration(installation.engine, "lincoln-ps")
    good_snapshot(installation.roster.snapshots)
    merges = installation.roster.merges
    parts = (Part(uid("school"), "no_show", 1), Part(uid("school"), "withdraw", 1))
    held = replace(hold("f1", 1, 2), parts=parts)
    publish(
        installation.engine, merges, merges.write_merged(merges.gather("lincoln", YEAR), merged_roster(held=[held]))
    )
    return installation


def release(installation: Installation, **config: object) -> dg.ExecuteInProcessResult:
    return release_job().execute_in_process(
        run_config={"ops": {"release_hold": {"config": config}}},
        resources={"roster": installation.roster},
        raise_on_error=False,
    )


def test_the_check_says_what_is_held_and_how_to_release_it(holding: Installation) -> None:
    [waiting] = holding.roster.holds.list()
    said = holds_result("published_roster", [waiting])
    assert (said.passed, said.check_name) == (False, NO_HOLDS)
    for expected in (waiting.hold_id, "lincoln", "2 of enrollments", "sis holds release HOLD", "job release_holds"):
        assert expected in (said.description or "")
    table = str(said.metadata["holds"].value)
    assert "no_show 1, withdraw 1" in table
    assert not any(uid("student", number) in f"{said.description}{table}" for number in (1, 2))
    assert holds_result("published_roster", []).passed
    many = holds_result("published_roster", [waiting] * (HOLDS_SHOWN + 5))
    assert (many.description or "").count(waiting.hold_id) == HOLDS_SHOWN
    assert many.metadata["open_holds"].value == HOLDS_SHOWN + 5


def test_the_job_releases_in_part_and_as_a_whole(holding: Installation) -> None:
    [waiting] = holding.roster.holds.list()
    who = {"hold": waiting.hold_id, "actor": "ada", "reason": "confirmed"}
    assert release(holding, kind="no_show", **who).success
    by_status = {one.status: one for one in holding.roster.holds.list()}
    assert (by_status["released"].decided_by, len(by_status["released"].rows)) == ("ada", 1)
    assert by_status["open"].hold_id == waiting.hold_id
    assert release(holding, **who).success
    assert {one.status for one in holding.roster.holds.list()} == {"released"}
    assert (
        holding.rows("select actor, details ->> 'reason' from sis.audit_log where action = 'hold.released'")
        == [("ada", "confirmed")] * 2
    )


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"hold": "x", "actor": "ada", "reason": "y"}, "config.no_hold"),
        ({"kind": "graduate", "actor": "ada", "reason": "y"}, "config.hold_part"),
        ({"kind": "", "actor": "ada", "reason": "y"}, "config.hold_part"),
        ({"school": "", "actor": "ada", "reason": "y"}, "config.no_school"),
        ({"actor": "ada", "reason": " "}, "config.hold_reason"),
    ],
)
def test_the_job_fails_in_words(holding: Installation, config: dict[str, object], code: str) -> None:
    [waiting] = holding.roster.holds.list()
    done = release(holding, **{"hold": waiting.hold_id, **config})
    assert not done.success
    [failed] = [event for event in done.all_events if event.event_type_value == "STEP_FAILURE"]
    failure = failed.step_failure_data.user_failure_data
    assert failure is not None
    assert failure.metadata["code"].value == code
    assert holding.roster.holds.get(waiting.hold_id) == waiting
