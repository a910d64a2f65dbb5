"""`sis health`: problems first, an exit code for scripts, and what a person may reset."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from sis_pipeline.connect.breaker import Breaker
from sis_pipeline.connect.errors import TransientError
from sis_pipeline.connect.limits import RateLimit
from sis_pipeline.store import health as store
from sis_pipeline_tests.cli.conftest import Sis

BREAKER = "oneroster https://lincoln.example.org:443/api"
LIMIT = "oneroster https://lincoln.example.org:443 c"


@pytest.fixture
def lincoln(home: Path, database: Engine) -> Engine:
    """An integration without data."""
    with database.begin() as connection:
        connection.execute(
            text("""insert into sis.integrations (key, provider, district, settings) values ('lincoln', 'oneroster', 'd',
                    '{"base_url": "https://lincoln.example.org/api", "client_id": "c"}')""")
        )
    return database


def with_data(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(
            text("""insert into sis.snapshots (integration, school_year, snapshot_id, provider, path, verdict, finished_at)
                    select 'lincoln', y || '-' || y + 1, gen_random_uuid(), 'oneroster', 'x', 'complete', sis.clock()
                    from generate_series(2020, 2040) y""")
        )


@pytest.mark.usefixtures("home")
def test_nothing_is_wrong(sis: Sis) -> None:
    said = sis("health")
    assert (said.code, said.out.splitlines()[0]) == (0, "Nothing is wrong.")
    document = sis("health", "--json").json
    assert (document["ok"], document["problems"], document["integrations"]) == (True, [], [])


@pytest.mark.usefixtures("home")
def test_a_schema_that_is_not_there_yet_is_told_in_words(database: Engine, sis: Sis) -> None:
    with database.begin() as connection:
        connection.execute(text("drop schema sis cascade"))
    said = sis("health")
    assert said.code == 4
    assert "sis db upgrade" in said.err


def test_what_needs_a_person_is_said_first_with_a_command(lincoln: Engine, sis: Sis) -> None:
    said = sis("health")
    assert said.code == 5
    assert said.out.startswith("1 problem")
    assert "needs you" in said.out
    assert "sis sync --integration lincoln" in said.out
    document = sis("health", "--json").json
    assert document["ok"] is False
    assert document["problems"][0]["kind"] == "data"
    assert document["integrations"][0]["data_age_hours"] is None
    with_data(lincoln)
    assert sis("health").code == 0


def test_what_passes_by_itself_is_shown_and_can_be_hurried(lincoln: Engine, sis: Sis) -> None:
    with_data(lincoln)
    breaker = Breaker(lincoln, BREAKER, lease=1)
    for _ in range(5):
        breaker.settle(breaker.enter(), TransientError("It answered 503."), answered=True)
    RateLimit(lincoln).push_back(LIMIT, 600)
    said = sis("health")
    assert said.code == 0
    assert "passing" in said.out
    assert [problem["kind"] for problem in sis("health", "--json").json["problems"]] == ["breaker", "limit"]
    assert sis("health", "reset-breaker", "lincoln", "--json").json == {"reset": [BREAKER]}
    assert "Nothing was left alone." in sis("health", "reset-breaker", "--all").out
    assert LIMIT in sis("health", "reset-limit", "lincoln").out
    assert sis("health", "--json").json["problems"] == []
    with lincoln.connect() as connection:
        actions = list(connection.scalars(text("select action from sis.audit_log order by entry")))
    assert actions == ["breaker.reset", "limit.reset"]


def test_calls_that_were_not_all_looked_at_are_shown_as_so_many_and_more(
    lincoln: Engine, sis: Sis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "NEWEST", 1_200)
    with lincoln.begin() as connection:
        connection.execute(
            text("""insert into sis.api_calls (integration, method, template, status, milliseconds, bytes, attempt)
                    select 'lincoln', 'GET', '/users', 200, 1, 9, 1 from generate_series(1, 1300)""")
        )
    assert " 1,200+ " in sis("health").out
    assert sis("health", "--json").json["integrations"][0]["calls"] == 1_200


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("command", ["reset-breaker", "reset-limit"])
def test_one_or_all_and_nothing_else(sis: Sis, command: str) -> None:
    for arguments in ((), ("lincoln", "--all")):
        said = sis("health", command, *arguments)
        assert (said.code, "Name one integration, or give --all." in said.err) == (2, True)
    said = sis("health", command, "nowhere")
    assert (said.code, "There is no integration nowhere." in said.err) == (3, True)


def test_it_loads_nothing_that_takes_long() -> None:
    """The command answers within a second, most of which Python needs to load what it imports."""
    heavy = "{'dagster', 'pandas', 'polars', 'pyarrow', 'alembic', 'authlib', 'pandera', 'matplotlib'}"
    code = f"import sys, sis_pipeline.cli.health, sis_pipeline.store.health, sis_pipeline.db.engine; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
