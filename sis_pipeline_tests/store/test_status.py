"""How an integration does follows from what happened to it, is kept with its reason, and heals by itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from sis_pipeline.connect.errors import (
    AuthRevokedError,
    ConfigError,
    ContractError,
    ErrorClass,
    RateLimitedError,
    TransientError,
)
from sis_pipeline.store.integrations import Integration, Integrations
from sis_pipeline.store.locks import lock_key
from sis_pipeline.store.status import FAILING_AFTER, STATUS_OF, Status, next_status, status_after_test

OUTCOMES = st.sampled_from([None, *ErrorClass])
STATUSES = st.sampled_from(get_args(Status))


def after(outcomes: list[ErrorClass | None], status: Status = "healthy") -> Status:
    failures = 0
    for outcome in outcomes:
        failures = 0 if outcome is None else failures + 1
        status = next_status(status, failures, outcome)
    return status


# --- the rules -------------------------------------------------------------------------------------------------------


def test_every_class_leads_somewhere() -> None:
    assert set(STATUS_OF) == set(ErrorClass)


@given(st.lists(OUTCOMES), STATUSES)
def test_success_heals_everything_but_a_pause(outcomes, status) -> None:
    expected = "paused" if status == "paused" else "healthy"
    assert after([*outcomes, None], status) == expected


@given(st.lists(OUTCOMES))
def test_only_a_person_pauses_and_ends_a_pause(outcomes) -> None:
    assert after(outcomes, "paused") == "paused"
    assert after(outcomes) != "paused"


@given(st.lists(OUTCOMES, max_size=8), st.sampled_from([ErrorClass.TRANSIENT, ErrorClass.RATE_LIMITED]))
def test_a_passing_failure_never_makes_it_look_better(outcomes, passing) -> None:
    order = get_args(Status)
    assert order.index(after([*outcomes, passing])) >= order.index(after(outcomes))


def test_several_passing_failures_in_a_row_are_more_than_bad_luck() -> None:
    outage = [ErrorClass.TRANSIENT, ErrorClass.RATE_LIMITED, ErrorClass.TRANSIENT]
    assert len(outage) == FAILING_AFTER
    assert [after(outage[:count]) for count in (1, 2, 3)] == ["degraded", "degraded", "failing"]
    assert after([*outage[:2], None, *outage[:2]]) == "degraded"


def test_refused_credentials_stay_refused_until_something_proves_otherwise() -> None:
    refused = [ErrorClass.AUTH_REVOKED]
    assert after(refused) == "needs_reauth"
    assert after([*refused, *[ErrorClass.TRANSIENT] * 4]) == "needs_reauth"
    assert after([*refused, ErrorClass.CONTRACT]) == "failing"  # the credentials were good enough for that
    assert after([ErrorClass.DATA, *refused]) == "needs_reauth"


def test_a_test_heals_only_what_it_proves() -> None:
    healed = {status: status_after_test(status, None) for status in get_args(Status)}
    assert healed == {
        "healthy": "healthy",
        "degraded": "healthy",
        "needs_reauth": "healthy",
        "failing": "failing",
        "paused": "paused",
    }
    assert status_after_test("healthy", ErrorClass.AUTH_REVOKED) == "needs_reauth"
    assert status_after_test("paused", ErrorClass.AUTH_REVOKED) == "paused"
    assert status_after_test("healthy", ErrorClass.TRANSIENT) == "healthy"


# --- kept in the registry --------------------------------------------------------------------------------------------

SETTINGS = {"base_url": "https://or.lincoln.example", "token_url": "https://or.lincoln.example/token", "client_id": "c"}


@pytest.fixture
def registry(database) -> Integrations:
    registry = Integrations(database)
    registry.add(Integration("lincoln", "oneroster", "lincoln", settings=SETTINGS))
    return registry


def changes(database) -> list[tuple[str, str]]:
    query = (
        "select details->>'from', details->>'to' from sis.audit_log where action = 'integration.status' order by entry"
    )
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_only_a_change_is_audited_and_moves_the_clock(registry, database) -> None:
    down = TransientError("GET /orgs of integration 'lincoln' answered 503.", code="transient.server_error")
    first = registry.note_sync("lincoln", down)
    assert (first.status, first.failures, first.status_reason) == ("degraded", 1, down.message)
    second = registry.note_sync("lincoln", RateLimitedError("slow down", code="rate_limited.throttled"))
    assert (second.status, second.failures, second.status_reason) == ("degraded", 2, "slow down")
    assert second.status_since == first.status_since
    third = registry.note_sync("lincoln", down)
    assert (third.status, third.failures) == ("failing", 3)
    assert third.status_since > first.status_since
    assert third.last_success_at is None
    healed = registry.note_sync("lincoln", None)
    assert (healed.status, healed.failures, healed.status_reason) == ("healthy", 0, None)
    assert healed.last_success_at - healed.status_since < timedelta(seconds=1)
    again = registry.note_sync("lincoln", None)
    assert again.last_success_at > healed.last_success_at
    assert changes(database) == [("healthy", "degraded"), ("degraded", "failing"), ("failing", "healthy")]


def test_the_reason_stays_the_one_that_still_decides(registry) -> None:
    registry.note_sync("lincoln", AuthRevokedError("the client was refused", code="auth_revoked.client"))
    later = registry.note_sync("lincoln", TransientError("no answer", code="transient.unreachable"))
    assert (later.status, later.status_reason, later.failures) == ("needs_reauth", "the client was refused", 2)


@pytest.mark.parametrize("heal", ["sync", "test", "credentials", "replace"])
def test_refused_credentials_recover_by_themselves(registry, heal) -> None:
    registry.note_sync("lincoln", AuthRevokedError("the client was refused", code="auth_revoked.client"))
    assert registry.get("lincoln").status == "needs_reauth"
    if heal == "sync":
        registry.note_sync("lincoln", None)
    elif heal == "test":
        registry.note_test("lincoln", None)
    elif heal == "credentials":
        registry.credentials_changed("lincoln")
    else:
        registry.add(Integration("lincoln", "oneroster", "lincoln", settings=SETTINGS), replace=True)
    assert (registry.get("lincoln").status, registry.get("lincoln").status_reason) == ("healthy", None)


def test_new_credentials_say_nothing_about_what_else_is_wrong(registry) -> None:
    registry.note_sync("lincoln", ContractError("odd", code="contract.shape"))
    assert registry.credentials_changed("lincoln").status == "failing"
    assert registry.note_test("lincoln", None).status == "failing"


def test_a_paused_one_stays_paused_and_its_failures_are_still_counted(registry, database) -> None:
    registry.pause("lincoln", "ada", "the district asked")
    noted = registry.note_sync("lincoln", TransientError("no answer", code="transient.unreachable"))
    assert (noted.status, noted.status_reason, noted.failures) == ("paused", "the district asked", 1)
    assert registry.note_sync("lincoln", None).status == "paused"
    assert changes(database) == []


# --- whose data it gives ---------------------------------------------------------------------------------------------


def identities(database) -> list[tuple[str, str, str, str]]:
    query = """select action, actor, details->>'from', details->>'to' from sis.audit_log
        where action in ('integration.identity', 'integration.trust') order by entry"""
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_the_first_district_is_kept_and_another_is_refused(registry, database) -> None:
    registry.recognise("lincoln", frozenset())
    assert registry.get("lincoln").source_identity == frozenset()
    registry.recognise("lincoln", frozenset({"7f/340"}))
    registry.recognise("lincoln", frozenset({"7f/340"}))
    with pytest.raises(ConfigError, match="data of district 8c/911; until now it was 7f/340") as refused:
        registry.recognise("lincoln", frozenset({"8c/911"}))
    assert refused.value.code == "config.wrong_district"
    assert "sis integration trust KEY" in refused.value.advice
    assert registry.get("lincoln").source_identity == {"7f/340"}
    registry.trust("lincoln", frozenset({"8c/911"}), actor="ada")
    registry.recognise("lincoln", frozenset({"8c/911"}))
    assert [(action, old, new) for action, _, old, new in identities(database)] == [
        ("integration.identity", None, "7f/340"),
        ("integration.trust", "7f/340", "8c/911"),
    ]
    assert identities(database)[-1][1] == "ada"


def test_a_consortium_may_lose_a_district_but_not_gain_one(registry) -> None:
    registry.recognise("lincoln", frozenset({"a", "b", "c"}))
    registry.recognise("lincoln", frozenset({"a", "c"}))
    registry.recognise("lincoln", frozenset({"a", "b", "c"}))
    with pytest.raises(ConfigError, match="data of district d; until now it was a, b, c"):
        registry.recognise("lincoln", frozenset({"a", "b", "c", "d"}))


def test_a_system_that_no_longer_says_whose_data_it_gives_is_refused(registry) -> None:
    registry.recognise("lincoln", frozenset({"7f/340"}))
    with pytest.raises(ConfigError, match="no longer says whose data it gives; until now it was district 7f/340") as no:
        registry.recognise("lincoln", frozenset())
    assert no.value.code == "config.wrong_district"
    assert "sis integration trust lincoln" in no.value.advice
    assert registry.get("lincoln").source_identity == {"7f/340"}
    registry.trust("lincoln", frozenset(), actor="ada")
    registry.recognise("lincoln", frozenset())


def test_the_first_answer_is_refused_where_an_integration_of_another_district_gives_the_same(
    registry, database
) -> None:
    """Two integrations added with one secret and one address, by copy and paste."""
    registry.add(Integration("copied", "oneroster", "washington", settings=SETTINGS))
    registry.recognise("lincoln", frozenset({"7f/340"}))
    words = "'copied' of washington answers with the data of district 7f/340, which integration 'lincoln' of lincoln"
    with pytest.raises(ConfigError, match=words) as refused:
        registry.recognise("copied", frozenset({"7f/340", "8c/911"}))
    assert refused.value.code == "config.wrong_district"
    assert "sis integration trust copied" in refused.value.advice
    assert registry.get("copied").source_identity == frozenset()
    registry.recognise("copied", frozenset({"8c/911"}))
    registry.trust("copied", frozenset({"7f/340"}), actor="ada")
    registry.recognise("copied", frozenset({"7f/340"}))
    assert [(action, new) for action, _, _, new in identities(database)] == [
        ("integration.identity", "7f/340"),
        ("integration.identity", "8c/911"),
        ("integration.trust", "7f/340"),
    ]


def test_what_a_person_trusts_at_first_is_written_down_as_trust(registry, database) -> None:
    registry.trust("lincoln", frozenset({"7f/340"}), actor="ada")
    assert identities(database) == [("integration.trust", "ada", None, "7f/340")]


@pytest.mark.parametrize("organisations", [{}, {"9": "lincoln"}], ids=["a second system", "a consortium's"])
def test_integrations_with_a_district_in_common_may_give_the_same(registry, organisations) -> None:
    district = "consortium" if organisations else "lincoln"
    both = Integration("both", "oneroster", district, organisations=organisations, settings=SETTINGS)
    registry.add(both)
    registry.recognise("lincoln", frozenset({"7f/340"}))
    registry.recognise("both", frozenset({"7f/340", "8c/911"}))
    assert registry.get("both").source_identity == {"7f/340", "8c/911"}


def test_of_two_first_answers_at_once_one_is_refused(registry, database) -> None:
    registry.add(Integration("copied", "oneroster", "washington", settings=SETTINGS))
    waiting = text("select count(*) from pg_locks where locktype = 'advisory' and not granted")
    with ThreadPoolExecutor(2) as pool, database.connect() as held, database.connect() as looking:
        held.execute(text("select pg_advisory_xact_lock(:key)"), {"key": lock_key("identity")})
        both = [pool.submit(registry.recognise, key, frozenset({"7f/340"})) for key in ("lincoln", "copied")]
        while looking.scalar(waiting) < 2:
            assert not any(one.done() for one in both)
        held.rollback()
        refused = [error for one in both if (error := one.exception(10))]
    assert [error.code for error in refused] == ["config.wrong_district"]


def test_the_district_is_kept_when_the_settings_change(registry) -> None:
    registry.recognise("lincoln", frozenset({"a"}))
    registry.add(Integration("lincoln", "oneroster", "lincoln", settings=SETTINGS, priority=3), replace=True)
    assert registry.get("lincoln").source_identity == {"a"}
