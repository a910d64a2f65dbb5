"""A person decides about a hold, by name and with a reason, and the decision is on record."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date

import polars as pl
import pytest
from sqlalchemy import text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import roster_tables
from sis_pipeline.roster.guard import Hold, Part, Question, guard
from sis_pipeline.store import guarding
from sis_pipeline.store.holds import REST, Holds, StoredHold
from sis_pipeline.store.merged import Operation
from sis_pipeline.store.publish import SupersededError, publish
from sis_pipeline_tests.store.conftest import YEAR, good_snapshot, hold, merged_roster, uid


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


class Nights:
    """Nights of a district of 1,000 students at two schools, of whom some are missing: merged, guarded and published."""

    def __init__(self, database, merges) -> None:
        self._database, self._merges = database, merges
        self.holds = Holds(database)

    def miss(
        self, numbers: Iterable[int], *, frozen: Mapping[str, date] | None = None, before_publication=lambda: None
    ) -> set[int]:
        """Whose enrollments end."""
        found = self._ask(numbers, frozen or {})
        before_publication()
        publish(self._database, self._merges, found[0])
        return set(numbers) - {number for hold in found[1] for number in _numbers(hold.keys)}

    def _ask(self, numbers: Iterable[int], frozen: Mapping[str, date]) -> tuple[Operation, Sequence[Hold]]:
        gathered = self._merges.gather("lincoln", YEAR)
        rows = [(*_key(number), "absence", "withdraw") for number in numbers]
        columns = ["student_id", "school_id", "entry_date", "evidence", "change"]
        removals = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
        active = pl.DataFrame({"school_id": [uid("north"), uid("south")], "active": [500, 500]})
        left = [count - removals.filter(school_id=school).height for school, count in active.iter_rows()]
        after = active.with_columns(active=pl.Series(left))
        question = Question("enrollments", columns[:3], removals, active, after, frozen)
        held = guard(question, gathered.inputs.thresholds, gathered.inputs.rulings)
        return self._merges.write_merged(gathered, merged_roster(held=held)), held


def _key(number: int) -> tuple[str, str, str]:
    return uid("student", number), uid("north" if number % 2 else "south"), "2025-08-18"


def _numbers(rows: Sequence[Sequence[str]]) -> set[int]:
    students = {row[0] for row in rows}
    return {number for number in range(200) if uid("student", number) in students}


@pytest.fixture
def nights(database, merges, mixed) -> Nights:
    """The schools of `mixed`, whose hold is closed."""
    made = Nights(database, merges)
    made.miss([])
    return made


def _open(nights: Nights) -> list[StoredHold]:
    return nights.holds.list(status="open")


@pytest.mark.parametrize("frozen", [{}, {uid("north"): date(2026, 8, 18), uid("south"): date(2026, 8, 18)}])
def test_what_a_person_discards_stays_when_the_limit_is_no_longer_exceeded(nights, frozen):
    """As seven days later, after the freeze, or in a district that grew: few are missing, and none of them goes."""
    assert nights.miss(range(40), frozen=frozen) == set()
    [waiting] = _open(nights)
    nights.holds.discard(waiting.hold_id, "ada", "the export was short")
    assert nights.miss(range(40)) == set(), "still kept"
    assert nights.miss(range(5)) == set(), "35 are back"
    assert nights.miss([*range(5), 100, 101]) == {100, 101}, "others go as ever"
    assert _open(nights) == []
    kept = nights.holds.get(waiting.hold_id)
    assert (kept.status, kept.decided_reason, _numbers(kept.rows)) == (
        "discarded",
        "the export was short",
        set(range(5)),
    )
    assert kept.removals["removals"] == sum(part.removals for part in kept.parts) == 5


def test_a_discard_is_over_for_whoever_is_no_longer_missing(nights):
    nights.miss(range(40))
    [waiting] = _open(nights)
    nights.holds.discard(waiting.hold_id, "ada", "the export was short")
    nights.miss(range(20))
    assert nights.miss([30, 31]) == {30, 31}, "they were back; the others are, too"
    assert nights.miss([1, 2]) == {1, 2}


@pytest.mark.parametrize("verdict", ["partial", "delta"])
@pytest.mark.parametrize("decide", [None, "discard"])
def test_a_reading_that_proves_no_absence_proves_no_return_either(snapshots, nights, verdict, decide):
    nights.miss(range(40))
    [whole] = _open(nights)
    nights.holds.release(whole.hold_id, "ada", "closed", school="North")
    if decide:
        nights.holds.discard(whole.hold_id, "ada", "the export was short")
    before = nights.holds.get(whole.hold_id)
    good_snapshot(snapshots, verdict=verdict)
    assert nights.miss([]) == set()
    assert nights.miss([2]) == set(), "as another system of the district says"
    good_snapshot(snapshots)
    assert nights.miss([2, 4]) == set()
    rest = nights.holds.get(whole.hold_id)
    assert (rest.status, rest.decided_at) == (before.status, before.decided_at)
    assert _numbers(rest.rows) == {2, 4}


def test_removals_that_come_up_again_after_a_discard_are_asked_about_again(nights):
    nights.miss(range(40))
    [waiting] = _open(nights)
    nights.holds.discard(waiting.hold_id, "ada", "the export was short")
    nights.miss([])
    assert nights.miss(range(40)) == set()
    [again] = _open(nights)
    assert (again.hold_id, again.decided_by) == (waiting.hold_id, None)


def test_what_was_discarded_can_still_be_released(nights):
    nights.miss(range(40))
    [waiting] = _open(nights)
    nights.holds.discard(waiting.hold_id, "ada", "the export was short")
    nights.miss(range(30))
    assert nights.holds.release(waiting.hold_id, "bo", "North is right", school="North").removals["removals"] == 15
    assert nights.miss(range(30)) == set(range(1, 30, 2))
    last = nights.holds.release(waiting.hold_id, "bo", "South, too", school="South")
    assert (last.hold_id, last.status) == (waiting.hold_id, "released"), "all that was left"
    assert nights.miss(range(0, 30, 2)) == set(range(0, 30, 2))


@pytest.mark.parametrize("decide", [None, "discard"])
def test_a_rest_keeps_its_id_while_some_of_it_come_back(nights, decide):
    """One child after the other returns; the rest waits under the same id, open or as the person decided."""
    nights.miss(range(40))
    [whole] = _open(nights)
    nights.holds.release(whole.hold_id, "ada", "closed", school="North")
    if decide:
        nights.holds.discard(whole.hold_id, "ada", "they are at school")
    opened = whole.opened_at
    for missing in (range(0, 40, 2), range(2, 40, 2), range(4, 40, 2), [38]):
        assert nights.miss(missing) & set(range(0, 40, 2)) == set()
        rest = nights.holds.get(whole.hold_id)
        assert (rest.status, rest.opened_at) == ("discarded" if decide else "open", opened)
        assert _numbers(rest.rows) == set(missing)
        assert [row.school_id for row in rest.held()] == [uid("south")] * len(missing)
        assert [one.hold_id for one in _open(nights)] == ([] if decide else [whole.hold_id])
    nights.miss([])
    assert _open(nights) == []
    assert nights.miss([38]) == {38}, "once it was back, it is judged as anybody else"


def test_a_rest_takes_the_name_of_an_older_hold_of_the_same_removals(nights):
    nights.miss(range(30))
    nights.miss(range(40))
    [larger] = _open(nights)
    assert larger.removals["removals"] == 40, "the first one is closed"
    nights.holds.discard(larger.hold_id, "ada", "the export was short")
    nights.miss(range(30))
    assert _numbers(nights.holds.get(larger.hold_id).rows) == set(range(30))
    assert _open(nights) == []


def test_a_rest_of_a_freeze_says_what_it_is_and_asks_for_no_merge_when_it_is_over(database, merges, nights):
    until = date(2026, 8, 18)
    nights.miss(range(4), frozen={uid("north"): until, uid("south"): until})
    [whole] = _open(nights)
    assert whole.removals["until"] == "2026-08-18"
    nights.holds.release(whole.hold_id, "ada", "closed", school="North")
    rest = nights.holds.get(whole.hold_id)
    assert (rest.reason, rest.removals["until"], rest.removals["limit"]) == (REST, None, 0)
    with database.begin() as connection:
        connection.execute(text("set local sis.clock_offset = '1000 days'"))
        assert guarding.rules(connection, "lincoln", YEAR) == []


def test_a_discard_between_merge_and_publication_is_merged_again(nights):
    nights.miss(range(40))
    [waiting] = _open(nights)

    def discard() -> None:
        nights.holds.discard(waiting.hold_id, "ada", "the export was short")

    with pytest.raises(SupersededError, match="a hold was discarded that it does not keep"):
        nights.miss(range(41), before_publication=discard)
    assert nights.miss([1, 40]) == {40}


def test_a_release_between_merge_and_publication_is_merged_again(database, merges, mixed):
    [whole] = mixed.list()
    operation = merges.write_merged(merges.gather("lincoln", YEAR), merged_roster())
    mixed.release(whole.hold_id, "ada", "closed", school="North")
    with pytest.raises(SupersededError, match="a hold was released that it does not let through"):
        publish(database, merges, operation)
    assert mixed.get(whole.hold_id).status == "open"
