"""Many processes find the same token ended at the same moment, time and again: one token call for all of them."""

from __future__ import annotations

from statistics import median

from sqlalchemy import Engine

from sis_pipeline_tests.faults.consents import MODES, connector, systems
from sis_pipeline_tests.faults.racers import Lap, racing
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    7,
    "32 processes see the same token end at once, 20 times, at servers that keep, replace, or replace and guard the "
    "refresh token; by the clock and by a refusal in turn",
    "one token call per expiry, no invalid_grant, no family revoked, and every process reads on",
    1_920,
    "processes x expiries x modes",
)

SLOW = 0.2
"""Seconds a token call takes: as at a real server, long enough for all to want the same."""


def test_refresh_race(database: Engine, row: Recorder, count: Count) -> None:
    processes, laps = count(full=32, part=8), count(full=20, part=3)
    with systems() as server:
        connect = connector(server, database)
        racers = [connect(mode) for mode in MODES]
        slow = server.faults.add("slow", path="/token", times=None, seconds=SLOW)

        def end(job: int, lap: int) -> None:
            racers[job].handle.expire_tokens()
            if lap % 2:
                racers[job].end_by_clock()

        ran = racing(processes, [it.work() for it in racers], laps, end)
        for job, it in enumerate(racers):
            assert it.counted("token_calls") == laps
            assert [it.counted(name) for name in ("invalid_grant", "reuse_detected", "families_revoked")] == [0, 0, 0]
            assert it.living == 1
            assert it.counted("refused") >= (laps + 1) // 2, "every other token was turned down by the server"
            for lap in range(laps):
                assert {one[job][lap][2] for one in ran} == {lap + 2}, "all went on with the one new token"
            row.happened(it.counted("token_calls"))
        assert slow.fired == laps * len(MODES)
    wanted = [_at_once([one[job][lap] for one in ran]) for job in range(len(MODES)) for lap in range(laps)]
    assert min(wanted) >= 2, "in every race several wanted the same token"
    row.note(f"while the one token call was under way, {median(wanted):.0f} of {processes} processes waited (median)")
    row.ran(processes * laps * len(MODES))


def _at_once(laps: list[Lap]) -> int:
    """How many had started before the first had its answer."""
    first = min(answered for _, answered, _ in laps)
    return sum(started < first for started, _, _ in laps)
