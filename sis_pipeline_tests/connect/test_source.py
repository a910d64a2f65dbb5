"""The source as providers use it: authorised, in turn, retried, counted, recorded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate

import pytest
from pytest_httpserver import HTTPServer
from sqlalchemy import Engine, text
from structlog.contextvars import get_contextvars, merge_contextvars
from structlog.testing import capture_logs
from werkzeug import Request as ServerRequest
from werkzeug import Response as ServerResponse

from sis_pipeline.connect.breaker import SourceLeftAloneError
from sis_pipeline.connect.contract import OAuth, Request, Source
from sis_pipeline.connect.errors import (
    AuthRevokedError,
    ConfigError,
    ContractError,
    RateLimitedError,
    SisError,
    TransientError,
    source_status,
)
from sis_pipeline.connect.retry import Backoff
from sis_pipeline.connect.source import CallRecord, HttpSource, percentile, purge_api_calls, rate_key, report
from sis_pipeline.connect.vault import Keys, Vault
from sis_pipeline.defs.token_work import FEW
from sis_pipeline_tests.connect.servers import Sis, http_answer, raw_server, serve, writes
from sis_pipeline_tests.connect.workers import KEY, SECRET, Options, a_source

SNAPSHOT = "11111111-2222-4333-8444-555555555555"
ROWS = {"users": [{"sourcedId": "u1"}]}


class Vendor:
    """A data and a token endpoint on pytest's server; `answers` are given in turn, then good ones."""

    def __init__(self, server: HTTPServer) -> None:
        self.server = server
        self.url = server.url_for("").rstrip("/")
        self.answers: list[ServerResponse] = []
        self.token_answers: list[ServerResponse] = []
        self.seen: list[ServerRequest] = []
        self.arrivals: list[float] = []
        self.tokens = 0
        server.expect_request("/token", method="POST").respond_with_handler(self._token)
        server.expect_request("/api/users").respond_with_handler(self._data)
        server.expect_request("/users").respond_with_handler(self._data)

    def _data(self, request: ServerRequest) -> ServerResponse:
        request.get_data()
        self.seen.append(request)
        self.arrivals.append(time.monotonic())
        return self.answers.pop(0) if self.answers else answer(200)

    def _token(self, _request: ServerRequest) -> ServerResponse:
        self.tokens += 1
        if self.token_answers:
            return self.token_answers.pop(0)
        return answer(200, {"access_token": f"token-{self.tokens}", "expires_in": 3600})

    @property
    def bearers(self) -> list[str]:
        return [request.headers["Authorization"] for request in self.seen]


def answer(status: int, body: object = None, **headers: str) -> ServerResponse:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return ServerResponse(json.dumps(body or ROWS), status, fields, content_type="application/json")


@pytest.fixture
def vendor(httpserver: HTTPServer) -> Vendor:
    return Vendor(httpserver)


@pytest.fixture
def make(database: Engine, vendor: Vendor) -> Callable[..., HttpSource]:
    Vault.open(database, Keys([KEY])).put("lincoln", "client_secret", SECRET)

    def build(**settings: object) -> HttpSource:
        return a_source(database, vendor.url, **settings)

    return build


def rows(database: Engine) -> list[tuple[object, ...]]:
    query = "select method, template, status, error_class, attempt from sis.api_calls order by call_id"
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_a_good_call(make: Callable[..., HttpSource], vendor: Vendor, database: Engine) -> None:
    options = Options(vendor.url, extra_headers={"X-Vendor": "roster"})
    told: list[CallRecord] = []
    with make(options=options, snapshot_id=SNAPSHOT, on_call=told.append) as source:
        request = Request(
            "/users", {"limit": "5", "filter": ["a", "b"]}, headers={"X-Page": "1"}, template="/users/{id}"
        )
        got = source.send(request)
    as_protocol: Source = source
    assert as_protocol is source
    assert (got.status, json.loads(got.body), got.headers["content-type"]) == (200, ROWS, "application/json")
    seen = vendor.seen[0]
    assert seen.query_string == b"limit=5&filter=a&filter=b"
    assert (seen.headers["X-Vendor"], seen.headers["X-Page"]) == ("roster", "1")
    assert vendor.bearers == ["Bearer token-1"]
    assert rows(database) == [("POST", "/token", 200, None, 1), ("GET", "/users/{id}", 200, None, 1)]
    assert [record.template for record in told] == ["/token", "/users/{id}"]
    assert (source.calls, source.token_calls, source.throttled) == (2, 1, 0)
    assert source.bytes == sum(record.bytes for record in told) > len(got.body)
    with database.connect() as connection:
        recorded = connection.execute(text("select * from sis.api_calls")).all()
        now = connection.scalar(text("select sis.clock()"))
    assert {str(row.snapshot_id) for row in recorded} == {SNAPSHOT}
    assert all(row.milliseconds > 0 and 0 <= (now - row.at).total_seconds() < 5 for row in recorded)


