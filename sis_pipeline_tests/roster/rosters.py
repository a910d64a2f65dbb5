"""Small rosters for tests: literal records of invented people, and a reference publication that works in memory."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import polars as pl
from hypothesis import HealthCheck, Phase, settings

from sis_pipeline.roster.contract import LAST_SAID, PUBLICATION, DistrictInputs, IntegrationInput, MergedRoster
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.frames import empty, polars_schema
from sis_pipeline.roster.frames import example_frame as typed
from sis_pipeline.roster.model import ENTITIES, MERGED
from sis_pipeline.roster.names import FORMER_NAMES, no_former_names
from sis_pipeline.roster.presence import RECORD

YEAR = "2025-2026"
DAY_1 = date(2025, 10, 1)
DAY_2 = date(2025, 10, 2)
SNAPSHOT = "00000000-0000-4000-8000-000000000001"
OPERATION = "00000000-0000-4000-8000-0000000000aa"
NAMES = ("first_name", "last_name")


def laws(examples: int) -> settings:
    """How laws are tested: the same examples on every run, however slow the machine, none kept on disk or shrunk."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.too_slow],
    )


DEFAULTS: dict[str, dict[str, Any]] = {
    "schools": {"name": "Pine", "kind": "school"},
    "academic_sessions": {"title": "Year", "kind": "school_year", "school_year": YEAR},
    "students": {"first_name": "Ada", "last_name": "Moss", "birth_date": "2012-03-04"},
    "staff": {"first_name": "Tia", "last_name": "Teach", "role": "teacher"},
    "courses": {"title": "Math"},
    "sections": {"kind": "scheduled"},
    "enrollments": {
        "school_year": YEAR,
        "entry_date": "2025-08-18",
        "entry_date_source": "sis",
        "enrollment_type": "primary",
        "status": "active",
    },
    "section_enrollments": {"role": "student"},
}


def records(entity: str, *rows: Mapping[str, Any]) -> pl.DataFrame:
    """Records of one entity; a row names its `integration` (default `a`) and what differs from the defaults."""
    filled = [{"record_status": "active", **DEFAULTS.get(entity, {}), **row} for row in rows]
    names = [row.pop("integration", "a") for row in filled]
    extra = [row.pop("school_id", None) for row in filled]
    frame = typed(ENTITIES[entity], filled).with_columns(
        pl.Series("integration", names, dtype=pl.String), snapshot_id=pl.lit(SNAPSHOT)
    )
    return frame.with_columns(pl.Series("school_id", extra, dtype=pl.String)) if any(extra) else frame


def to_merge(*rows: Mapping[str, Any]) -> pl.DataFrame:
    """Student records as `merge_students` takes them: of student `s`, numbered, and with nothing `cleared`, unless a row
    says otherwise."""
    own = ("student_id", "cleared")
    said = [{"sis_id": str(n), **{k: v for k, v in row.items() if k not in own}} for n, row in enumerate(rows)]
    lists = [json.dumps(row["cleared"]) if "cleared" in row else None for row in rows]
    frame = records("students", *said).with_columns(
        pl.Series("student_id", [row.get("student_id", "s") for row in rows], dtype=pl.String),
        pl.Series("cleared", lists, dtype=pl.String),
    )
    return frame if "school_id" in frame.columns else frame.with_columns(school_id=pl.lit(None, pl.String))


def published(table: str, *rows: Mapping[str, Any]) -> pl.DataFrame:
    return typed(MERGED[table], rows)


class Roster:
    """A district's deliveries, described school by school: `add` students, then `inputs`."""

    def __init__(self, year: str = YEAR) -> None:
        self.year = year
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def add(self, entity: str, **row: Any) -> Roster:
        self.rows.setdefault(entity, []).append(row)
        return self

    def school(self, number: str, integration: str = "a") -> Roster:
        return self.add("schools", sis_id=f"school-{number}", school_number=number, integration=integration)

    def student(
        self,
        sis_id: str,
        *,
        integration: str = "a",
        school: str | None = "1",
        stay: Mapping[str, Any] | None = None,
        **row: Any,
    ) -> Roster:
        """A student with one enrollment at the school; `stay` overrides its columns."""
        place = f"school-{school}" if school else None
        self.add("students", sis_id=sis_id, integration=integration, school_sis_id=place, **row)
        if place:
            self.stay(sis_id, school or "", integration=integration, **(stay or {}))
        return self

    def stay(self, student: str, school: str, *, integration: str = "a", **row: Any) -> Roster:
        sis_id = row.pop("sis_id", f"e-{student}-{school}")
        return self.add(
            "enrollments",
            sis_id=sis_id,
            student_sis_id=student,
            school_sis_id=f"school-{school}",
            integration=integration,
            **{"school_year": self.year, **row},
        )

    def section(self, sis_id: str, *students: str, integration: str = "a", school: str = "1", **row: Any) -> Roster:
        self.add("sections", sis_id=sis_id, school_sis_id=f"school-{school}", integration=integration, **row)
        for student in students:
            self.add(
                "section_enrollments",
                sis_id=f"{sis_id}-{student}",
                section_sis_id=sis_id,
                person_sis_id=student,
                begin_date="2025-08-18",
                integration=integration,
            )
        return self

    def without(self, *students: str, integration: str = "a") -> Roster:
        """The roster after these students vanished from a system."""
        rest = Roster(self.year)
        gone = {(integration, student) for student in students}

        def stays(entity: str, row: Mapping[str, Any]) -> bool:
            who = {"students": "sis_id", "enrollments": "student_sis_id", "section_enrollments": "person_sis_id"}.get(
                entity
            )
            return who is None or (row.get("integration", "a"), row[who]) not in gone

        rest.rows = {entity: [row for row in rows if stays(entity, row)] for entity, rows in self.rows.items()}
        return rest

    def records(self) -> dict[str, pl.DataFrame]:
        return {entity: records(entity, *rows) for entity, rows in self.rows.items() if rows}

    def inputs(
        self,
        existing: Mapping[str, pl.DataFrame] | None = None,
        *,
        as_of: date = DAY_1,
        integrations: Mapping[str, IntegrationInput] | None = None,
        **rest: Any,
    ) -> DistrictInputs:
        found = sorted({row.get("integration", "a") for rows in self.rows.values() for row in rows} | {"a"})
        default = {key: IntegrationInput(priority=rank) for rank, key in enumerate(found)}
        return DistrictInputs(
            district="d1",
            school_year=self.year,
            as_of=as_of,
            operation_id=str(uuid.uuid5(uuid.UUID(OPERATION), as_of.isoformat())),
            integrations=integrations or default,
            records=self.records(),
            existing=of_year(existing or {}, self.year),
            said_before=said_before(existing or {}, self.year),
            **rest,
        )


