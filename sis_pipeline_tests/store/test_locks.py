"""Two syncs of one integration and school year never run at once, and a killed one blocks nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from sis_pipeline.store.locks import (
    AlreadyRunningError,
    all_integrations_locked,
    integration_lock,
    is_syncing,
    judging_lock,
    lock_key,
)
from sis_pipeline_tests.store.conftest import YEAR

CHILD = """
import sys, time
from sqlalchemy.engine import make_url
from sis_pipeline.db.engine import engine_for
from sis_pipeline.store.locks import integration_lock
with integration_lock(engine_for(make_url(sys.argv[1])), "lincoln-ps", "2025-2026", run_id="abcdef0123456789"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(database_url):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, database_url.render_as_string(hide_password=False)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_second_sync_is_refused_and_told_who_runs(database, holder):
    with pytest.raises(AlreadyRunningError) as caught, integration_lock(database, "lincoln-ps", YEAR):
        pytest.fail("two syncs at once")
    assert f"lincoln-ps is being synced for {YEAR} already, by sis pid {holder.pid} run abcdef01 on " in str(
        caught.value
    )
    with database.connect() as connection:
        assert is_syncing(connection, "lincoln-ps", YEAR)


def test_other_years_and_integrations_are_free(database, holder):
    with integration_lock(database, "lincoln-ps", "2024-2025"), integration_lock(database, "lincoln-ic", YEAR):
        pass


def test_judging_is_locked_apart_from_reading_and_both_are_held_against_an_erasure(database, holder):
    said: list[str] = []
    with judging_lock(database, "lincoln-ps", YEAR, run_id="a", say=said.append):
        for other in (
            judging_lock(database, "lincoln-ps", YEAR, run_id="b", say=said.append, wait_seconds=0.1),
            all_integrations_locked(database, [("lincoln-ps", YEAR)]),
        ):
            with pytest.raises(AlreadyRunningError, match=r"lincoln-ps is being (judged|synced)"), other:
                pytest.fail("two at once")
    assert ["waiting for sis pid" in one for one in said] == [True], "who waits says for whom"
    with (
        all_integrations_locked(database, [("lincoln-ic", YEAR), ("lincoln-sky", YEAR)]),
        pytest.raises(AlreadyRunningError),
        judging_lock(database, "lincoln-sky", YEAR, run_id="b", say=said.append, wait_seconds=0.1),
    ):
        pytest.fail("judged what is being erased")


def test_a_killed_sync_blocks_nobody(database, holder):
    holder.send_signal(signal.SIGKILL)
    assert holder.wait(10) == -signal.SIGKILL
    with integration_lock(database, "lincoln-ps", YEAR, wait_seconds=10), database.connect() as connection:
        assert is_syncing(connection, "lincoln-ps", YEAR)


def test_waiting_ends_when_the_lock_is_free_or_time_is_up(database, holder):
    with pytest.raises(AlreadyRunningError), integration_lock(database, "lincoln-ps", YEAR, wait_seconds=0.2):
        pytest.fail("two syncs at once")

    def wait() -> int:
        with integration_lock(database, "lincoln-ps", YEAR, wait_seconds=20):
            return os.getpid()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        assert not waiting.done()
        holder.stdin.close()
        assert waiting.result(20) == os.getpid()


def test_the_lock_ends_with_its_block_even_by_an_error(database):
    with pytest.raises(RuntimeError, match="boom"), integration_lock(database, "lincoln-ps", YEAR):
        raise RuntimeError("boom")
    with integration_lock(database, "lincoln-ps", YEAR):
        pass
    with database.connect() as connection:
        assert not is_syncing(connection, "lincoln-ps", YEAR)


def test_a_lock_whose_connection_was_cut_ends_quietly(database):
    with integration_lock(database, "lincoln-ps", YEAR), database.connect() as connection:
        cut = text(
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()"
        )
        assert connection.scalar(cut)
    with integration_lock(database, "lincoln-ps", YEAR):
        pass


def test_a_lock_whose_connection_was_cut_hides_no_error_of_its_block(database):
    def fail_without_lock():
        cut = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()"
        with database.connect() as connection:
            assert connection.scalar(text(cut))
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), integration_lock(database, "lincoln-ps", YEAR):
        fail_without_lock()


def test_names_do_not_run_into_each_other():
    assert lock_key("sync", "a", "b") != lock_key("sync", "ab")
    assert -(2**63) <= lock_key("x") < 2**63