def test_a_post_sends_json(make: Callable[..., HttpSource], vendor: Vendor) -> None:
    with make() as source:
        source.send(Request("users", {"pagesize": "0"}, method="POST", json={"schoolid": "7"}))
    assert vendor.seen[0].get_json() == {"schoolid": "7"}


def test_a_source_without_authentication(make: Callable[..., HttpSource], vendor: Vendor) -> None:
    with make(authorised=False) as source:
        source.send(Request("/users"))
        vendor.answers = [answer(401)] * 9
        with pytest.raises(SisError):
            source.send(Request("/users"))
    assert "Authorization" not in vendor.seen[0].headers
    assert vendor.tokens == 0


@pytest.mark.parametrize(
    ("base", "path", "reached"),
    [
        ("", "users", "/users"),
        ("", "/users", "/users"),
        ("/api", "users", "/api/users"),
        ("/api", "/users", "/api/users"),
        ("/api/", "users", "/api/users"),
        ("/api", "/api/users", "/api/users"),
        ("/api", "{origin}/users", "/users"),
    ],
)
def test_where_a_path_leads(
    make: Callable[..., HttpSource], vendor: Vendor, base: str, path: str, reached: str
) -> None:
    with make(options=Options(vendor.url + base)) as source:
        source.send(Request(path.format(origin=vendor.url)))
    assert vendor.seen[0].path == reached


@pytest.mark.parametrize(
    "path",
    [
        "http://other.example.org/users",
        "//other.example.org/users",
        "https://127.0.0.1/users",
        "/us\r\ners",
        "\\\\x\\y",
    ],
)
def test_no_path_leads_elsewhere(make: Callable[..., HttpSource], vendor: Vendor, path: str) -> None:
    with make() as source, pytest.raises(ContractError, match="was not sent"):
        source.send(Request(path))
    assert vendor.seen == []
    assert vendor.tokens == 0


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_failures_are_retried(make: Callable[..., HttpSource], vendor: Vendor, database: Engine, status: int) -> None:
    vendor.answers = [answer(status)] * 4
    with make() as source:
        assert source.send(Request("/users")).status == 200
    assert [row[2:] for row in rows(database)[1:]] == [(status, "transient", n) for n in range(1, 5)] + [(200, None, 5)]
    assert source.waited_seconds > 0


def test_five_failures_are_enough(make: Callable[..., HttpSource], vendor: Vendor) -> None:
    vendor.answers = [answer(500)] * 9
    with make() as source, pytest.raises(TransientError) as caught:
        source.send(Request("/users"))
    assert len(vendor.seen) == 5
    assert caught.value.context["attempt"] == 5
    assert caught.value.context["status"] == 500


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_refusals_are_not_retried(make: Callable[..., HttpSource], vendor: Vendor, status: int) -> None:
    vendor.answers = [answer(status)]
    with make() as source, pytest.raises(ConfigError) as caught:
        source.send(Request("/users"))
    assert (len(vendor.seen), caught.value.context["status"]) == (1, status)


def test_html_is_a_broken_contract(make: Callable[..., HttpSource], vendor: Vendor, database: Engine) -> None:
    vendor.answers = [ServerResponse("<html>Sign in</html>", 200, content_type="text/html")]
    with make() as source, pytest.raises(ContractError, match="HTML page"):
        source.send(Request("/users"))
    assert rows(database)[-1][2:] == (200, "contract", 1)


