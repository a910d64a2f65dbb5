"""School and section enrollments of a district's year: several systems' reports of one stay made one, with one primary.
What a difference to the published state is called is decided in `changes`; whether it is believed, in `guard`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta

import polars as pl

from sis_pipeline.roster.frames import rows_in_common, without_rows
from sis_pipeline.roster.model import ENTRY_DATE_SOURCES
from sis_pipeline.roster.presence import ABSENT, CARRIED, RECORD, TOMBSTONE, Presence

SAME_STAY_DAYS = 14
TRANSFER_DAYS = 14
OPEN = ("pre_registered", "active")
CLOSED = ("no_show", "withdrawn", "transferred", "graduated")
PLACE = ["student_id", "school_id"]
STAY = [*PLACE, "entry_date"]
SEAT = ["section_id", "person_id", "role"]
_ENTRY = ["entry_date", "entry_date_source", "entry_code"]


def is_open(status: str = "status") -> pl.Expr:
    return pl.col(status).is_in(OPEN)


def combine_reports(reports: pl.DataFrame, priorities: Mapping[str, int]) -> pl.DataFrame:
    """One row per stay. `reports`: integration, sis_id, student_id, school_id and the enrollment columns.

    Reports of two systems are one stay if student and school are the same and the entry dates are at most 14 days
    apart, the nearest ones, of two as near the later; two reports of one system are one only with the same entry date,
    or if both are part of one stay that a better system told. The system with the lowest priority
    number speaks for the stay, except for the entry (date, source, code), which comes from the best entry date
    source: the SIS's own, then class begin, then session start.
    """
    order = sorted(
        reports["integration"].unique(),
        key=lambda name: (priorities.get(name, max(priorities.values(), default=0) + 1), name),
    )
    stays = reports.clear().with_columns(stay=pl.lit(None, pl.Int64))
    entries = [stays.select("stay", *_ENTRY)]
    for integration in order:
        mine = one_per_entry(reports.filter(pl.col("integration") == integration))
        near = _nearest(mine, stays)
        fresh = near.filter(pl.col("stay").is_null()).drop("stay")
        numbered = fresh.with_row_index("stay", offset=stays.height).with_columns(pl.col("stay").cast(pl.Int64))
        entries += [near.drop_nulls("stay").select("stay", *_ENTRY), numbered.select("stay", *_ENTRY)]
        stays = pl.concat([stays, numbered.select(stays.columns)])
    best = _best_entries(pl.concat(entries))
    return (
        stays.drop(_ENTRY)
        .join(best, on="stay", how="left", maintain_order="left")
        .unique(STAY, keep="first", maintain_order=True)
        .select(reports.columns)
    )


def one_per_entry(reports: pl.DataFrame) -> pl.DataFrame:
    """Of one system's reports with one entry date (two records of one student): the open one, then the longest."""
    ranked = reports.with_columns(closed=~is_open(), end=pl.col("exit_date").fill_null(date.max))
    order = ranked.sort(*STAY, "closed", "end", "sis_id", descending=[False] * 4 + [True, False])
    return order.unique(STAY, keep="first", maintain_order=True).drop("closed", "end")


