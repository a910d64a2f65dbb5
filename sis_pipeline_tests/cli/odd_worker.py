"""A worker with jobs that succeed, fail, die and hang: what a FanOut must live with."""

import os
import sys
import time
from pathlib import Path

from sis_pipeline.cli import worker
from sis_pipeline.connect.errors import ConfigError


def add(report, one, two):
    sys.stdout.write("a line that must not reach the parent\n")
    report({"event": "page", "calls": 1, "rows": one})
    return {"sum": one + two, "pid": os.getpid()}


def refuse(report):
    raise ConfigError("integration x: no such school year.", advice="Choose another.")


def stumble(report):
    raise IndexError("canary-7731")


def die(report, how):
    os.kill(os.getpid(), how)
    time.sleep(30)


def hang(report, mark):
    try:
        report({"event": "page", "calls": 1, "rows": 0})
        time.sleep(60)
    except KeyboardInterrupt:
        Path(mark).write_text("closed")
        raise


def persist(_report):
    while True:
        try:
            time.sleep(60)  # nobody waits for it: who asked for this job kills it
        except KeyboardInterrupt:
            continue


worker.JOBS.update(add=add, refuse=refuse, stumble=stumble, die=die, hang=hang, persist=persist)
