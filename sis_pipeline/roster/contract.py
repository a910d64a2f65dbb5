"""What the merge of a district's school year is given, and what it gives.
How it comes to that is read in `district`, how its frames become rows in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

import polars as pl

from sis_pipeline.roster.clearing import CLEARABLE_COLUMNS, CLEARED, EMPTIED
from sis_pipeline.roster.decisions import no_decisions
from sis_pipeline.roster.frames import empty
from sis_pipeline.roster.freeze import CALENDAR
from sis_pipeline.roster.guard import Hold, Rulings
from sis_pipeline.roster.identity import SAID
from sis_pipeline.roster.merge import EDITS, Decided
from sis_pipeline.roster.model import MERGED
from sis_pipeline.roster.names import no_former_names
from sis_pipeline.roster.policies import Policies
from sis_pipeline.roster.thresholds import Thresholds
from sis_pipeline.roster.withdrawals import WITHDRAWALS

Completeness = Literal["complete", "partial", "delta"]
PublicationScope = Literal["year", "upsert", "append"]


PUBLICATION: dict[str, PublicationScope] = {
    "schools": "upsert",
    "academic_sessions": "year",
    "courses": "year",
    "staff": "upsert",
    "staff_links": "upsert",
    "sections": "year",
    "students": "upsert",
    "student_years": "year",
    "student_links": "upsert",
    "student_sources": "year",
    "conflicts": "year",
    "enrollments": "year",
    "section_enrollments": "year",
    "enrollment_changes": "append",
}
"""How the frames of `MergedRoster` become table rows.