def _nearest(mine: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    """Each report with the number of the stay it is part of, null for one that nobody reported yet."""
    if stays.is_empty():
        return mine.with_columns(stay=pl.lit(None, pl.Int64))
    known = stays.select("stay", *STAY).sort("entry_date", "stay")
    return mine.sort("entry_date", maintain_order=True).join_asof(
        known,
        on="entry_date",
        by=PLACE,
        strategy="nearest",
        tolerance=timedelta(days=SAME_STAY_DAYS),
        check_sortedness=False,
    )


def _best_entries(entries: pl.DataFrame) -> pl.DataFrame:
    rank = {source: position for position, source in enumerate(ENTRY_DATE_SOURCES)}
    ranked = entries.with_row_index("said").with_columns(
        rank=pl.col("entry_date_source").replace_strict(rank, default=len(rank), return_dtype=pl.Int64)
    )
    return ranked.sort("stay", "rank", "said").unique("stay", keep="first", maintain_order=True).select("stay", *_ENTRY)


def settle_statuses(stays: pl.DataFrame, closings: pl.DataFrame, as_of: date, day_after_year: date) -> pl.DataFrame:
    """The status of every stay on a day: what the SIS says, corrected by the dates.

    `closings`: school_id (null for the whole district), day_after (of the school year). A stay is judged on `as_of`,
    but never after the school's last day: leaving at the end of the year is not a withdrawal.
    An exit on the entry date (or before) is a no-show; an exit that has come is a withdrawal unless the SIS calls it a
    transfer or graduation; an entry still to come is a pre-registration.
    """
    judged = _with_day_after(stays, closings, day_after_year).with_columns(
        judged_on=pl.min_horizontal(pl.lit(as_of), pl.col("day_after") - pl.duration(days=1))
    )
    left, came = pl.col("exit_date") <= pl.col("judged_on"), pl.col("entry_date") <= pl.col("judged_on")
    status = (
        pl.when(pl.col("exit_date") <= pl.col("entry_date")).then(pl.lit("no_show"))
        .when(pl.col("status").is_in(CLOSED)).then("status")
        .when(left).then(pl.lit("withdrawn"))
        .when(~came).then(pl.lit("pre_registered"))
        .otherwise("status")
    )  # fmt: skip
    return judged.with_columns(status=status).drop("day_after", "judged_on")


def _with_day_after(stays: pl.DataFrame, closings: pl.DataFrame, day_after_year: date) -> pl.DataFrame:
    """The stays with `day_after`, the first day on which their school's year is over."""
    general = closings.filter(pl.col("school_id").is_null())["day_after"].max() or day_after_year
    per_school = closings.drop_nulls("school_id").group_by("school_id").agg(pl.col("day_after").max())
    joined = stays.join(per_school, on="school_id", how="left", maintain_order="left")
    return joined.with_columns(pl.col("day_after").fill_null(general))


def match_stays(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Which stay is which: `before` and `after` row numbers, one of them null for a stay that has no counterpart.

    The same student, school and entry date; else the same record with another date; else, in order, what is left of
    one student at one school, if the earlier one had not ended by the later one's entry (a corrected date).
    """
    old = before.select(*STAY, "exit_date", "integration", "sis_id").with_row_index("before")
    new = after.select(*STAY, "exit_date", "integration", "sis_id").with_row_index("after")
    pairs = [old.clear().select("before", after=pl.lit(None, pl.UInt32))]
    for key in (STAY, [*PLACE, "integration", "sis_id"], None):
        if old.is_empty() or new.is_empty():
            break
        if key is None:
            numbered = [
                side.sort("entry_date").with_columns(turn=pl.int_range(pl.len()).over(PLACE)) for side in (old, new)
            ]
            found = numbered[0].join(numbered[1], on=[*PLACE, "turn"], suffix="_new")
            found = found.filter(pl.col("exit_date").is_null() | (pl.col("entry_date_new") < pl.col("exit_date")))
        else:
            found = old.join(new, on=key).unique("before", keep="any").unique("after", keep="any")
        pairs.append(found.select("before", "after"))
        old = old.join(found, on="before", how="anti", maintain_order="left")
        new = new.join(found, on="after", how="anti", maintain_order="left")
    return pl.concat([*pairs, old.select("before"), new.select("after")], how="diagonal")


def reconcile(
    stays: pl.DataFrame,
    existing: pl.DataFrame,
    presence: Presence,
    vouched: pl.DataFrame,
    *,
    closings: pl.DataFrame,
    day_after_year: date,
) -> pl.DataFrame:
    """The stays reported now, and what becomes of those published before that nobody reports: with `evidence`.

    `vouched`: student_id, school_id of records that were carried over; they keep a stay that another system dropped.
    A stay that had ended stays as it was, and so does every stay once its school's year is over (`closings` as in
    `settle_statuses`): who is deleted afterwards has not left it early. An open one ends on the day of the complete snapshot that lacks it
    (evidence `absence`) or that says it is deleted (`tombstone`), without an exit code; one that had not begun by then
    was a no-show. Columns as `stays`, and `evidence`: null for what is reported or kept.
    """
    reported = stays.with_columns(evidence=pl.lit(None, pl.String))
    pairs = match_stays(existing, stays)
    missing = (
        _with_day_after(existing, closings, day_after_year)
        .with_row_index("before")
        .join(pairs.filter(pl.col("after").is_null()).select("before"), on="before", how="semi", maintain_order="left")
    )
    if missing.is_empty():
        return reported
    fated = presence.fates(missing).join(presence.days(), on="integration", how="left", maintain_order="left")
    fated = fated.join(
        vouched.unique().with_columns(vouched=pl.lit(value=True)), on=PLACE, how="left", maintain_order="left"
    )
    # a stay whose record is delivered but now tells of another place or student is no longer reported either
    gone = (
        is_open()
        & (pl.col("fate") != CARRIED)
        & (pl.col("taken_on") < pl.col("day_after"))
        & ~((pl.col("fate") == ABSENT) & pl.col("vouched").fill_null(value=False))
    )
    began = pl.col("entry_date") < pl.col("taken_on")
    exit_date = pl.when(began).then("taken_on").otherwise("entry_date")
    ended = fated.with_columns(
        evidence=pl.when(gone).then(
            pl.when(pl.col("fate") == TOMBSTONE).then(pl.lit(TOMBSTONE)).otherwise(pl.lit(ABSENT))
        ),
    ).with_columns(
        exit_date=pl.when(gone).then(exit_date).otherwise("exit_date"),
        exit_code=pl.when(~gone).then("exit_code"),
        status=pl.when(gone)
        .then(pl.when(began).then(pl.lit("withdrawn")).otherwise(pl.lit("no_show")))
        .otherwise("status"),
    )
    return pl.concat([reported, ended.select(reported.columns)])


def mark_transfers(stays: pl.DataFrame) -> pl.DataFrame:
    """A withdrawal followed, within 14 days either way, by an entry at another school of the district is a transfer."""
    left = stays.filter((pl.col("status") == "withdrawn") & pl.col("exit_date").is_not_null()).select(
        *STAY, "exit_date"
    )
    if left.is_empty():
        return stays
    entered = stays.filter(pl.col("status") != "no_show").select("student_id", other="school_id", entered="entry_date")
    onward = left.join(entered, on="student_id").filter(
        (pl.col("other") != pl.col("school_id"))
        & (pl.col("entered") > pl.col("entry_date"))
        & ((pl.col("entered") - pl.col("exit_date")).dt.total_days().abs() <= TRANSFER_DAYS)
    )
    marked = stays.join(
        onward.select(STAY).unique().with_columns(onward=pl.lit(value=True)), on=STAY, how="left", maintain_order="left"
    )
    return marked.with_columns(status=pl.when(pl.col("onward")).then(pl.lit("transferred")).otherwise("status")).drop(
        "onward"
    )


def choose_primary(stays: pl.DataFrame, priorities: Mapping[str, int]) -> pl.DataFrame:
    """Exactly one primary among a student's active stays of the year; the others are co-enrollments.

    The one that its system calls primary, of the system with the lowest priority number, then the latest entry.
    Stays that are not active keep the type their system gave them.
    """
    lowest = max(priorities.values(), default=0) + 1
    active = (
        stays.filter(pl.col("status") == "active")
        .with_columns(
            secondary=pl.col("enrollment_type") != "primary",
            priority=pl.col("integration").replace_strict(
                dict(priorities) or {"": 0}, default=lowest, return_dtype=pl.Int64
            ),
        )
        .sort(
            "student_id",
            "secondary",
            "priority",
            "integration",
            "entry_date",
            "school_id",
            descending=[False] * 4 + [True, False],
        )
        .unique("student_id", keep="first", maintain_order=True)
        .select(*STAY, home=pl.lit(value=True))
    )
    marked = stays.join(active, on=STAY, how="left", maintain_order="left")
    kind = pl.when(pl.col("home")).then(pl.lit("primary")).otherwise(pl.lit("secondary"))
    return marked.with_columns(
        enrollment_type=pl.when(pl.col("status") == "active").then(kind).otherwise("enrollment_type")
    ).drop("home")


def irregular(stays: pl.DataFrame, reports: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Students whose stays can't all be right, by integration: `overlapping` at one school, each by the stay that begins
    during another; `second_primary` where one system calls those at two schools primary, in the `reports`. That two systems
    each call their own one so is as it should be."""
    began = stays.filter(pl.col("status") != "no_show").sort(*STAY)
    lasts = pl.col("exit_date").fill_null(date.max).cast(pl.Int32).cum_max().shift().over(PLACE)
    overlapping = began.filter((pl.col("entry_date").cast(pl.Int32) < lasts).fill_null(value=False))
    active = stays.filter(pl.col("status") == "active")
    claims = reports.filter(pl.col("enrollment_type") == "primary").select(RECORD)
    schools = pl.col("school_id").n_unique().over("integration", "student_id")
    second = active.join(claims, on=RECORD, how="semi").filter(schools > 1)
    found: dict[str, dict[str, int]] = {}
    for name, rows in (("overlapping", overlapping), ("second_primary", second)):
        students = rows.group_by("integration").agg(pl.col("student_id").n_unique()).sort("integration")
        for integration, number in students.iter_rows():
            found.setdefault(integration, {})[name] = number
    return found


def homes(stays: pl.DataFrame) -> pl.DataFrame:
    """Every student's school and status in the year: the active primary stay, else the latest one."""
    order = stays.with_columns(
        rank=pl.when(pl.col("status") == "active")
        .then(0)
        .when(pl.col("status") == "pre_registered")
        .then(1)
        .otherwise(2),
        secondary=pl.col("enrollment_type") != "primary",
    ).sort("student_id", "rank", "secondary", "entry_date", "school_id", descending=[False, False, False, True, False])
    return order.unique("student_id", keep="first", maintain_order=True).select("student_id", "school_id", "status")


def combine_seats(reports: pl.DataFrame) -> pl.DataFrame:
    """One row per section, person and role: of several reports the one without an end, then the latest end, then begin."""
    several = reports.select(pl.struct(SEAT).is_duplicated()).to_series()
    if not several.any():
        return reports
    ranked = reports.filter(several).with_columns(end=pl.col("end_date").fill_null(date.max))
    order = ranked.sort(
        *SEAT, "end", "begin_date", "sis_id", descending=[False] * 3 + [True, True, False], nulls_last=True
    )
    best = order.unique(SEAT, keep="first", maintain_order=True).drop("end")
    return pl.concat([reports.filter(~several), best])


def without_settled(
    reports: pl.DataFrame, existing: pl.DataFrame, doubted: pl.Series
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The published seats that one report, and no other, repeats to the letter; the other reports; the other published
    seats. `doubted`: people none of whose seats is settled.

    A settled seat stays as it is: its report is the only one, so it neither changes nor is missing, and of equals there is
    no news. Whatever is decided about the other seats is decided without it, but for counts.
    """
    same = rows_in_common(reports, existing)
    contested = without_rows(reports, same["one"]).select(SEAT)
    settled = (
        existing[same["other"]]
        .with_columns(same)
        .filter(~pl.col("person_id").is_in(doubted.implode()))
        .join(contested, on=SEAT, how="anti", maintain_order="left")
    )
    rest = without_rows(reports, settled["one"]), without_rows(existing, settled["other"])
    return settled.drop(same.columns), *rest


def never_begins(prefix: str = "") -> pl.Expr:
    """A seat that was given up before its first day: it ends no later than it begins."""
    return (pl.col(f"{prefix}end_date") <= pl.col(f"{prefix}begin_date")).fill_null(value=False)


def reconcile_seats(seats: pl.DataFrame, existing: pl.DataFrame, presence: Presence, as_of: date) -> pl.DataFrame:
    """The seats reported now, and those published before that nobody reports, ended as in `reconcile`; with `evidence`."""
    reported = seats.with_columns(evidence=pl.lit(None, pl.String))
    missing = existing.join(seats.select(SEAT), on=SEAT, how="anti", maintain_order="left")
    if missing.is_empty():
        return reported
    fated = presence.fates(missing).join(presence.days(), on="integration", how="left", maintain_order="left")
    taking_part = pl.col("end_date").is_null() | ((pl.col("end_date") > as_of) & ~never_begins())
    gone = taking_part & (pl.col("fate") != CARRIED)
    end = pl.max_horizontal("taken_on", "begin_date")
    ended = fated.with_columns(
        evidence=pl.when(gone).then(
            pl.when(pl.col("fate") == TOMBSTONE).then(pl.lit(TOMBSTONE)).otherwise(pl.lit(ABSENT))
        ),
        end_date=pl.when(gone).then(end).otherwise("end_date"),
    )
    return pl.concat([reported, ended.select(reported.columns)])
