"""What the audit log covers: every person's action and every sync operation, listed here, and a whole sync that is run
by a role that can't change what was noted."""

from __future__ import annotations

import ast
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from typer.main import get_command

import sis_pipeline
from sis_pipeline.cli.main import app
from sis_pipeline.db import audit, roles
from sis_pipeline.defs.instance import dagster_instance
from sis_pipeline.defs.resources import Roster
from sis_pipeline.defs.runs import run_merge, run_sync
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline.settings import Settings
from sis_pipeline.store.holds import Holds
from sis_pipeline_tests.cli.test_basics import commands
from sis_pipeline_tests.defs.conftest import THIS_YEAR, Installation

ACTIONS = {
    "accounts.follow": "accounts came to be what the roster and its days ask for",
    "accounts.rules": "a person sets a district's rules for accounts",
    "breaker.reset": "a person has a system called again that is left alone",
    "conflict.decide": "a person chooses one of several values",
    "conflict.reopen": "a person takes that back",
    "database.grant": "a person lets a role run the pipeline, or read",
    "database.upgrade": "the schema was brought up to date",
    "export.oneroster": "a person writes a district's roster to files",
    "guard.set": "a person changes a district's thresholds",
    "enrollments.reinstate": "a person takes a withdrawal back",
    "enrollments.withdraw": "a person withdraws the enrollments of a school",
    "hold.applied": "a merge applied removals that a person had let through",
    "hold.closed": "the removals of a hold are no longer pending",
    "hold.discarded": "a person keeps what is published",
    "hold.opened": "a merge holds removals",
    "hold.released": "a person lets removals through",
    "integration.add": "a person connects a system",
    "integration.identity": "whose data a system gives is known from its first answer",
    "integration.pause": "a person stops syncing a system",
    "integration.remove": "a person forgets a system and its secrets",
    "integration.replace": "a person changes a system's settings",
    "integration.resume": "a person has a system synced again",
    "integration.status": "how a connection does has changed",
    "integration.trust": "a person says that other districts are the right ones",
    "key.first_use": "secrets are sealed with a new key from now on",
    "limit.reset": "a person has a system called at once that asked to wait",
    "link.confirm": "a person says that two records are one student",
    "link.distinct": "a person says that they are two",
    "link.split": "a person gives a record a student of its own",
    "policy.set": "a person changes whose values a district publishes",
    "retention.delete": "what was old and needed by nothing was deleted",
    "roster.publish": "a merge was published",
    "roster.superseded": "a merge came too late and was not published",
    "roster.undo": "a person put a roster back to what it was before a publication",
    "school.close": "a person declares that a school closes",
    "school.open": "a person declares that a school opens",
    "statewide.off": "a person stopped the comparison of districts",
    "statewide.on": "a person began the comparison of districts",
    "student.erase": "a person erases a student: the rows are gone",
    "student.erased": "nothing of that student is left in the files either",
    "student.lift": "a person lets an erased student's records in again",
    "student.merged": "a merge found two students to be one",
    "student.restored": "a merge gave a student back that had been merged away",
    "sync.read": "a reading came to its end, or was given up",
    "sync.request": "a person asked for a reading",
    "sync.verdict": "a reading was judged",
    "token.authorize": "a person granted access",
    "token.delete": "tokens that were over, or nobody's, were deleted",
    "token.needs_reauth": "a grant is dead",
    "token.refresh": "a token was fetched or renewed",
    "token.refresh_failed": "it could not be",
    "token.retire_key": "a person takes a key out of use",
    "token.revoke": "a token was given back",
    "token.rotate_key": "secrets were sealed anew with the newest key",
    "token.set_secret": "a person stored a client secret",
}
"""Every action, and what it means."""

LOOKS = {
    "accounts list", "accounts rules check", "accounts rules show", "accounts show", "audit show", "audit verify", "changes list", "conflicts list", "db psql", "db url", "disclosure", "doctor", "enrollments list", "enrollments withdrawals", "guard show",
    "holds list", "holds show", "integration list", "integration show", "links review", "links show", "operations list",
    "operations show", "policy check", "policy show", "providers", "students show", "tokens status", "transfers list", "version",
}  # fmt: skip
"""Commands that change nothing of the installation."""
OUTSIDE = {"db stop", "sandbox day", "sandbox serve", "up"}
"""Commands that start or stop processes, or work on the sandbox only."""
CHANGES = {
    "accounts rules set": {"accounts.rules"},
    "backfill": {"sync.request", "sync.read", "sync.verdict", "roster.publish"},
    "conflicts decide": {"conflict.decide"},
    "conflicts reopen": {"conflict.reopen"},
    "db grant": {"database.grant"},
    "db upgrade": {"database.upgrade"},
    "demo": {"integration.add", "token.set_secret", "sync.read", "roster.publish"},
    "enrollments reinstate": {"enrollments.reinstate"},
    "enrollments withdraw": {"enrollments.withdraw"},
    "erase": {"student.erase", "student.erased", "student.lift"},
    "export oneroster": {"export.oneroster"},
    "guard reset": {"guard.set"},
    "guard set": {"guard.set"},
    "health reset-breaker": {"breaker.reset"},
    "health reset-limit": {"limit.reset"},
    "holds discard": {"hold.discarded"},
    "holds release": {"hold.released"},
    "integration add": {"integration.add", "integration.replace", "token.set_secret"},
    "integration pause": {"integration.pause"},
    "integration remove": {"integration.remove"},
    "integration resume": {"integration.resume"},
    "integration test": {"integration.status"},
    "integration trust": {"integration.trust"},
    "keys create": {"key.first_use"},
    "links confirm": {"link.confirm"},
    "links distinct": {"link.distinct"},
    "links split": {"link.split"},
    "maintenance": {"sync.read", "token.delete", "retention.delete"},
    "oauth authorize": {"token.authorize"},
    "policy set": {"policy.set"},
    "school close": {"school.close"},
    "school open": {"school.open"},
    "sync": {"sync.request", "sync.read", "sync.verdict", "roster.publish"},
    "tokens cleanup": {"token.delete"},
    "tokens refresh": {"token.refresh"},
    "tokens retire-key": {"token.retire_key"},
    "tokens revoke": {"token.revoke"},
    "tokens rotate-keys": {"token.rotate_key"},
    "transfers off": {"statewide.off"},
    "transfers on": {"statewide.on"},
    "undo": {"roster.undo", "hold.opened", "hold.closed", "hold.applied", "student.merged", "student.restored"},
}
"""Commands that change something, and how that is noted."""