def test_a_broken_connection_is_retried_and_recorded_without_a_status(database: Engine) -> None:
    answers = [http_answer(b'{"a":1}')[:-3], b"", http_answer(b'{"a":1}')]
    with raw_server(lambda connection: connection.sendall(answers.pop(0))) as server:
        with a_source(database, server.url, authorised=False) as source:
            assert source.send(Request("/x")).body == b'{"a":1}'
        assert len(server.requests) == 3
    assert [row[2:] for row in rows(database)] == [(None, "transient", 1), (None, "transient", 2), (200, None, 3)]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for_by_everybody(
    make: Callable[..., HttpSource], vendor: Vendor, database: Engine, form: str
) -> None:
    hint = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)  # whole seconds: 1 to 2 from now
    vendor.answers = [answer(429, Retry_After=hint)]
    with make() as source, make() as sibling:
        source.send(Request("/users"))
        # as the server sees it: on a busy machine part of the pause is over before the client gets to wait
        assert vendor.arrivals[1] - vendor.arrivals[0] >= 0.95
        assert (source.throttled, len(vendor.seen)) == (1, 2)
        sibling.send(Request("/users"))
    with database.connect() as connection:
        assert connection.scalar(text("select count(*) from sis.rate_limits")) == 1


def test_a_long_pause_is_asked_of_the_shared_limit(
    make: Callable[..., HttpSource], vendor: Vendor, database: Engine
) -> None:
    """Seen from the outside, because nobody waits a quarter of an hour for a test."""
    vendor.answers = [answer(503, Retry_After="86400")]
    source = make()
    _interrupt_waits(source)
    with pytest.raises(_EnoughError):
        source.send(Request("/users"))
    source.close()
    with database.connect() as connection:
        pause = connection.scalar(text("select extract(epoch from next_free - sis.clock()) from sis.rate_limits"))
    assert 890 < pause <= 900


class _EnoughError(Exception):
    pass


def _interrupt_waits(source: HttpSource) -> None:
    waits = source._rate.waits

    def interrupted(key: str, per_minute: float) -> Iterator[float]:
        for wait in waits(key, per_minute):
            if wait > 60:
                raise _EnoughError
            yield wait

    source._rate.waits = interrupted  # type: ignore[method-assign]


def test_a_throttle_that_does_not_end_does(make: Callable[..., HttpSource], vendor: Vendor) -> None:
    vendor.answers = [answer(429)] * 9
    with make() as source, pytest.raises(RateLimitedError):
        source.send(Request("/users"))
    assert (len(vendor.seen), source.throttled) == (5, 5)


def test_a_refused_token_is_replaced_and_the_call_repeated(
    make: Callable[..., HttpSource], vendor: Vendor, database: Engine
) -> None:
    with make() as source:
        source.send(Request("/users"))
        vendor.answers = [answer(401)]
        source.send(Request("/users"))
        source.send(Request("/users"))
    assert vendor.bearers == ["Bearer token-1", "Bearer token-1", "Bearer token-2", "Bearer token-2"]
    assert [row[3] for row in rows(database)] == [None, None, "auth_expired", None, None, None]


def test_a_new_token_that_is_refused_too_means_revoked(make: Callable[..., HttpSource], vendor: Vendor) -> None:
    vendor.answers = [answer(401)] * 9
    with make() as source, pytest.raises(AuthRevokedError, match="newly fetched") as caught:
        source.send(Request("/users"))
    assert (len(vendor.seen), vendor.tokens, caught.value.context["status"]) == (2, 2, 401)


def test_403_may_mean_expired_where_the_vendor_says_so(make: Callable[..., HttpSource], vendor: Vendor) -> None:
    oauth = OAuth(f"{vendor.url}/token", "c", refused_token_statuses=frozenset({401, 403}))
    with make(oauth=oauth) as source:
        vendor.answers = [answer(403)]
        assert source.send(Request("/users")).status == 200
        vendor.answers = [answer(403)] * 9
        with pytest.raises(ConfigError) as caught:
            source.send(Request("/users"))
    assert caught.value.context["status"] == 403
    assert (len(vendor.seen), vendor.tokens) == (4, 3)


def test_dead_credentials_end_after_one_token_call(make: Callable[..., HttpSource], vendor: Vendor) -> None:
    vendor.token_answers = [answer(401, {"error": "invalid_client"})] * 9
    with make() as source, pytest.raises(AuthRevokedError, match="invalid_client"):
        source.send(Request("/users"))
    assert (vendor.tokens, source.token_calls, vendor.seen) == (1, 1, [])


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refused_token_call_is_no_answer_to_what_was_asked_for(
    make: Callable[..., HttpSource], vendor: Vendor, status: int
) -> None:
    """Else dead credentials would pass for a collection that is not offered, and prove that its rows are gone."""
    with make() as source:
        vendor.answers = [answer(404)]
        with pytest.raises(ConfigError) as asked:
            source.send(Request("/users"))
        vendor.answers, vendor.token_answers = [answer(401)], [answer(status)] * 9
        with pytest.raises(SisError) as refused:
            source.send(Request("/users"))
    assert (asked.value.context["status"], source_status(asked.value)) == (404, 404)
    assert (refused.value.context["status"], source_status(refused.value)) == (status, None)