def of_year(tables: Mapping[str, pl.DataFrame], year: str) -> dict[str, pl.DataFrame]:
    return {
        name: frame.filter(pl.col("school_year") == year) if PUBLICATION[name] == "year" else frame
        for name, frame in tables.items()
    }


def said_before(tables: Mapping[str, pl.DataFrame], year: str) -> pl.DataFrame:
    """As DistrictInputs.said_before."""
    sources = tables.get("student_sources", empty(MERGED["student_sources"])).sort("school_year", descending=True)
    newest = sources.filter(pl.col("school_year") <= year).unique(RECORD, keep="first", maintain_order=True)
    return newest.filter(pl.col("school_year") < year).select(LAST_SAID)


def merged_both_ways(inputs: DistrictInputs) -> MergedRoster:
    """The incremental merge, which is the whole one in everything."""
    found, whole = merge_district(inputs), merge_district(replace(inputs, whole=True))
    for name, frame in whole.frames.items():
        assert found.frames[name].equals(frame), name
    for name in ("near_matches", "cut_chains", "recycled"):
        assert getattr(found, name).equals(getattr(whole, name)), name
    for name in ("held", "retired", "retired_staff", "settled"):
        assert getattr(found, name) == getattr(whole, name), name
    counts = {"seats_merged": None, "students_merged": None}
    assert replace(found.stats, **counts) == replace(whole.stats, whole=False, **counts)
    return found


def publish(tables: Mapping[str, pl.DataFrame], merged: MergedRoster, year: str = YEAR) -> dict[str, pl.DataFrame]:
    """What publication does, in memory: each table after the frames were applied as `PUBLICATION` says."""
    after = {}
    for name, scope in PUBLICATION.items():
        frame, table = merged.frames[name], tables.get(name, empty(MERGED[name]))
        if scope == "year":
            rest = table.filter(pl.col("school_year") != year)
        else:
            rest = table.join(frame, on=MERGED[name].key, how="anti")
        if name == "students":
            rest = rest.filter(~pl.col("student_id").is_in(list(merged.retired)))
        if name == "staff":
            rest = rest.filter(~pl.col("staff_id").is_in(list(merged.retired_staff)))
        after[name] = pl.concat([rest, frame]).sort(MERGED[name].key)
    return after


def former_names(
    before: Mapping[str, pl.DataFrame], after: Mapping[str, pl.DataFrame], known: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Names of before, as the trigger on `students` notes them, and those `known`."""
    if not before:
        return no_former_names()
    both = before["students"].join(after["students"], on="student_id", suffix="_now")
    first, last = (pl.col(name).str.to_lowercase() != pl.col(f"{name}_now").str.to_lowercase() for name in NAMES)
    noted = both.filter((first != last) & pl.col("birth_date").eq_missing(pl.col("birth_date_now")))
    return pl.concat([no_former_names() if known is None else known, noted.select(list(FORMER_NAMES))])


def merge(roster: Roster, existing: Mapping[str, pl.DataFrame] | None = None, **rest: Any) -> MergedRoster:
    merged = merge_district(roster.inputs(existing, **rest))
    for name, frame in merged.frames.items():
        assert dict(frame.schema) == polars_schema(MERGED[name]), name
        assert not frame.select(MERGED[name].key).is_duplicated().any(), name
    return merged


def events(merged: MergedRoster) -> list[tuple[str, str]]:
    return sorted(merged.changes.select("kind", "evidence").iter_rows())


def loaded(roster: Roster, **rest: Any) -> dict[str, pl.DataFrame]:
    """The tables after a first merge."""
    return publish({}, merge(roster, **rest), roster.year)


def rows(frame: pl.DataFrame, *columns: str) -> list[Any]:
    """The rows of some columns, sorted; bare values where it is one column."""
    found: Sequence[tuple[Any, ...]] = sorted(frame.select(columns).iter_rows(), key=str)
    return [row[0] for row in found] if len(columns) == 1 else list(found)
