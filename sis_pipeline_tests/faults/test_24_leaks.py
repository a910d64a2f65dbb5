"""Secrets and students' values through whole runs, good ones and failing ones, at DEBUG: where they may be, and nowhere else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import create_engine, text

from sis_pipeline.db.engine import dagster_storage_url
from sis_pipeline.defs.instance import dagster_environment
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.defs.conftest import (  # noqa: F401  fixtures
    THIS_YEAR,
    Installation,
    installation,
    own_environment,
)
from sis_pipeline_tests.faults.rows import Recorder, Row

ROW = Row(
    24,
    "20 canary secrets and 50 canary values of students through good runs and every failure, at DEBUG",
    "none in stdout, stderr, logs, compute logs, the event log, runs, snapshots, tables that are not for them, the home, "
    "the temporary folder, GraphQL answers, or URLs as the server saw them",
    70,
    "canaries",
)

HOLD_STUDENTS = frozenset(
    {"students", "student_years", "student_sources", "student_links", "student_aliases", "enrollments", "conflicts"}
    | {"student_names"}
    | {"section_enrollments", "enrollment_changes", "staff", "staff_links", "schools", "sections", "courses"}
    | {"academic_sessions", "holds"}
)
"""The tables that are for students' values; no table is for secrets in clear."""

SYSTEMS = (System("ps", "powerschool", 30), System("or", "oneroster_1.1", 30))
RECORD = {"student": "Canarina Vogelsang-Öztürk", "ssid": "9990001112223", "echo": "canary-secret-of-the-server-5bd1"}
PLANTED = ("Canarina", "Vogelsang", "9990001112223", "canary-secret-of-the-server-5bd1")


def faults() -> list[dict[str, Any]]:
    """Every failure the sandbox knows, on data and at the token endpoint, with a student and a secret in its body."""
    said, data, token = json.dumps(RECORD), "^/(?!oauth)", "oauth"
    statuses = (400, 401, 403, 404, 409, 422, 429, 500, 503)
    kinds: list[tuple[str, dict[str, Any]]] = [
        *((f"status {code}", {"kind": "status", "path": data, "status": code, "body": said}) for code in statuses),
        ("html", {"kind": "html", "path": data, "body": f"<html>{said}</html>"}),
        *(
            (f"redirect {code}", {"kind": "redirect", "path": data, "status": code, "location": _telling(said)})
            for code in (301, 302, 307)
        ),
        *((kind, {"kind": kind, "path": "users|students|orgs"}) for kind in _DELIVERIES),
        *(
            (f"token {code}", {"kind": "status", "path": token, "status": code, "body": said})
            for code in (400, 401, 500)
        ),
        *((f"token {one}", {"kind": "token_answer", "path": token, "answer": one}) for one in _TOKEN_ANSWERS),
        ("token redirect", {"kind": "redirect", "path": token, "status": 307, "location": _telling(said)}),
    ]
    return [
        {"name": name, "integration": "fern-or", "faults": [{"system": "or", "times": None, **settings}]}
        for name, settings in kinds
    ]


_DELIVERIES = (
    "truncate", "chunked_cut", "half_body", "reset", "gzip_bomb", "content_type", "missing_key", "empty_body", "empty_page",
    "repeated_page", "duplicate_ids", "expired_token",
)  # fmt: skip
_TOKEN_ANSWERS = ("empty", "html", "no_error", "no_token")


def _telling(said: str) -> str:
    return f"https://elsewhere.example.org/login?{requests.models.RequestEncodingMixin._encode_params({'q': said})}"


