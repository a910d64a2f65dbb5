"""What is wrong is found, said with what to do, and told apart from what passes by itself."""

from __future__ import annotations

import json
import uuid

import pytest
from sqlalchemy import Engine, text

from sis_pipeline.connect.breaker import Breaker
from sis_pipeline.connect.errors import ConfigError, TransientError
from sis_pipeline.connect.limits import RateLimit
from sis_pipeline.store import health as module
from sis_pipeline.store.health import Health, Problem, examine, reset_breakers, reset_limits
from sis_pipeline.store.locks import integration_lock

YEAR = "2026-2027"
URL = "https://lincoln.example.org/api"
KEY = "oneroster https://lincoln.example.org:443/api"


def sql(database: Engine, statement: str, **values: object) -> None:
    with database.begin() as connection:
        connection.execute(text(statement), values)


def integration(database: Engine, key: str = "lincoln", **more: object) -> None:
    settings = {"base_url": f"https://{key}.example.org/api", "client_id": "c"} | dict(more.pop("settings", {}))  # type: ignore[call-overload]
    sql(
        database,
        """insert into sis.integrations (key, provider, district, settings, status, status_reason, status_since)
           values (:key, 'oneroster', :district, cast(:settings as jsonb), :status, :reason, sis.clock())""",
        **{"key": key, "district": f"{key}-usd", "status": "healthy", "reason": None, "settings": json.dumps(settings)}
        | more,
    )


def snapshot(database: Engine, key: str = "lincoln", *, hours: float = 1, verdict: str = "complete") -> str:
    """A reading that ended so many hours ago, or, `pending`, has not ended."""
    made = str(uuid.uuid4())
    sql(
        database,
        """insert into sis.snapshots (integration, school_year, snapshot_id, provider, path, verdict, started_at, finished_at)
           values (:key, :year, :id, 'oneroster', 'x', :verdict, sis.clock() - make_interval(secs => :seconds),
                   case when :verdict <> 'pending' then sis.clock() - make_interval(secs => :seconds) end)""",
        key=key,
        year=YEAR,
        id=made,
        verdict=verdict,
        seconds=hours * 3600,
    )
    return made


def calls(database: Engine, key: str, milliseconds: list[float], *, failed: int = 0, hours: float = 1) -> None:
    for number, taken in enumerate(milliseconds):
        sql(
            database,
            """insert into sis.api_calls (integration, at, method, template, status, error_class, milliseconds, bytes, attempt)
               values (:key, sis.clock() - make_interval(secs => :seconds), 'GET', '/students', 200, :error, :taken, 9, 1)""",
            key=key,
            seconds=hours * 3600,
            error="transient" if number < failed else None,
            taken=taken,
        )


def look(database: Engine) -> Health:
    with database.connect() as connection:
        return examine(connection, YEAR)


def the_problem(database: Engine) -> Problem:
    (problem,) = look(database).problems
    return problem


def test_nothing_at_all_is_healthy(database: Engine) -> None:
    health = look(database)
    assert (health.integrations, health.problems, health.needs_a_person) == ([], [], False)


def test_a_connection_that_does_well(database: Engine) -> None:
    integration(database)
    snapshot(database, hours=30)
    snapshot(database, hours=3)
    snapshot(database, hours=2, verdict="rejected")
    calls(database, "lincoln", [float(n) for n in range(1, 101)], failed=10)
    calls(database, "lincoln", [90_000.0] * 5, failed=5, hours=25)
    health = look(database)
    (one,) = health.integrations
    assert (health.problems, one.verdict, one.calls) == ([], "complete", 100)
    assert one.error_share == pytest.approx(0.1)
    assert one.p50_ms == pytest.approx(50.5)
    assert one.p95_ms == pytest.approx(95.05)
    assert one.data_age is not None
    assert 10_795 < one.data_age.total_seconds() < 10_810, "of the last good one"