`year`: the frame is the whole target state of (district, school_year): rows of that scope that are not in the frame
are deleted. `upsert`: rows of the frame are inserted or updated by key, other rows of the district stay (an earlier
year's person, a school that closed, a link that went inactive); `students` and `staff` rows named by
`MergedRoster.retired` and `.retired_staff` are deleted. `append`: rows whose `change_id` is not there yet are added.
"""


LAST_SAID = list(dict.fromkeys([*SAID, *CLEARABLE_COLUMNS, EMPTIED, CLEARED]))
"""What a school year takes over from what a record said in the one before."""


@dataclass(frozen=True, slots=True)
class IntegrationInput:
    """One integration's part in a merge.

    `priority`: lower wins. `completeness`: the verdict of its snapshot; only `complete` may imply an absence.
    `taken_on`: the snapshot's day, the effective date of absences; `DistrictInputs.as_of` where unset.
    """

    priority: int = 100
    completeness: Completeness = "complete"
    taken_on: date | None = None


@dataclass(frozen=True)
class Memory:
    """What a merge remembers for the next one (see `touched.remember`).

    `said`: integration, sis_id of a student's record and, as `said`, a hash of what it, its enrollments and section
    enrollments said; null where the student was not at rest. `context`: a hash of what matters to every student. `as_of`: the day on which it was judged.
    """

    said: pl.DataFrame
    context: str
    as_of: date


@dataclass(frozen=True)
class DistrictInputs:
    """Everything a merge of one district and school year depends on.

    `records`: validated frames by entity, all integrations below each other, the model's columns plus `integration`
    and `snapshot_id` (text). An integration that is in `integrations` but has no rows delivered nothing; one that is
    not in `integrations` is left as it was published. `quarantined`: by entity, `integration` and `sis_id` of rows
    that were delivered but rejected: they are present, so they are never taken for absent.
    `existing`: published rows by MERGED table name. `students`, `student_links`, `staff`, `staff_links` and `schools`
    of the whole district (links may carry a `first_seen` timestamp beside the model's columns), all other tables of
    the school year only; a table that is left out is empty.
    `as_of`: the day the roster is judged on. `decisions`: what people decided about who is who among
    the students, as `decisions.DECISIONS`; `staff_decisions`: among the staff. `aliases`: ids that merges of any school year retired -> the student they are now; the
    published rows of this year may still name them. `former_names`: what the published students were called before, as
    names.FORMER_NAMES. `edits`: what people edited in `students` and is not settled, as
    `merge.EDITS`. `decided`: what they chose where values conflict. `rulings`: what they decided about removals and schools. `calendar`: the sessions of whole
    school years that are published for other years, as freeze.CALENDAR. `withdrawals`: the enrollments of this year
    that people withdrew, as withdrawals.WITHDRAWALS. `said_before`: what linked records without a row in this school year
    last said of who they are, had, and had cleared, as LAST_SAID. `memory`: of the merge that is published, where nobody
    wrote to its tables beside the pipeline; without one everybody is merged anew. `whole`: merge what did not change anew
    as well; the result is the same.
    """

    district: str
    school_year: str
    as_of: date
    operation_id: str
    integrations: Mapping[str, IntegrationInput]
    records: Mapping[str, pl.DataFrame]
    existing: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    quarantined: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    policies: Policies = field(default_factory=Policies)
    thresholds: Thresholds = field(default_factory=Thresholds)
    decisions: pl.DataFrame = field(default_factory=no_decisions)
    staff_decisions: pl.DataFrame = field(default_factory=no_decisions)
    aliases: Mapping[str, str] = field(default_factory=dict)
    former_names: pl.DataFrame = field(default_factory=no_former_names)
    edits: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=EDITS))
    decided: tuple[Decided, ...] = ()
    rulings: Rulings = field(default_factory=Rulings)
    calendar: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CALENDAR))
    withdrawals: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=WITHDRAWALS))
    said_before: pl.DataFrame = field(default_factory=lambda: empty(MERGED["student_sources"]).select(LAST_SAID))
    memory: Memory | None = None
    whole: bool = False

    @property
    def released(self) -> frozenset[str]:
        """Fingerprints of the holds that a person released."""
        return frozenset(ruling.fingerprint for ruling in self.rulings.released)


@dataclass(frozen=True, slots=True)
class MergeStats:
    """Numbers for people and plots. `matched`: students with records in two or more integrations this year.

    `other_year_rows`: enrollments, and sections with who sits in them, that were left out as another school year's.
    `due`: the ISO day from which on the same inputs are to be merged again, because a date in them has come; None where
    no day changes anything. `whole`: as DistrictInputs.whole.
    """

    students: int
    matched: int
    near_matches: int
    conflicts: int
    enrollments: int
    section_enrollments: int
    changes: Mapping[str, int]
    held: int
    recycled: int
    other_year_rows: int
    integrations: Mapping[str, Mapping[str, int]]
    """By integration: `records`, `carried` (kept from before), `absent`, `tombstones`, `students`."""
    due: str | None = None
    whole: bool = True
    unsupplied: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """As Clearings.unsupplied; nobody's value is taken for cleared."""
    undecided: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By integration: records that wait for a person's word because the id seems to be another one's (`recycled`), and
    pairs that two different state ids, or a person, keep apart although they would be joined (`cut_chains`)."""
    irregular: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """As `enrollments.irregular`."""
    students_merged: int | None = None
    """Students that were merged anew; None in a merge of an earlier version, which merged all."""
    seats_merged: int | None = None
    """Section enrollments that were merged: of students that were, and not settled by the one report that says what is
    published; None in a merge of an earlier version, which merged all."""


@dataclass(frozen=True)
class MergedRoster:
    """What the merge decided.

    `frames`: by MERGED table name, exactly the model's columns; how each is published says `PUBLICATION`.
    `changes` is `frames["enrollment_changes"]`. `held`: removals that wait for a person; the frames hold the previous
    state for them. `near_matches`: integration, sis_id, other_integration, other_sis_id, student_id,
    other_student_id, rule, evidence, score, entity: `student`, or `staff`, of whom the ids are theirs. `cut_chains`: integration, sis_id, other_integration, other_sis_id, rule.
    `recycled`: the student and staff records, with `entity`, that are set aside: their id seems to be given to another one.
    Where a person is to say so there is a near match of the rule `recycled_id`: student_id is who the record would be.
    `retired`: student_id -> the student_id it was merged into (all its links are in the frames, pointing to the
    survivor); other school years that name a retired student follow at their next merge, which is due then (see
    `DistrictInputs.aliases`). `retired_staff`: the same for staff. `settled`: the edits of `students` that the systems
    agree with by now. `memory`: for the next merge; None where the frames are no merge's. `touched`: ids of the
    students that were merged anew, all others' rows are as they were; None where everybody was.
    """

    frames: Mapping[str, pl.DataFrame]
    held: tuple[Hold, ...]
    near_matches: pl.DataFrame
    cut_chains: pl.DataFrame
    recycled: pl.DataFrame
    retired: Mapping[str, str]
    retired_staff: Mapping[str, str]
    stats: MergeStats
    settled: tuple[int, ...] = ()
    memory: Memory | None = None
    touched: pl.Series | None = None

    @property
    def changes(self) -> pl.DataFrame:
        return self.frames["enrollment_changes"]


def is_latest_year(inputs: DistrictInputs) -> bool:
    """Whether no later year than this one was merged; what has no year of its own belongs to the latest."""
    students = inputs.existing.get("students")
    latest = None if students is None else students["latest_school_year"].max()
    return latest is None or str(latest) <= inputs.school_year