class Listening(SandboxServer):
    """Remembers every URL as it came, and every token that was ever good."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.urls: list[str] = []
        self.tokens: set[str] = set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.urls.append(f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}")
        self.tokens |= {value for handle in self.systems for value in list(handle.api.tokens._tokens)}
        return super().__call__(environ, start_response)


@pytest.fixture
def sandbox() -> Iterator[Listening]:
    with Listening(World(systems=SYSTEMS, school_year=THIS_YEAR, shared=0.2), enforce_limits=False) as server:
        yield server


@pytest.mark.faults
def test_canaries(
    installation: Installation,  # noqa: F811
    sandbox: Listening,
    tmp_path: Path,
    row: Recorder,
) -> None:
    installation.connect(sandbox.system("ps"), "fern-ps")
    installation.connect(sandbox.system("or"), "fern-or", page_size=10, read_timeout=5, total_timeout=10)
    suffered = [{"name": "good", "integration": "fern-ps", "faults": []}]
    suffered += faults()
    suffered += [{"name": "good again", "integration": "fern-or", "faults": []}]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    out, results = suffer(sandbox, suffered, temporary)
    assert debug_lines(out), "the product told what it tells at DEBUG only"
    failed = [one for one in results if one["fired"]]
    assert {one["name"] for one in results} >= {one["name"] for one in suffered}
    assert {one["name"] for one in suffered if one["faults"]} <= {one["name"] for one in failed}, (
        "every failure happened"
    )
    assert results[-1] == {"name": "merge", "code": "", "fired": 0}

    secrets = {os.environ["SIS_ENCRYPTION_KEYS"], *sandbox.tokens, *(one.client_secret for one in sandbox.systems)}
    students = student_values(installation)
    assert len(students) >= 50
    assert len(secrets) >= 20
    with webserver(installation, tmp_path) as url:
        answers = graphql(url)
    places = {
        "stdout and stderr": out,
        "Dagster's storage": dagster_tables(installation),
        "tables": tables(installation, everything=False),
        "the home": files(Path(os.environ["SIS_HOME"]), leave_out="data"),
        "the temporary folder": files(temporary),
        "GraphQL": answers,
        "URLs": "\n".join(sandbox.urls),
    }
    for place, found in places.items():
        assert HAYSTACKS.get(place, "fern-or") in found, f"{place}: this is the right haystack"
        told = [canary for canary in (*students, *secrets, *PLANTED) if canary in found]
        assert told == [], f"{len(told)} of them in {place}"
    everywhere = tables(installation, everything=True)
    assert [secret for secret in (*secrets, PLANTED[-1]) if secret in everywhere] == []
    assert sum(value in everywhere for value in students) > 20, "where they belong, they are"
    row.happened(sum(one["fired"] for one in failed))
    row.ran(len(students) + len(secrets))
    row.note(f"{len(secrets)} secrets and {len(students)} students' values through {len(suffered)} runs")


HAYSTACKS = {"the home": "dagster.yaml", "the temporary folder": "", "URLs": "/users"}
"""What stands in a place if it is the right one; elsewhere the integration's key does."""


def suffer(sandbox: Listening, suffered: list[dict[str, Any]], temporary: Path) -> tuple[str, list[dict[str, Any]]]:
    asked = {"sandbox": sandbox.url, "school_year": THIS_YEAR, "faults": suffered}
    done = subprocess.run(
        [sys.executable, "-m", "sis_pipeline_tests.faults.suffering"],
        input=json.dumps(asked),
        env={**os.environ, "TMPDIR": str(temporary), "SIS_LOG_FORMAT": "json", "SIS_LOG_LEVEL": "debug"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    return done.stdout + done.stderr, results


def debug_lines(said: str) -> list[dict[str, Any]]:
    """Our own line for every call to a system."""
    lines = (json.loads(line) for line in said.splitlines() if line.startswith("{") and '"event": "called"' in line)
    return [line for line in lines if line["level"] == "debug"]


def student_values(installation: Installation) -> set[str]:  # noqa: F811
    """What can't stand in a log by chance: addresses, ids, mail, and names as a whole."""
    query = """
        select first_name || ' ' || last_name, email, ssid, home_street, phone, username from sis.students
    """
    values = {str(value) for one in installation.rows(query) for value in one if value}
    return {value for value in values if len(value) >= (9 if value.isdecimal() else 8)}


def dagster_tables(installation: Installation) -> str:  # noqa: F811
    engine = create_engine(dagster_storage_url(installation.settings))
    with engine.connect() as connection:
        names = connection.scalars(text("select quote_ident(tablename) from pg_tables where schemaname = 'dagster'"))
        rows = [one for name in list(names) for one in connection.scalars(text(f"select t::text from {name} t"))]
        bodies = connection.execute(text("select snapshot_body from snapshots")).scalars()
        rows += [zlib.decompress(body).decode() for body in bodies]
    engine.dispose()
    return "\n".join(rows)


def tables(installation: Installation, *, everything: bool) -> str:  # noqa: F811
    """The pipeline's own tables; all of them, or those that are not for students' values."""
    names = {name for (name,) in installation.rows("select tablename from pg_tables where schemaname = 'sis'")}
    assert names > {"api_calls", "audit_log", "snapshots", "oauth_tokens", "quarantine", "circuit_breakers"}
    chosen = names if everything else names - HOLD_STUDENTS
    return "\n".join(
        str(one) for name in sorted(chosen) for (one,) in installation.rows(f"select t::text from sis.{name} t")
    )


def files(folder: Path, leave_out: str | None = None) -> str:
    """Names and contents; the data folder, which holds the snapshots, is for students' values."""
    return "\n".join(
        f"{path}\n{path.read_bytes().decode(errors='replace')}"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (leave_out is None or leave_out not in path.relative_to(folder).parts[:1])
    )


# --- the webserver -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def webserver(installation: Installation, folder: Path) -> Iterator[str]:  # noqa: F811
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "dagster_webserver",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-m",
        "sis_pipeline.definitions",
    ]
    with (folder / "webserver.log").open("w") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **dagster_environment(installation.settings)},
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}/graphql"
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