@pytest.mark.parametrize(
    ("status", "person", "advice"),
    [
        ("needs_reauth", True, "sis integration add lincoln --replace`. Then `sis integration test lincoln`."),
        ("failing", True, "sis integration test lincoln"),
        ("degraded", False, "sis integration test lincoln"),
    ],
)
def test_the_status_of_a_connection(database: Engine, status: str, person: bool, advice: str) -> None:
    integration(database, status=status, reason="GET /users answered 503.")
    snapshot(database)
    problem = the_problem(database)
    assert (problem.kind, problem.subject, problem.person) == ("integration", "lincoln", person)
    assert problem.message.startswith(f"{status} since 20")
    assert problem.message.endswith("UTC: GET /users answered 503.")
    assert advice in problem.advice


def test_a_paused_connection_is_a_decision_and_no_problem(database: Engine) -> None:
    integration(database, status="paused")
    assert look(database).problems == []


def test_data_that_are_missing_or_old(database: Engine) -> None:
    integration(database)
    assert the_problem(database).message == "There are no good data of 2026-2027 yet."
    snapshot(database, hours=37)
    problem = the_problem(database)
    assert (problem.kind, problem.person) == ("data", True)
    assert "37 hours old" in problem.message
    assert "sis sync --integration lincoln" in problem.advice


def test_a_reading_under_way_and_one_that_was_interrupted(database: Engine) -> None:
    integration(database)
    under_way = snapshot(database, verdict="pending")
    sql(
        database,
        """insert into sis.snapshot_pages (integration, snapshot_id, resource, number, file, records, bytes, sha256, about, request, headers)
           select 'lincoln', :id, 'users', n, 'f', 1, 1, 'x', '{}', 'r', '{}' from generate_series(1, 3) n""",
        id=under_way,
    )
    with integration_lock(database, "lincoln", YEAR):
        health = look(database)
        assert health.problems == [], "data are on their way"
        (reading,) = health.integrations[0].readings
        assert (reading.going, reading.pages) == (True, 3)
    problems = {problem.kind: problem for problem in look(database).problems}
    assert set(problems) == {"data", "reading"}
    assert "interrupted after 3 pages" in problems["reading"].message
    assert not problems["reading"].person


def test_calls_that_fail_often(database: Engine) -> None:
    integration(database)
    snapshot(database)
    calls(database, "lincoln", [1.0] * 19, failed=19)
    assert look(database).problems == [], "too few to say so"
    calls(database, "lincoln", [1.0] * 21)
    problem = the_problem(database)
    assert (problem.kind, problem.person) == ("calls", False)
    assert problem.message == "48% of 40 calls failed in the last 24 hours."


