"""A person decides about a hold, by name and with a reason, and the decision is on record."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
from sqlalchemy import text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import roster_tables
from sis_pipeline.roster.guard import Part
from sis_pipeline.store.holds import Holds
from sis_pipeline.store.publish import SupersededError, publish
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
        "removals": 3, "active_before": 100, "limit": 2, "parts": [], "until": None, "pinned": False,
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


@pytest.fixture
def mixed(database, merges) -> Holds:
    """An open hold of four removals: at North two withdrawals and a no-show, at South one withdrawal."""
    keys = tuple((uid("student", n), uid("south" if n == 4 else "north"), "2025-08-18") for n in (3, 1, 2, 4))
    parts = (
        Part(uid("north"), "no_show", 1), Part(uid("north"), "withdraw", 2), Part(uid("south"), "withdraw", 1),
    )  # fmt: skip
    with database.begin() as connection:
        for name in ("north", "south"):
            connection.execute(
                roster_tables["schools"].insert().values(
                    district="lincoln", school_id=uid(name), name=name.title(), kind="school",
                    integration="lincoln-ps", sis_id=name,
                )
            )  # fmt: skip
    waiting = replace(hold("f1", 3, 1, 2, 4), keys=keys, parts=parts)
    publish(database, merges, merges.write_merged(merges.gather("lincoln", YEAR), merged_roster(held=[waiting])))
    return Holds(database)


@pytest.mark.parametrize(
    ("asked", "goes"),
    [
        ({"school": "South"}, [4]),
        ({"school": "north"}, [1, 2, 3]),
        ({"change": "withdraw"}, [1, 2, 4]),
        ({"school": "North", "change": "no_show"}, [3]),
    ],
)
def test_a_part_is_released_and_the_rest_waits_under_the_old_name(merges, mixed, asked, goes):
    [whole] = mixed.list()
    part = mixed.release(whole.hold_id, "ada", "the school closed", **asked)
    assert (part.status, part.decided_by, part.removals["part_of"]) == ("released", "ada", whole.hold_id)
    assert sorted(row[0] for row in part.rows) == sorted(uid("student", n) for n in goes)
    rest = mixed.get(whole.hold_id)
    assert (rest.status, rest.removals["pinned"], rest.removals["removals"]) == ("open", True, 4 - len(goes))
    assert sorted([*part.rows, *rest.rows]) == sorted(whole.rows)
    for one in (part, rest):
        assert [row.key for row in one.held()] == list(one.rows)
        assert {row.school_id for row in one.held()} == {row[1] for row in one.rows}
    rulings = merges.gather("lincoln", YEAR).inputs.rulings
    assert [set(ruling.keys) for ruling in rulings.released] == [set(map(tuple, part.rows))]
    assert [set(ruling.keys) for ruling in rulings.waiting] == [set(map(tuple, rest.rows))]


def test_the_rest_can_be_released_later_in_parts_or_whole(database, merges, mixed):
    [whole] = mixed.list()
    mixed.release(whole.hold_id, "ada", "closed", school="South")
    mixed.release(whole.hold_id, "ada", "never came", change="no_show")
    last = mixed.release(whole.hold_id, "bo", "moved", school="North")
    assert (last.hold_id, last.status) == (whole.hold_id, "released"), "all that was left"
    publish(database, merges, merges.write_merged(merges.gather("lincoln", YEAR), merged_roster()))
    assert [one.status for one in mixed.list()] == ["applied"] * 3
    with database.connect() as connection:
        released = audit.read(connection, action="hold.released")
    assert [entry["details"]["reason"] for entry in reversed(released)] == ["closed", "never came", "moved"]
    assert not any(uid("student", n) in str(released) for n in range(5)), "the audit log names no student"


def test_what_a_hold_does_not_have_is_not_released(mixed):
    [whole] = mixed.list()
    with pytest.raises(ConfigError, match="holds nothing of school 'South' and kind 'no_show'"):
        mixed.release(whole.hold_id, "ada", "x", school="South", change="no_show")
    with pytest.raises(ConfigError, match="no published school 'West'"):
        mixed.release(whole.hold_id, "ada", "x", school="West")
    for empty in ("", " "):
        with pytest.raises(ConfigError, match="name is empty"):
            mixed.release(whole.hold_id, "ada", "x", school=empty)
    with pytest.raises(ConfigError, match="holds nothing of kind ''"):
        mixed.release(whole.hold_id, "ada", "x", change="")
    with pytest.raises(ConfigError, match="needs who decides and why"):
        mixed.release(whole.hold_id, "ada", " ", school="South")
    assert mixed.get(whole.hold_id) == whole


def test_a_hold_released_as_a_whole_is_not_released_in_part(mixed):
    [whole] = mixed.list()
    mixed.release(whole.hold_id, "ada", "all")
    with pytest.raises(ConfigError, match="released as a whole already"):
        mixed.release(whole.hold_id, "ada", "x", school="South")


def test_a_rest_that_is_discarded_waits_on_until_nobody_of_it_is_missing(database, merges, mixed):
    def publish_with(*held):
        publish(database, merges, merges.write_merged(merges.gather("lincoln", YEAR), merged_roster(held=held)))
        return merges.gather("lincoln", YEAR).inputs.rulings.waiting

    [whole] = mixed.list()
    mixed.release(whole.hold_id, "ada", "closed", school="North")
    mixed.discard(whole.hold_id, "ada", "they are at school")
    rest = mixed.get(whole.hold_id)
    still = replace(hold(rest.fingerprint, 4), keys=tuple(map(tuple, rest.rows)), parts=tuple(rest.parts), pinned=True)
    assert len(publish_with(still)) == 1
    assert mixed.get(whole.hold_id).status == "discarded", "it is not asked again"
    assert publish_with() == ()


def test_a_release_between_merge_and_publication_is_merged_again(database, merges, mixed):
    [whole] = mixed.list()
    operation = merges.write_merged(merges.gather("lincoln", YEAR), merged_roster())
    mixed.release(whole.hold_id, "ada", "closed", school="North")
    with pytest.raises(SupersededError, match="a hold was released that it does not let through"):
        publish(database, merges, operation)
    assert mixed.get(whole.hold_id).status == "open"