RUNS = "{ runsOrError { ... on Runs { results { runId status runConfigYaml tags { key value } } } } }"
LOGS = """
query ($run: ID!, $after: String) { logsForRun(runId: $run, afterCursor: $after) {
  ... on EventConnection { cursor hasMore events {
    __typename
    ... on MessageEvent { message level stepKey }
    ... on ExecutionStepFailureEvent { error { message stack causes: errorChain { error { message stack } } } failureMetadata { metadataEntries { ...entry } } }
    ... on MaterializationEvent { metadataEntries { ...entry } }
    ... on RunFailureEvent { error { message stack } }
    ... on LogsCapturedEvent { fileKey }
  } }
} }
fragment entry on MetadataEntry {
  label description
  ... on TextMetadataEntry { text } ... on JsonMetadataEntry { jsonString } ... on MarkdownMetadataEntry { mdStr }
  ... on UrlMetadataEntry { url } ... on PathMetadataEntry { path } ... on IntMetadataEntry { intValue }
  ... on FloatMetadataEntry { floatValue } ... on BoolMetadataEntry { boolValue }
  ... on TableMetadataEntry { table { records schema { columns { name } } } }
}
"""
CAPTURED = "query ($key: [String!]!) { capturedLogs(logKey: $key) { stdout stderr } }"
ASSETS = """
{ assetsOrError { ... on AssetConnection { nodes { key { path } assetMaterializations(limit: 5) { label description
  metadataEntries { label description ... on TextMetadataEntry { text } ... on JsonMetadataEntry { jsonString }
  ... on MarkdownMetadataEntry { mdStr } ... on TableMetadataEntry { table { records } } } } } } } }
"""


def graphql(url: str) -> str:
    """Everything the UI could show of the runs: events with their metadata and errors, captured output, assets."""
    answers = [wait_for(lambda: ask(url, RUNS))]
    runs = [run["runId"] for run in answers[0]["runsOrError"]["results"]]
    assert runs
    for run in runs:
        after, more = None, True
        while more:
            page = ask(url, LOGS, run=run, after=after)["logsForRun"]
            answers.append(page)
            after, more = page["cursor"], page["hasMore"]
            keys = {event["fileKey"] for event in page["events"] if event.get("fileKey")}
            answers += [ask(url, CAPTURED, key=[run, "compute_logs", key]) for key in keys]
    answers.append(ask(url, ASSETS))
    return json.dumps(answers, ensure_ascii=False)


def ask(url: str, query: str, **variables: Any) -> Any:
    answer = requests.post(url, json={"query": query, "variables": variables}, timeout=60).json()
    assert "errors" not in answer, answer["errors"]
    return answer["data"]


def wait_for(seen: Callable[[], Any]) -> Any:
    """The first answer. The webserver starts in its own time; only the deadline is a failure."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            return seen()
        time.sleep(0.5)
    raise AssertionError("the webserver did not start")