def test_a_token_endpoint_in_trouble_is_retried(make: Callable[..., HttpSource], vendor: Vendor) -> None:
    vendor.token_answers = [answer(500), answer(429, Retry_After="0"), answer(503)]
    with make() as source:
        assert source.send(Request("/users")).status == 200
    assert (vendor.tokens, len(vendor.seen)) == (4, 1)


def test_a_token_call_does_not_wait_long_with_the_lock_held(
    make: Callable[..., HttpSource], vendor: Vendor, database: Engine
) -> None:
    source = make(token_turn=0.05)
    source._rate.push_back(source._rate_key, 0.3)
    with capture_logs() as lines:
        assert source.send(Request("/users")).status == 200
    source.close()
    assert {line["because"] for line in lines if "because" in line} == {"rate_limited.turn_too_far"}
    assert vendor.tokens == 1
    assert len(rows(database)) == 2, "a turn that was not taken is no call"


def test_waiting_for_a_token_calls_turn_uses_up_no_attempt(
    make: Callable[..., HttpSource], vendor: Vendor, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause of 15 minutes is longer than anything else is waited for, and then the call itself is throttled."""
    vendor.answers = [answer(429, Retry_After="0")] * 4
    source = make(token_turn=0.05, backoff=Backoff(base=0.001))
    source._rate.push_back(source._rate_key, 900)
    pauses: list[float] = []
    really = time.sleep

    def sleep(seconds: float) -> None:
        if seconds < 60:
            really(seconds)
            return
        pauses.append(seconds)
        with database.begin() as connection:
            connection.execute(text("update sis.rate_limits set next_free = sis.clock(), pushed_until = null"))

    monkeypatch.setattr(time, "sleep", sleep)
    assert source.send(Request("/users")).status == 200
    source.close()
    assert pauses == [pytest.approx(900, abs=2)]
    assert (vendor.tokens, len(vendor.seen)) == (1, 5)


@pytest.mark.parametrize("effort", [Backoff(attempts=1, cap=0.0, waits_for_turn=False), FEW])
def test_who_has_others_to_look_after_does_not_wait_for_a_turn_however_often_they_try(
    make: Callable[..., HttpSource], vendor: Vendor, monkeypatch: pytest.MonkeyPatch, effort: Backoff
) -> None:
    source = make(token_turn=0.05, backoff=effort)
    source._rate.push_back(source._rate_key, 900)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"slept {seconds} s"))
    for ask in (source.refresh_token, lambda: source.send(Request("/users"))):
        with pytest.raises(RateLimitedError) as caught:
            ask()
        assert caught.value.code == "rate_limited.turn_too_far"
    source.close()
    assert vendor.tokens == 0


def test_a_throttled_token_call_is_left_to_the_next_time_where_nobody_waits_for_its_turn(
    make: Callable[..., HttpSource], vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor.token_answers = [answer(429, Retry_After="900")]
    monkeypatch.setattr(time, "sleep", lambda seconds: seconds < 1 or pytest.fail(f"slept {seconds} s"))
    with make(token_turn=0.05, backoff=FEW) as source, pytest.raises(RateLimitedError):
        source.refresh_token()
    assert vendor.tokens == 1


def test_no_secret_no_call(database: Engine, vendor: Vendor) -> None:
    with a_source(database, vendor.url) as source, pytest.raises(ConfigError, match="no client secret"):
        source.send(Request("/users"))
    assert (vendor.tokens, vendor.seen, source.calls) == (0, [], 0)


def test_tokens_are_shared_between_sources(make: Callable[..., HttpSource], vendor: Vendor) -> None:
    for _ in range(3):
        with make() as source:
            source.send(Request("/users"))
    assert vendor.tokens == 1


def test_a_sync_outlives_many_expiries(database: Engine) -> None:
    Vault.open(database, Keys([KEY])).put("lincoln", "client_secret", SECRET)
    with serve(Sis(calls_per_token=4)) as sis, a_source(database, sis.url) as source:
        for _ in range(100):
            assert source.send(Request("/data")).status == 200
    assert len(sis.issued) == source.token_calls == 25
    assert len(rows(database)) == source.calls == 100 + 24 + 25


def test_what_shares_a_limit() -> None:
    oauth = OAuth("https://a.example.org/token", "client-1")
    key = rate_key("powerschool", Options("https://a.example.org/ws"), oauth)
    assert key == rate_key("powerschool", Options("https://A.example.org:443/other"), oauth)
    assert key != rate_key("powerschool", Options("https://a.example.org:8443/ws"), oauth)
    assert key != rate_key("powerschool", Options("https://a.example.org/ws"), OAuth(oauth.token_url, "client-2"))
    shared = rate_key("skyward", Options("https://b.example.org", rate_group="county"), None)
    assert shared == rate_key("skyward", Options("https://c.example.org", rate_group="county"), oauth)


def test_paths_without_a_template_lose_what_looks_like_an_id(database: Engine) -> None:
    with raw_server(writes(http_answer(b"{}"))) as server, a_source(database, server.url, authorised=False) as source:
        for path in ("/ws/v1/school/10234/student", "/v1p2/users/3f2a9c1e-0000-4c1e-9a77-1b2c3d4e5f60?x=9", "/a/-7"):
            source.send(Request(path))
    assert [row[1] for row in rows(database)] == ["/ws/v1/school/{id}/student", "/v1p2/users/{id}", "/a/{id}"]


@pytest.mark.parametrize(
    ("fault", "error_class"), [(KeyboardInterrupt(), "transient"), (ZeroDivisionError(), "internal")]
)
def test_a_call_that_ended_in_no_foreseen_way_is_not_recorded_as_a_success(
    make: Callable[..., HttpSource],
    database: Engine,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    error_class: str,
) -> None:
    def send(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("sis_pipeline.connect.http.Door.send", send)
    with make(authorised=False) as source, pytest.raises(type(fault)):
        source.send(Request("/users"))
    assert rows(database) == [("GET", "/users", None, error_class, 1)]


def test_records_are_written_in_batches_and_at_the_end(database: Engine) -> None:
    with serve(Sis()) as sis, a_source(database, sis.url, authorised=False) as source:
        for _ in range(60):
            source.send(Request("/open"))
        assert len(rows(database)) == 50
    assert len(rows(database)) == 60


def test_an_address_with_a_query_is_no_base(database: Engine) -> None:
    with pytest.raises(ConfigError, match="query"):
        a_source(database, "https://sis.example.org/api?tenant=1", authorised=False)


def test_a_request_has_one_id_on_the_wire_in_the_table_and_in_the_log(
    make: Callable[..., HttpSource], vendor: Vendor, database: Engine
) -> None:
    vendor.answers = [answer(503)]
    with capture_logs(processors=[merge_contextvars]) as lines, make() as source:
        source.send(Request("/users", {"filter": "name='Rosalind'"}, template="/users"))
        source.send(Request("/users"))
    with database.connect() as connection:
        ids = list(connection.scalars(text("select request_id from sis.api_calls order by call_id")))
    assert ids[0] == ids[1] == ids[2] != ids[3], "token call, failed attempt and repeat belong to one request"
    assert [request.headers["X-Request-Id"] for request in vendor.seen] == ids[1:]
    called = [line for line in lines if line["event"] == "called"]
    assert [line["request_id"] for line in called] == ids
    assert [(line["template"], line["attempt"], line["status"]) for line in called] == [
        ("/token", 1, 200),
        ("/users", 1, 503),
        ("/users", 2, 200),
        ("/users", 1, 200),
    ]
    assert all(line["integration"] == "lincoln" and line["bytes"] > 0 and "milliseconds" in line for line in called)
    assert "Rosalind" not in str(lines)
    assert SECRET not in str(lines)
    assert get_contextvars() == {}, "nothing of a call is left for the next"


def test_an_error_says_which_request_it_was(make: Callable[..., HttpSource], vendor: Vendor) -> None:
    vendor.answers = [answer(404)]
    with make() as source, pytest.raises(ConfigError) as caught:
        source.send(Request("/users"))
    assert caught.value.context["request_id"] == vendor.seen[0].headers["X-Request-Id"]


def test_a_system_that_keeps_failing_is_left_alone(
    make: Callable[..., HttpSource], vendor: Vendor, database: Engine
) -> None:
    vendor.answers = [answer(500)] * 99
    with make() as source, make() as sibling:
        with pytest.raises(TransientError):
            source.send(Request("/users"))
        granted = _granted(database)
        for one in (source, sibling):
            with pytest.raises(SourceLeftAloneError, match="left alone for another") as caught:
                one.send(Request("/users"))
        seen = report([source, sibling])
    assert len(vendor.seen) == 5, "nothing more was sent"
    assert caught.value.retry_after > 20
    assert _granted(database) == granted, "and no slot was used up"
    assert [state.state for state in seen.breakers] == ["open"]
    assert len(rows(database)) == 6
    with database.begin() as connection:
        connection.execute(text("update sis.circuit_breakers set open_until = sis.clock()"))
    vendor.answers = []
    with make() as source:
        assert source.send(Request("/users")).status == 200
        assert source.shared_state()[1] == ()


def _granted(database: Engine) -> int:
    with database.connect() as connection:
        return connection.scalar(text("select sum(granted) from sis.rate_limits")) or 0


def test_a_short_time_alone_is_waited_for(make: Callable[..., HttpSource], vendor: Vendor, database: Engine) -> None:
    vendor.answers = [answer(500)] * 5
    with make() as source, pytest.raises(TransientError):
        source.send(Request("/users"))
    with database.begin() as connection:
        connection.execute(text("update sis.circuit_breakers set open_until = sis.clock() + interval '0.3 s'"))
    with make(backoff=Backoff(base=0.01, cap=1)) as source:
        assert source.send(Request("/users")).status == 200
    assert 0.05 < source.waited_seconds < 2
    assert len(vendor.seen) == 6


def test_a_token_endpoint_that_keeps_failing_is_left_alone_too(
    make: Callable[..., HttpSource], vendor: Vendor, database: Engine
) -> None:
    vendor.token_answers = [answer(500)] * 99
    with make() as source:
        with pytest.raises(TransientError):
            source.send(Request("/users"))
        with pytest.raises(SourceLeftAloneError, match="/token is left alone"):
            source.send(Request("/users"))
    assert (vendor.tokens, vendor.seen) == (5, [])
    with database.connect() as connection:
        keys = list(connection.scalars(text("select breaker_key from sis.circuit_breakers")))
    assert keys == [f"oneroster {vendor.url}/token"]


@pytest.mark.parametrize("status", [400, 403, 404, 429])
def test_answers_that_are_no_failures_of_the_system_never_open_it(
    make: Callable[..., HttpSource], vendor: Vendor, database: Engine, status: int
) -> None:
    vendor.answers = [answer(status)] * 25
    with make() as source:
        for _ in range(5):
            with pytest.raises(SisError):
                source.send(Request("/users"))
        assert source.shared_state()[1] == ()


def test_a_run_of_failures_cannot_multiply_the_load(make: Callable[..., HttpSource], vendor: Vendor) -> None:
    """Every third call fails once: too few for the breaker, and the budget ends it."""

    def go_on() -> None:
        for number in range(300):
            vendor.answers = [answer(500)] if number % 3 == 0 else []
            source.send(Request("/users"))

    with make() as source, pytest.raises(TransientError, match=r"repeated 10 of its \d+ calls"):
        go_on()
    assert source.budget.retries == 10
    assert len(vendor.seen) == source.budget.calls + 10


def test_what_a_reading_saw_is_reported(make: Callable[..., HttpSource], vendor: Vendor) -> None:
    vendor.answers = [answer(500), answer(200), answer(404)]
    with make(requests_per_minute=6000) as source:
        source.send(Request("/users"))
        with pytest.raises(ConfigError):
            source.send(Request("/users"))
        seen = report([source])
    assert seen.by_status == {200: 2, 500: 1, 404: 1}
    assert seen.p50_ms is not None
    assert 0 < seen.p50_ms <= (seen.p95_ms or 0)
    assert seen.repeated == 1
    assert seen.limit is not None
    assert (seen.limit.per_minute, seen.limit.pushed) == (6000, 0)


def test_percentiles_by_nearest_rank() -> None:
    assert percentile([], 0.5) is None
    assert percentile([7.0], 0.5) == percentile([7.0], 0.95) == 7.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(1, 101)], 0.95) == 95.0


def test_old_calls_are_purged(make: Callable[..., HttpSource], vendor: Vendor, database: Engine) -> None:
    with make() as source:
        source.send(Request("/users"))
    with database.begin() as connection:
        connection.execute(
            text("update sis.api_calls set at = sis.clock() - interval '31 days' where template = '/token'")
        )
    assert purge_api_calls(database, 30) == 1
    assert [row[1] for row in rows(database)] == ["/users"]
    assert purge_api_calls(database, 30) == 0
