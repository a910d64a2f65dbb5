"""Dagster's storage, whole before it is used: also after the process that made it was killed, and after an upgrade."""

from __future__ import annotations

import time

import dagster as dg
import pytest
from sqlalchemy import text

from sis_pipeline.defs.instance import WHOLE, dagster_environment, dagster_instance
from sis_pipeline_tests.defs.children import Child

SAID = "select obj_description('dagster'::regnamespace)"


@pytest.fixture(scope="module")
def template(_template: str) -> str:
    """A database without Dagster's storage: how that is made is what is looked at."""
    return _template


def use(instance: dg.DagsterInstance) -> int:
    """Record a run and ask for partitions and instigators: something of every kind of storage. How many runs there are."""
    instance.create_run_for_job(noop)
    instance.add_dynamic_partitions("some", ["one"])
    instance.all_instigator_state()
    return instance.get_runs_count()


@dg.job
def noop() -> None:
    """Does nothing, and is recorded."""


def open_and_use() -> int:
    from sis_pipeline.settings import Settings

    with dagster_instance(Settings()) as instance:
        return use(instance)


def half_made(installation, monkeypatch) -> None:
    """As a kill leaves it: the first table is there, and most others and the revision are not."""
    home = dagster_environment(installation.settings)
    for name, value in home.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.from_config(home["DAGSTER_HOME"]):
        pass
    with installation.engine.begin() as connection:
        for table in ("runs", "event_logs", "jobs"):
            assert connection.scalar(text("select to_regclass(:t)"), {"t": f"dagster.{table}"}) is not None
        for table in ("alembic_version", "dynamic_partitions", "secondary_indexes", "instigators"):
            connection.execute(text(f"drop table if exists dagster.{table} cascade"))
    monkeypatch.delenv("SIS_DAGSTER_PG_URL")


def test_a_storage_that_a_kill_left_half_made_is_made_anew(installation, monkeypatch):
    half_made(installation, monkeypatch)
    environment = dagster_environment(installation.settings)
    with monkeypatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        with (
            pytest.raises(dg.DagsterInvalidInvocationError, match="dagster instance migrate"),
            dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as broken,
        ):
            use(broken)
    with installation.engine.begin() as connection:
        connection.execute(text("delete from dagster.runs"))
    with dagster_instance(installation.settings) as instance:
        assert use(instance) == 1
    assert installation.scalar(SAID) == WHOLE


def test_after_a_new_dagster_it_is_brought_up_to_date_and_keeps_its_runs(installation):
    with dagster_instance(installation.settings) as instance:
        assert use(instance) == 1
    with installation.engine.begin() as connection:
        connection.execute(text("comment on schema dagster is 'made whole with dagster 1.0.0'"))
    with dagster_instance(installation.settings) as instance:
        assert instance.get_runs_count() == 1
        assert instance.get_dynamic_partitions("some") == ["one"]
    assert installation.scalar(SAID) == WHOLE


def test_processes_that_open_it_at_once_make_it_once(installation):
    children = [Child(open_and_use) for _ in range(3)]
    counts = [child.ended() for child in children]
    assert [one.error for one in counts] == [None, None, None]
    assert max(one.value or 0 for one in counts) == 3
    assert installation.scalar(SAID) == WHOLE


def test_its_connections_are_kept_and_one_that_was_cut_is_replaced(installation):
    others = (
        "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and backend_type = 'client backend' and application_name <> 'sis_pipeline'"
    )
    with dagster_instance(installation.settings) as instance:
        use(instance)
        kept = installation.rows(others)
        use(instance)
        assert installation.rows(others) == kept
        assert len(kept) == 3, "one for each storage"
        assert installation.rows(f"select pg_terminate_backend(pid) from ({others}) o") == [(True,)] * 3
        assert use(instance) == 3
    deadline = time.monotonic() + 10
    while installation.rows(others) and time.monotonic() < deadline:
        continue  # the server's side of a connection ends a moment after ours
    assert installation.rows(others) == []


def test_a_storage_of_somebody_elses_is_left_as_it_is(installation, monkeypatch):
    theirs = dagster_environment(installation.settings)["SIS_DAGSTER_PG_URL"].replace("dagster", "theirs")
    with installation.engine.begin() as connection:
        connection.execute(text("create schema theirs"))
    monkeypatch.setenv("SIS_DAGSTER_PG_URL", theirs)
    with dagster_instance(installation.settings) as instance:
        assert use(instance) == 1
    assert installation.scalar("select count(*) from theirs.runs") == 1
    assert installation.scalar(SAID) is None
    assert installation.scalar("select obj_description('theirs'::regnamespace)") is None


def test_a_home_of_somebody_elses_may_name_a_storage_of_its_own(installation, monkeypatch, tmp_path):
    """Neither is theirs migrated, as by a newer Dagster of ours, nor ours said to be whole, which nobody uses."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "dagster.yaml").write_text(f"storage:\n  sqlite:\n    base_dir: {theirs}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(theirs))
    monkeypatch.setattr(dg.DagsterInstance, "upgrade", lambda _self: pytest.fail("migrated"))
    for said in (None, "made whole with dagster 1.0.0"):
        if said is not None:
            with installation.engine.begin() as connection:
                connection.execute(text(f"comment on schema dagster is '{said}'"))
        with dagster_instance(installation.settings) as instance:
            use(instance)
        assert installation.scalar(SAID) == said
    assert installation.scalar("select to_regclass('dagster.runs')") is None
    assert list(theirs.rglob("*.db")), "it is in use"
