"""Children: their results, their deaths, and that none outlives its parent."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from sis_pipeline.cli.fanout import READY, Child, FanOut, Job

ODD = "sis_pipeline_tests.cli.odd_worker"


@pytest.fixture
def told():
    return []


@pytest.fixture
def fan(tmp_path, told):
    with FanOut(tmp_path / "logs", lambda name, event: told.append((name, event)), parallel=2, module=ODD) as fan:
        yield fan


def test_results_come_back_and_prints_go_to_the_log(fan, told, tmp_path):
    outcomes = fan.run([Job("a", "add", {"one": 1, "two": 2}), Job("b", "add", {"one": 3, "two": 4})])
    assert {outcome.job.child: outcome.result["sum"] for outcome in outcomes} == {"a": 3, "b": 7}
    assert ("a", {"event": "page", "calls": 1, "rows": 1}) in told
    fan.__exit__()
    assert "must not reach" in (tmp_path / "logs" / "a.log").read_text()
    assert (tmp_path / "logs" / "a.log").stat().st_mode & 0o777 == 0o600


def test_jobs_of_one_child_share_its_process_and_keep_their_order(fan):
    outcomes = fan.run([Job("a", "add", {"one": n, "two": 0}) for n in range(3)], keep=True)
    again = fan.run([Job("a", "add", {"one": 9, "two": 0})])
    assert [outcome.result["sum"] for outcome in outcomes + again] == [0, 1, 2, 9]
    assert len({outcome.result["pid"] for outcome in outcomes + again}) == 1


def test_a_failure_is_told_in_words(fan):
    (outcome,) = fan.run([Job("a", "refuse", {})])
    assert outcome.error == {
        "class": "config",
        "code": "config",
        "message": "integration x: no such school year.",
        "advice": "Choose another.",
    }
    (outcome,) = fan.run([Job("b", "stumble", {})])
    assert outcome.error["class"] == "internal"
    assert "IndexError at odd_worker.py" in outcome.error["message"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_child_fails_its_job_and_no_other(fan, how):
    jobs = [
        Job("a", "die", {"how": int(how)}),
        Job("a", "add", {"one": 1, "two": 1}),
        Job("b", "add", {"one": 3, "two": 4}),
    ]
    outcomes = {(outcome.job.child, outcome.job.kind): outcome for outcome in fan.run(jobs)}
    assert how.name in outcomes["a", "die"].error["message"]
    assert outcomes["a", "add"].result["sum"] == 2, "its next job gets a new process"
    assert outcomes["b", "add"].result["sum"] == 7


def test_an_interrupt_ends_the_children_in_order(tmp_path):
    mark = tmp_path / "closed"

    def interrupt_at_the_first_page(name, event):
        if event["event"] == "page":
            raise KeyboardInterrupt

    with FanOut(tmp_path, interrupt_at_the_first_page, module=ODD) as fan:
        child = fan.warm("a")
        with pytest.raises(KeyboardInterrupt):
            fan.run([Job("a", "hang", {"mark": str(mark)})])
    assert not child.process.is_alive()
    assert mark.read_text() == "closed"


def test_a_second_interrupt_leaves_no_child_behind(tmp_path, monkeypatch):
    def interrupted(_child, _seconds):
        raise KeyboardInterrupt

    fan = FanOut(tmp_path, lambda name, event: None, module=ODD)
    fan.run([Job("a", "add", {"one": 1, "two": 1})], keep=True)
    child = fan.warm("a")
    child.submit(Job("a", "persist", {}))  # deaf to the end of its jobs, as code outside of Python is
    monkeypatch.setattr(Child, "ended_within", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fan.__exit__()
    child.process.join(20)
    assert child.process.exitcode == -signal.SIGKILL


def test_what_children_are_forked_from_never_hears_an_interrupt(tmp_path):
    """It had printed a traceback of its imports where somebody ended a sync in its first seconds."""
    # still importing when it is looked at, which is at once: nobody waits for it
    (tmp_path / "slow_import.py").write_text("import time; time.sleep(5)")
    code = textwrap.dedent(f"""
        import pathlib, sys
        from multiprocessing import forkserver
        from sis_pipeline.cli import fanout
        sys.path.append({str(tmp_path)!r})
        fanout.READY = ("slow_import",)
        fanout.FanOut(pathlib.Path({str(tmp_path)!r}), print)
        pid = forkserver._forkserver._forkserver_pid
        print(pathlib.Path(f"/proc/{{pid}}/status").read_text().split("SigIgn:")[1].split()[0])
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout, 16) >> (signal.SIGINT - 1) & 1


def test_children_end_when_the_parent_is_killed(tmp_path):
    mark = tmp_path / "closed"
    parent = textwrap.dedent(f"""
        import os, pathlib, signal
        from sis_pipeline.cli.fanout import READY, FanOut, Job
        def at_page(name, event):
            if event["event"] == "page":
                print(fan.warm("a").process.pid, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        with FanOut(pathlib.Path({str(tmp_path)!r}), at_page, module={ODD!r}) as fan:
            fan.run([Job("a", "hang", {{"mark": {str(mark)!r}}})])
    """)
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(20)
    assert mark.read_text() == "closed"


def test_what_children_are_forked_with_has_no_polars():
    imports = "; ".join(f"import {name}" for name in READY if name != "__main__")
    code = f"{imports}; import sys; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
