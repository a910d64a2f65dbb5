"""A process of its own that syncs, merges and publishes at DEBUG while its systems misbehave as asked.
`python -m sis_pipeline_tests.faults.suffering`: the faults come as JSON on stdin, what came of them goes to stdout."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import requests
from sqlalchemy import text

from sis_pipeline.defs.instance import dagster_instance
from sis_pipeline.defs.resources import Roster
from sis_pipeline.defs.runs import run_merge, run_sync
from sis_pipeline.settings import Settings


def main(asked: dict[str, Any]) -> None:
    """`asked`: sandbox (URL), school_year, faults (each a system and the sandbox's faults to set while it is read)."""
    logging.getLogger().setLevel(logging.DEBUG)  # for what others log; ours is as the environment says
    control = f"{asked['sandbox']}/_sandbox/faults"
    roster = Roster()
    with dagster_instance(Settings()) as instance:
        for suffering in asked["faults"]:
            forget(roster)
            requests.delete(control, timeout=10).raise_for_status()
            for fault in suffering["faults"]:
                requests.post(control, json=fault, timeout=10).raise_for_status()
            result = run_sync(suffering["integration"], asked["school_year"], instance=instance)
            fired = sum(one["fired"] for one in requests.get(control, timeout=10).json()["faults"])
            code = result.error.code if result.error else ""
            sys.stdout.write(json.dumps({"name": suffering["name"], "code": code, "fired": fired}) + "\n")
        requests.delete(control, timeout=10).raise_for_status()
        merged = run_merge(asked["school_year"], instance=instance)
        sys.stdout.write(
            json.dumps({"name": "merge", "code": merged.error.code if merged.error else "", "fired": 0}) + "\n"
        )


def forget(roster: Roster) -> None:
    """Every failure meets the product fresh: no open breaker, no pushed-back limit, no token, nobody in disgrace."""
    with roster.engine.begin() as connection:
        for statement in (
            "delete from sis.circuit_breakers",
            "delete from sis.rate_limits",
            "delete from sis.oauth_tokens where kind <> 'client_secret'",
            "update sis.integrations set status = 'healthy'",
        ):
            connection.execute(text(statement))


if __name__ == "__main__":
    main(json.load(sys.stdin))
