"""A person decides about a hold, by name and with a reason, and the decision is on record."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.store.holds import Holds
from sis_pipeline.store.publish import publish
from sis_pipeline_tests.store.conftest import YEAR, hold, merged_roster, uid


@pytest.fixture
def holds(database, merges) -> Holds:
    """With one open hold."""
    publish(
        database, merges, merges.write_merged(merges.gather("lincoln", YEAR), merged_roster(held=[hold("f1", 1, 2, 3)]))
    )
    return Holds(database)


def test_a_hold_shows_what_it_holds_and_why(holds):
    [one] = holds.list("lincoln", "open")
    assert holds.list("washington") == []
    assert one.removals == {
        "kind": "absence", "entity": "enrollments", "scope": "district", "school_id": None,
        "removals": 3, "active_before": 100, "limit": 2,
    }  # fmt: skip
    assert one.rows[0] == [uid("student", 1), uid("school"), "2025-08-18"]
    assert one.reason == "3 of 100 enrollments would end at once; the limit is 2"
    assert holds.get(one.hold_id) == one


@pytest.mark.parametrize(("decide", "status"), [("release", "released"), ("discard", "discarded")])
def test_a_decision_is_kept_with_who_and_why(database, holds, decide, status):
    [one] = holds.list()
    decided = getattr(holds, decide)(one.hold_id, "ada", "the school closed")
    assert (decided.status, decided.decided_by, decided.decided_reason) == (status, "ada", "the school closed")
    assert decided.decided_at > one.opened_at
    with database.connect() as connection:
        row = connection.execute(
            text("select action, subject, district, actor, details from sis.audit_log order by entry desc limit 1")
        ).one()
    assert tuple(row)[:4] == (f"hold.{status}", one.hold_id, "lincoln", "ada")
    assert row.details["reason"] == "the school closed"


@pytest.mark.parametrize(("actor", "reason"), [("ada", " "), ("", "because")])
def test_a_decision_needs_a_name_and_a_reason(holds, actor, reason):
    [one] = holds.list()
    with pytest.raises(ConfigError, match="needs who decides and why"):
        holds.release(one.hold_id, actor, reason)
    assert holds.get(one.hold_id).status == "open"


def test_an_applied_hold_is_final(database, merges, holds):
    [one] = holds.list()
    holds.release(one.hold_id, "ada", "they moved")
    publish(database, merges, merges.write_merged(merges.gather("lincoln", YEAR), merged_roster()))
    with pytest.raises(ConfigError, match=r"is applied already \(they moved\)"):
        holds.discard(one.hold_id, "ada", "too late")


def test_an_unknown_hold_is_named(holds):
    with pytest.raises(ConfigError, match="is no hold id"):
        holds.release("f1", "ada", "because")
    with pytest.raises(ConfigError, match="There is no hold"):
        holds.get(str(uuid.uuid4()))
