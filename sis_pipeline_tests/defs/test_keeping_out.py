"""What a system still delivers of an erased student is set aside without a value, until a person lets it in again."""

from __future__ import annotations

import csv
import os
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest
from cryptography.fernet import Fernet
from sqlalchemy import text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.connect.keys import Keys, rotate_keys
from sis_pipeline.connect.upkeep import cleanup, token_health
from sis_pipeline.connect.vault import Vault
from sis_pipeline.defs.loading import load_roster
from sis_pipeline.defs.resources import Roster
from sis_pipeline.roster.district import merge_district
from sis_pipeline.sandbox.oneroster_csv import write_bundle
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline.store.erasure import Erasing
from sis_pipeline.store.integrations import Integration
from sis_pipeline.store.keeping_out import Remaining, lift, marks, remember, without_erased
from sis_pipeline.store.publish import publish
from sis_pipeline_tests.defs.conftest import THIS_YEAR, YEAR, Installation
from sis_pipeline_tests.truth import chain

WHY = "the family asked"


class Town:
    """One system's CSV set, read, merged and published again and again."""

    def __init__(self, installation: Installation, folder: Path) -> None:
        self.installation, self.roster = installation, installation.roster
        world = World(systems=(System("csv", "oneroster_csv", 30),), school_year=THIS_YEAR)
        self.folder = write_bundle(world.view("csv", 1), folder)
        settings = {"path": str(self.folder)}
        self.roster.integrations.add(Integration("fern-csv", "oneroster_csv", "fernhollow", settings=settings))
        self.said: list[str] = []

    def load(self) -> str:
        run_id = uuid.uuid4().hex
        chain.read(self.roster, "fern-csv", YEAR, run_id)
        return load_roster(self.roster, "fern-csv", YEAR, run_id, self.said.append).snapshot.snapshot_id

    def publish(self) -> None:
        merges = self.roster.merges
        gathered = merges.gather("fernhollow", THIS_YEAR)
        publish(self.roster.engine, merges, merges.write_merged(gathered, merge_district(gathered.inputs)))

    def erase(self, student_id: str) -> None:
        erasing = Erasing(self.roster.engine, self.roster.snapshots.files, lambda: self.roster.vault)
        erasing.erase(student_id, "ada", WHY, force=True)

    def students(self) -> int:
        return int(self.installation.scalar("select count(*) from sis.students"))

    def somebody(self) -> tuple[str, str]:
        """A student who has sections, and who is called Quillfeather from now on; the id here, and in the system."""
        [(student_id, sis_id)] = self.installation.rows(
            """select s.student_id::text, l.sis_id from sis.students s join sis.student_links l using (student_id)
               where exists (select from sis.section_enrollments e where e.person_id = s.student_id) order by 1 limit 1"""
        )
        self._rename(sis_id, "Quillfeather")
        return student_id, sis_id

    def _rename(self, sis_id: str, name: str) -> None:
        with (self.folder / "users.csv").open(newline="") as file:
            users = list(csv.DictReader(file))
        for user in users:
            if user["sourcedId"] == sis_id:
                user["familyName"] = name
        with (self.folder / "users.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(users[0]))
            writer.writeheader()
            writer.writerows(users)


@pytest.fixture
def town(installation, tmp_path) -> Town:
    return Town(installation, tmp_path / "set")


def frames_with(town: Town, word: str) -> list[str]:
    """The frames that hold a word."""
    root = Path(town.installation.settings.data_url)
    return [
        str(path.relative_to(root))
        for layer in ("roster", "quarantine", "merged")
        for path in (root / layer).rglob("*.parquet")
        if word in pd.read_parquet(path).to_string()
    ]


def set_aside(town: Town, snapshot_id: str) -> Counter[tuple[str, str, str, str | None]]:
    query = """select entity, "column", reason, sis_id from sis.quarantine where snapshot_id = :id"""
    return Counter(town.installation.rows(query, id=snapshot_id))


def test_an_erased_student_stays_away_until_it_is_lifted(town):
    """Three readings and two publications, which take its seconds."""
    first = town.load()
    town.publish()
    before, others = town.students(), set_aside(town, first)
    student_id, sis_id = town.somebody()
    town.erase(student_id)
    snapshot_id = town.load()
    town.publish()
    assert town.students() == before - 1
    assert frames_with(town, sis_id) == frames_with(town, "Quillfeather") == []
    kept_out = set_aside(town, snapshot_id) - others
    assert {line[1:] for line in kept_out} == {("*", "of a student who was erased", None)}
    assert {line[0] for line in kept_out} == {"students", "enrollments", "section_enrollments"}
    assert sum(rows for line, rows in kept_out.items() if line[0] == "students") == 1
    assert any("set aside, as of students who were erased" in line for line in town.said)
    assert town.roster.snapshots.get(snapshot_id).verdict == "complete"

    assert lift(town.roster.engine, student_id, "ada", "enrolled again") == 1
    town.load()
    assert len(frames_with(town, "Quillfeather")) == 1
    assert town.installation.scalar("select count(*) from sis.audit_log where action = 'student.lift'") == 1
    with pytest.raises(ConfigError, match="No record of a student"):
        lift(town.roster.engine, student_id, "ada", "enrolled again")


def keep_out(roster: Roster, *records: tuple[str, str]) -> None:
    with roster.engine.begin() as connection:
        remember(connection, roster.vault, str(uuid.uuid4()), records)


def _without_erased(
    roster: Roster, vault: Callable[[], Vault], key: str, frames: Mapping[str, pd.DataFrame]
) -> Remaining:
    return without_erased(vault, key, marks(roster.engine, key), frames)


def test_the_mark_says_nothing_and_its_key_is_kept_and_rotated_like_a_secret(installation):
    roster, frames = installation.roster, {"students": pd.DataFrame({"sis_id": ["77431990", "8"]})}
    keep_out(roster, ("lincoln-ps", "77431990"), ("other-ps", "77431990"))
    kept = [mark for (mark,) in installation.rows("select mark from sis.erased_records")]
    assert len(set(kept)) == 2
    assert not any("7743" in mark for mark in kept)
    age = "update sis.oauth_tokens set updated_at = updated_at - interval '2 days'"
    with roster.engine.begin() as connection:
        connection.execute(text(age))
    assert cleanup(roster.vault).deleted == {}
    with roster.engine.connect() as connection:
        [key] = [one for one in token_health(connection) if one.kind == "erasure_key"]
    assert (key.integration, key.status, key.advice) == ("*", "active", None)
    newer = Keys([Fernet.generate_key().decode(), os.environ["SIS_ENCRYPTION_KEYS"]])
    assert rotate_keys(roster.engine, newer).failed == ()
    only_newer = Vault(roster.engine, newer)
    left = _without_erased(roster, lambda: only_newer, "lincoln-ps", frames)
    assert left.frames["students"]["sis_id"].tolist() == ["8"]


def test_nothing_is_taken_in_where_the_key_is_gone(installation):
    roster = installation.roster
    keep_out(roster, ("lincoln-ps", "7"))
    with roster.engine.begin() as connection:
        connection.execute(text("delete from sis.oauth_tokens where kind = 'erasure_key'"))
    with pytest.raises(ConfigError, match="key of their marks is gone") as refused:
        _without_erased(roster, lambda: roster.vault, "lincoln-ps", {})
    assert refused.value.code == "config.erasure_key"


def test_only_rows_of_the_student_go(installation):
    roster = installation.roster
    keep_out(roster, ("lincoln-ps", "7"))
    keep_out(roster, ("lincoln-ps", "7"), ("other-ps", "8"))  # as an erasure does that is gone on with
    frames = {
        "students": pd.DataFrame({"sis_id": ["7", " 7 ", "8", None], "last_name": ["A", "B", "C", "D"]}),
        "staff": pd.DataFrame({"sis_id": ["7"], "last_name": ["E"]}),
        "enrollments": pd.DataFrame({"sis_id": ["7", "70"], "student_sis_id": ["8", "7"]}),
        "section_enrollments": pd.DataFrame(
            {"sis_id": ["1", "2", "3"], "person_sis_id": ["7", "7", "8"], "role": ["student", "teacher", "student"]}
        ),
        "schools": pd.DataFrame({"sis_id": ["7"]}),
    }
    left = _without_erased(roster, lambda: roster.vault, "lincoln-ps", frames)
    assert left.taken_out == {"students": 2, "enrollments": 1, "section_enrollments": 1}
    assert left.frames["students"]["last_name"].tolist() == ["C", "D"]
    assert left.frames["enrollments"]["sis_id"].tolist() == ["7"]
    assert left.frames["section_enrollments"]["sis_id"].tolist() == ["2", "3"]
    assert _without_erased(roster, _no_vault, "third-ps", frames).taken_out == {}


def _no_vault() -> None:
    raise AssertionError("nobody of this integration was erased")
