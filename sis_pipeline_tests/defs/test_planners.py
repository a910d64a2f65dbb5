"""The pure decisions of the shell: which partitions, which merges, which snapshots fail, what an error says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import dagster as dg
import pandas as pd
import polars as pl
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError, OperationalError

from sis_pipeline.connect.errors import AuthRevokedError, ConfigError, ContractError, TransientError
from sis_pipeline.defs.checks import entity_finding, reference_finding, too_many
from sis_pipeline.defs.failures import explained, trouble
from sis_pipeline.defs.merging import lost_records
from sis_pipeline.defs.partitions import read_roster_key, roster_key, today
from sis_pipeline.defs.sensors import Reconciliation, StaleYear, plan, plan_merges
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.validate import quarantine_dangling, validate
from sis_pipeline.settings import Settings
from sis_pipeline_tests.roster.rosters import DAY_2, YEAR, Roster, loaded, merge, publish

KEYS = st.frozensets(st.sampled_from("abcdef"))


def test_partitions_are_added_at_once_and_deleted_when_nothing_runs():
    assert plan(["a", "b"], ["b", "c", "d"], {"d"}) == Reconciliation(add=("a",), delete=("c",), waiting=("d",))


@given(desired=KEYS, existing=KEYS, busy=KEYS)
def test_reconciling_ends_at_the_registry_and_never_deletes_what_runs(desired, existing, busy):
    found = plan(desired, existing, busy)
    after = (existing | set(found.add)) - set(found.delete)
    assert not set(found.delete) & busy
    assert after - set(found.waiting) == desired
    assert plan(desired, after, frozenset()).add == ()
    assert not plan(desired, after - set(found.waiting), frozenset()).delete


def merges(stale=("2025-2026",), syncing=(), merging=(), since=None, now=1_000.0):
    found = [StaleYear(year, f"print-{year}") for year in stale]
    return plan_merges(found, syncing=syncing, merging=merging, since=since or {}, now=now, longest_wait=600)


def test_a_stale_year_is_merged_at_once_when_nothing_of_it_runs():
    found = merges(syncing={"2024-2025"})
    assert [one.school_year for one in found.merge] == ["2025-2026"]


def test_a_year_waits_for_its_syncs_but_not_for_ever():
    waiting = merges(syncing={"2025-2026"})
    assert (waiting.merge, waiting.waiting, waiting.since) == ((), ("2025-2026",), {"2025-2026": 1_000.0})
    still = merges(syncing={"2025-2026"}, since=waiting.since, now=1_599.0)
    assert (still.merge, still.since) == ((), waiting.since)
    assert merges(syncing={"2025-2026"}, since=waiting.since, now=1_600.0).merge


def test_a_year_waits_for_its_own_merge_however_long():
    assert not merges(merging={"2025-2026"}, since={"2025-2026": 0.0}, now=1e9).merge


def test_a_year_that_is_merged_is_forgotten():
    assert merges(stale=(), since={"2025-2026": 1.0}).since == {}


def test_partition_keys_are_read_by_name_and_checked_again():
    key = roster_key("lincoln-ps", "2025-2026")
    assert key == "lincoln-ps|2025-2026"
    assert [str(part) for part in read_roster_key(key)] == ["lincoln-ps", "2025-2026"]
    traversing = dg.MultiPartitionKey({"integration": "../../etc", "school_year": "2025-2026"})
    with pytest.raises(ConfigError):
        read_roster_key(traversing)
    with pytest.raises(ConfigError):
        read_roster_key(dg.MultiPartitionKey({"integration": "a", "school_year": "2025-2027"}))
    with pytest.raises(ConfigError):
        read_roster_key("lincoln-ps|2025-2026")


@pytest.mark.parametrize(
    ("moment", "zone", "expected"),
    [
        ("2026-07-01T03:00", "UTC", "2026-2027"),
        ("2026-07-01T03:00", "America/Chicago", "2025-2026"),
        ("2026-07-01T06:00", "America/Chicago", "2026-2027"),
    ],
)
def test_the_current_year_is_that_of_the_installations_time_zone(moment, zone, expected):
    assert today(Settings(time_zone=zone), datetime.fromisoformat(moment).replace(tzinfo=UTC)).key == expected


@pytest.mark.parametrize(("bad", "rows", "expected"), [(19, 19, False), (2, 20, False), (3, 20, True), (0, 0, False)])
def test_small_entities_are_not_judged_by_shares(bad, rows, expected):
    assert too_many(bad, rows) is expected


def schools(count: int, nameless: int = 0) -> pd.DataFrame:
    rows = [
        {"sis_id": str(n), "name": None if n < nameless else "North", "kind": "school", "record_status": "active"}
        for n in range(count)
    ]
    return pd.DataFrame(rows, columns=["sis_id", "name", "kind", "record_status"]).astype("str")


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (schools(30, nameless=3), None),
        (schools(30, nameless=4), "4 of 30 rows were rejected"),
        (schools(0), "no good row is left"),
        (schools(2, nameless=2), "no good row is left"),
    ],
)
def test_an_entity_fails_when_it_is_empty_or_too_much_of_it_is_rejected(frame, problem):
    validated = validate("schools", frame)
    found = entity_finding("schools", {"schools"}, validated, validated.frame)
    assert found.problem is None if problem is None else problem in found.problem
    assert found.rows == len(frame)


def test_good_rows_that_break_the_schema_are_named_by_column_and_never_by_value():
    validated = replace(validate("schools", schools(2)), proven=False)
    broken = validated.frame.assign(kind="Secret Academy")
    found = entity_finding("schools", {"schools"}, validated, broken)
    assert "kind breaks" in found.problem
    assert "Secret" not in found.problem


def test_what_pandera_proved_of_all_rows_is_not_asked_again_of_some():
    good, bad = validate("schools", schools(2)), validate("schools", schools(30, nameless=3))
    assert (good.proven, bad.proven) == (True, False)
    assert entity_finding("schools", {"schools"}, bad, bad.frame).problem is None


def test_what_a_source_promises_must_come():
    assert entity_finding("students", {"students"}, None, None).problem
    assert entity_finding("students", set(), None, None).problem is None
    assert entity_finding("contacts", {"contacts"}, None, None).problem is None


def test_references_fail_when_too_many_lead_nowhere():
    columns = ["sis_id", "title", "kind", "school_sis_id", "record_status"]
    sections = pd.DataFrame(
        [[str(n), "Art", "scheduled", "1" if n > 3 else "99", "active"] for n in range(30)], columns=columns
    ).astype("str")
    validated = {"schools": validate("schools", schools(2)), "sections": validate("sections", sections)}
    found = reference_finding(validated, quarantine_dangling({name: one.frame for name, one in validated.items()}))
    assert found.removed == {"sections.school_sis_id": 4}
    assert len(found.problems) == 1


def test_foreseen_errors_keep_their_words_and_others_lose_theirs():
    said = trouble(AuthRevokedError("POST /token of integration 'a' answered 401."))
    assert (said.error_class, said.message) == ("auth_revoked", "POST /token of integration 'a' answered 401.")
    try:
        int("Grace Hopper")
    except ValueError as error:
        said = trouble(error)
    assert said.error_class == "internal"
    assert "Hopper" not in said.message
    assert "test_planners.py" in said.message


def test_an_earlier_year_may_still_deliver_who_has_left_since():
    """It was read before, or the student is back already and the present year was not merged yet."""
    last, now = (Roster(year).school("1").student("s1").student("s2") for year in ("2024-2025", YEAR))
    tables = publish(loaded(last), merge(last), "2024-2025")
    tables = publish(tables, merge(now, tables))
    tables = publish(tables, merge(now.without("s1"), tables, as_of=DAY_2))
    assert sorted(tables["student_links"].select("sis_id", "active").iter_rows()) == [("s1", False), ("s2", True)]
    again = last.inputs(tables, as_of=DAY_2)
    assert lost_records(again, merge_district(again)) == 0
    nobodys = replace(merge_district(again), frames={"student_links": tables["student_links"].clear()})
    assert lost_records(again, nobodys) == 2


def test_in_the_latest_year_a_record_whose_link_has_ended_is_lost():
    inputs = Roster(YEAR).school("1").student("s1").student("s2").inputs(as_of=DAY_2)
    merged = merge_district(inputs)
    ended = merged.frames["student_links"].with_columns(active=pl.lit(value=False))
    assert lost_records(inputs, merged) == 0
    assert lost_records(inputs, replace(merged, frames={"student_links": ended})) == 2


@pytest.mark.parametrize(
    "lost",
    [
        psycopg.OperationalError("FATAL: Grace Hopper"),
        psycopg.InterfaceError("the connection is closed"),
        OperationalError("insert", {}, psycopg.errors.AdminShutdown("terminating")),
    ],
)
def test_a_database_that_goes_away_is_no_fault_of_ours(lost):
    said = trouble(lost)
    assert said.code == "transient.database"
    assert "Hopper" not in said.message
    assert "run it again" in said.advice
    assert trouble(IntegrityError("insert", {}, psycopg.errors.UniqueViolation("twice"))).error_class == "internal"


@pytest.mark.parametrize(
    ("error", "tags", "retried"),
    [
        (TransientError("It answered 503."), {}, True),
        (TransientError("It answered 503."), {"sis/launched_by": "sis"}, False),
        (ContractError("It answered a page of HTML."), {}, False),
        (KeyError("Grace Hopper"), {}, False),
    ],
)
def test_only_what_may_pass_by_itself_is_retried_and_not_behind_a_persons_back(error, tags, retried):
    log: list[str] = []
    context = SimpleNamespace(run=SimpleNamespace(tags=tags, run_id="r1"), log=SimpleNamespace(error=log.append))
    with pytest.raises(dg.Failure) as raised, explained(context):
        raise error
    assert raised.value.allow_retries is retried
    assert raised.value.__suppress_context__
    assert "Hopper" not in f"{raised.value.description}{raised.value.metadata}{log}"