WRITERS = {"append", "append_all", "Entry", "_audit", "_keep_identity", "_mark"}


def written_actions() -> set[str]:
    """The actions that the code gives to whatever appends to the audit log; `{}` where a part is computed."""
    found = set()
    for module in Path(sis_pipeline.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and (getattr(node.func, "attr", "") or getattr(node.func, "id", "")) in WRITERS
            ):
                found |= {words for argument in node.args for words in _texts(argument)}
    return {words for words in found if re.fullmatch(r"[a-z]+\.[a-z_{}]+", words)}


def _texts(argument: ast.expr) -> Iterator[str]:
    for node in ast.walk(argument):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_actions_are_those_of_the_table():
    computed = {
        "hold.{}": {"hold.released", "hold.discarded"},  # what Holds.release and Holds.discard write
        "school.{}": {"school.close", "school.open"},
    }
    written = set().union(*(computed.get(action, {action}) for action in written_actions()))
    assert written == set(ACTIONS)


def test_every_command_that_changes_something_is_noted():
    known = {" ".join(path) for path, _ in commands(get_command(app))}
    assert known <= LOOKS | OUTSIDE | set(CHANGES), "say in CHANGES how what a new command does is noted, or in LOOKS"
    assert set().union(*CHANGES.values()) <= set(ACTIONS)


@pytest.fixture(scope="module")
def template(_template: str) -> str:
    """A database without Dagster's storage: the pipeline's role makes it."""
    return _template


@pytest.fixture
def role(installation: Installation) -> Iterator[str]:
    name = f"pipeline_{uuid.uuid4().hex[:8]}"
    with installation.engine.begin() as connection:
        connection.execute(text(f"create role {name} login"))
    yield name
    with installation.engine.begin() as connection:
        connection.execute(text(f"drop owned by {name} cascade"))
        connection.execute(text(f"drop role {name}"))


def test_a_whole_sync_by_the_pipelines_role_is_noted_step_by_step(installation: Installation, database_url: URL, role):
    with installation.engine.begin() as connection:
        roles.grant(connection, role)
    os.environ["SIS_DATABASE_URL"] = database_url.set(username=role).render_as_string(hide_password=False)
    here = Installation(Settings(), Roster(), installation.engine)
    world = World(systems=(System("ps", "powerschool", 20),), school_year=THIS_YEAR)
    with SandboxServer(world, enforce_limits=False) as server:
        here.connect(server.system("ps"), "fern-ps")
        with dagster_instance(here.settings) as instance:
            read = run_sync("fern-ps", THIS_YEAR, instance=instance)
            merged = run_merge(THIS_YEAR, instance=instance)
    here.roster.close()
    assert (read.error, merged.error) == (None, None)
    assert here.rows("select distinct tableowner from pg_tables where schemaname = 'dagster'") == [(role,)]
    assert here.scalar("select count(*) from sis.students") > 0
    with audit.standing_still(installation.engine) as connection:
        entries = audit.read(connection)
        chains = list(audit.verify(connection))
    assert [chain.broken for chain in chains] == [None] * len(chains)
    actions = [it["action"] for it in reversed(entries)]
    once = list(dict.fromkeys(actions))
    expected = ["integration.add", "key.first_use", "token.set_secret", "token.refresh", "sync.read", "sync.verdict"]
    assert [action for action in once if action in {*expected, "roster.publish"}] == [*expected, "roster.publish"]
    assert set(actions) <= set(ACTIONS)
    told = {it["action"]: it for it in entries}
    assert {told[action]["district"] for action in expected if action != "key.first_use"} == {"fernhollow"}
    assert told["key.first_use"]["district"] == audit.EVERYWHERE
    assert told["sync.verdict"]["details"]["verdict"] == "complete"
    assert told["sync.read"]["details"]["completeness"] == "complete"
    assert told["sync.read"]["details"]["api_calls"] == read.api_calls
    assert Holds(installation.engine).list() == []