def test_of_very_many_calls_the_newest_are_looked_at(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEWEST", 40)
    integration(database)
    snapshot(database)
    calls(database, "lincoln", [90_000.0] * 30, failed=30, hours=2)
    calls(database, "lincoln", [10.0] * 30, hours=1)
    (one,) = look(database).integrations
    assert (one.calls, one.error_share, one.p50_ms) == (40, 0.25, 10.0)
    assert the_problem(database).message == "25% of the newest 40 calls failed in the last 24 hours."


def test_holds_wait_for_a_person_and_come_first(database: Engine) -> None:
    integration(database, status="degraded", reason="x")
    snapshot(database)
    for number in range(2):
        sql(
            database,
            """insert into sis.holds (district, hold_id, school_year, fingerprint, reason, removals, rows, operation_id)
               values ('lincoln-usd', :id, :year, :print, 'r', '{}', '[]', :id)""",
            id=str(uuid.uuid4()),
            year=YEAR,
            print=str(number),
        )
    health = look(database)
    assert [problem.kind for problem in health.problems] == ["hold", "integration"]
    assert health.open_holds == {"lincoln-usd": 2}
    assert health.problems[0].message == "2 holds wait for a decision."
    assert health.needs_a_person


def test_a_token_is_told_once_for_each_integration(database: Engine) -> None:
    integration(database)
    snapshot(database)
    for kind in ("access", "refresh"):
        sql(
            database,
            """insert into sis.oauth_tokens (integration, kind, ciphertext, key_id, version, status, failures, last_error)
               values ('lincoln', :kind, '', 'k', 1, 'needs_reauth', 2, 'The grant was refused.')""",
            kind=kind,
        )
    problem = the_problem(database)
    assert (problem.kind, problem.subject, problem.person) == ("token", "lincoln", True)
    assert "needs_reauth after 2 failed token calls: The grant was refused." in problem.message
    assert problem.advice
    sql(database, "update sis.integrations set status = 'needs_reauth'")
    assert the_problem(database).kind == "integration"


@pytest.mark.parametrize("by", ["the settings", "the token"])
def test_a_grant_that_a_person_gave_is_given_anew_by_a_person(database: Engine, by: str) -> None:
    settings = {"grant": "authorization_code"} if by == "the settings" else {}
    integration(database, status="needs_reauth", reason="The grant was refused.", settings=settings)
    snapshot(database)
    if by == "the token":  # of a plugin with a grant of its own
        sql(
            database,
            """insert into sis.oauth_tokens (integration, kind, ciphertext, key_id, version, status, failures, last_error)
               values ('lincoln', 'refresh', '', 'k', 1, 'needs_reauth', 2, 'The grant was refused.')""",
        )
    problem = the_problem(database)
    assert (problem.kind, problem.person) == ("integration", True)
    assert "`sis oauth authorize lincoln`" in problem.advice
    assert "--replace" not in problem.advice


def opened(database: Engine, key: str) -> None:
    breaker = Breaker(database, key, lease=1)
    for _ in range(5):
        breaker.settle(breaker.enter(), TransientError("GET /users answered 503."), answered=True)


def audited(database: Engine) -> list[tuple[object, ...]]:
    with database.connect() as connection:
        query = "select action, subject, district, actor, details from sis.audit_log order by entry"
        return [tuple(row) for row in connection.execute(text(query))]


def test_a_breaker_is_shown_with_its_integration_and_reset_by_a_person(database: Engine) -> None:
    for key in ("lincoln", "washington"):
        integration(database, key)
        snapshot(database, key)
    opened(database, KEY)
    opened(database, f"{KEY}/token")
    opened(database, "oneroster https://elsewhere.example.org:443")
    health = look(database)
    assert [problem.subject for problem in health.problems] == [
        "oneroster https://elsewhere.example.org:443",
        "lincoln",
        "lincoln",
    ]
    assert not health.needs_a_person, "they are tried again by themselves"
    assert "`sis health reset-breaker lincoln`" in health.problems[1].advice
    assert "GET /users answered 503." in health.problems[1].message
    assert reset_breakers(database, "washington", "ada") == []
    assert reset_breakers(database, "lincoln", "ada") == [KEY, f"{KEY}/token"]
    Breaker(database, KEY, lease=1).check()
    assert len(look(database).breakers) == 1
    assert reset_breakers(database, None, "ada") == ["oneroster https://elsewhere.example.org:443"]
    assert [row[:4] for row in audited(database)] == [
        ("breaker.reset", "lincoln", "lincoln-usd", "ada"),
        ("breaker.reset", "all", "*", "ada"),
    ]
    assert audited(database)[0][4] == {"breakers": [KEY, f"{KEY}/token"]}


def test_a_pause_that_a_system_asked_for(database: Engine) -> None:
    integration(database)
    snapshot(database)
    key = "oneroster https://lincoln.example.org:443 c"
    RateLimit(database).push_back(key, 30)
    health = look(database)
    assert ([limit.key for limit in health.limits], health.problems) == ([key], [])
    RateLimit(database).push_back(key, 600)
    problem = the_problem(database)
    assert (problem.kind, problem.subject, problem.person) == ("limit", "lincoln", False)
    assert "`sis health reset-limit lincoln`" in problem.advice
    assert reset_limits(database, "lincoln", "ada") == [key]
    assert reset_limits(database, None, "ada") == []
    assert look(database).limits == []
    assert [row[:2] for row in audited(database)] == [("limit.reset", "lincoln")]


def test_an_integration_that_is_not_there(database: Engine) -> None:
    for reset in (reset_breakers, reset_limits):
        with pytest.raises(ConfigError, match="no integration nowhere"):
            reset(database, "nowhere")


def test_file_integrations_have_neither_breaker_nor_limit(database: Engine) -> None:
    sql(
        database,
        "insert into sis.integrations (key, provider, district, settings) values ('files', 'oneroster_csv', 'd', '{}')",
    )
    (one,) = look(database).integrations
    assert (one.breakers, one.limit, one.calls, one.p50_ms, one.error_share) == ((), None, 0, None, None)
