"""The ledger: what the difference between two states of a district's year is called, event by event.
Which state holds is decided before, in `enrollments` and `guard`; nothing here changes one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import date

import polars as pl

from sis_pipeline.roster.enrollments import OPEN, SEAT, TRANSFER_DAYS, match_stays, never_begins
from sis_pipeline.roster.frames import fit
from sis_pipeline.roster.ids import derived_ids
from sis_pipeline.roster.model import ENROLLMENT_CHANGES
from sis_pipeline.roster.school_year import SchoolYear

_SHOWN = ["school_id", "entry_date", "entry_code", "exit_date", "exit_code", "grade_level", "enrollment_type", "status"]
CHANGE_OF_EXIT = {
    "graduated": "graduate",
    "no_show": "no_show",
    "transferred": "withdraw",
    "withdrawn": "withdraw",
}
"""What the end of a stay is called by the status it leads to; a transfer is one where the other half is found."""
OTHER_STAY = "other_stay"
"""Where an event of two stays shows the second: the one entered in what held before, the one left in what holds now."""
CONTINUED_DAYS = 1
"""Between the exit and the entry of a stay at the same school that goes on in another row."""
UNDO = "undo"
"""How the evidence of an event begins that takes another one back; the undone operation's id follows."""
_BACK = {
    "section_add": "section_drop",
    "section_drop": "section_add",
    "transfer": "transfer",
    "amend": "amend",
    "grade_change": "grade_change",
}
_AMENDED = ["entry_date", "exit_date", "entry_code", "exit_code"]
_EVENT = [
    "student_id",
    "kind",
    "effective_date",
    "school_id",
    "section_id",
    "before",
    "after",
    "evidence",
    "integration",
]


_NO_EVENTS = pl.DataFrame(schema={**dict.fromkeys(_EVENT, pl.String), "effective_date": pl.Date})
_NO_ROWS = pl.DataFrame(schema={"after_row": pl.UInt32})


@dataclass(frozen=True)
class State:
    """One state of (district, school year). Frames have the model's columns; `enrollments` and `section_enrollments`
    of the later state also have `evidence` (absence, tombstone, or null). `sections` tell where a seat is."""

    enrollments: pl.DataFrame
    section_enrollments: pl.DataFrame
    student_years: pl.DataFrame
    sections: pl.DataFrame


@dataclass(frozen=True)
class About:
    """What every event of a merge carries, and `first_loads`: integrations that deliver this year for the first time."""

    district: str
    school_year: str
    as_of: date
    operation_id: str
    first_loads: Collection[str] = ()


def detect_changes(before: State, after: State, about: About) -> pl.DataFrame:
    """The ledger events between two states, as ENROLLMENT_CHANGES; none between equal states.

    A first load sets the baseline: one `enroll` per stay with evidence `first_load`, and no section events. A
    pre-registration that becomes active because its day came, and a change of the primary school, are no events of
    their own: the `enroll` event carries the day.
    """
    events = [
        _stay_events(before.enrollments, after.enrollments, about),
        _grade_events(before.student_years, after.student_years, about),
        _seat_events(before, after, about),
    ]
    found = pl.concat([part.select(_EVENT) for part in events], how="vertical_relaxed")
    named = found.with_columns(
        district=pl.lit(about.district), school_year=pl.lit(about.school_year), operation_id=pl.lit(about.operation_id)
    )
    ids = derived_ids(
        found.select(
            "student_id", "kind", pl.coalesce("section_id", "school_id"), pl.lit(about.school_year),
            pl.col("effective_date").cast(pl.String), "before", "after",
            # the same content may be news twice, also on one day: dropped, taken again, dropped again; or undone
            detected=pl.lit(about.operation_id),
        ).iter_rows(),
        "change",
        about.district,
    )  # fmt: skip
    return fit(named.with_columns(pl.Series("change_id", ids, dtype=pl.String)), ENROLLMENT_CHANGES).sort(
        "student_id", "effective_date", "kind", "change_id"
    )


def compensations(events: pl.DataFrame, undone: str, operation_id: str) -> pl.DataFrame:
    """What takes the ledger events of an undone operation back, one for one: the same day and place, before and after
    exchanged. An enrollment that was never there is withdrawn, with nothing after it."""
    turned = events.with_columns(before="after", after="before")
    back = turned.with_columns(
        kind=_kind_back(),
        school_id=pl.when(pl.col("kind") == "transfer")
        .then(pl.col("after").str.json_path_match("$.school_id"))
        .otherwise("school_id"),
        evidence=pl.lit(f"{UNDO}:{undone}"),
        operation_id=pl.lit(operation_id),
    )
    ids = derived_ids(events.select("change_id").iter_rows(), "change", UNDO, operation_id)
    return fit(back.with_columns(pl.Series("change_id", ids, dtype=pl.String)), ENROLLMENT_CHANGES).sort(
        "student_id", "effective_date", "kind", "change_id"
    )


def _kind_back() -> pl.Expr:
    """What an event is called of which before and after were exchanged."""
    was, now = (pl.col(name).str.json_path_match("$.status") for name in ("before", "after"))
    was_open, is_open = (status.is_in(OPEN).fill_null(value=False) for status in (was, now))
    of_stay = (
        pl.when(was_open == is_open)
        .then(pl.lit("amend"))
        .when(was_open)
        .then(now.replace_strict(CHANGE_OF_EXIT, default="withdraw"))
        .when(pl.col("before").is_null())
        .then(pl.lit("enroll"))
        .otherwise(pl.lit("re_enter"))
    )
    return pl.coalesce(pl.col("kind").replace_strict(_BACK, default=None), of_stay)


def _shown(prefix: str = "") -> pl.Expr:
    """`_stay` as JSON; no stay is null, where the encoding of none would be text."""
    return pl.when(pl.col(f"{prefix}entry_date").is_not_null()).then(_stay(prefix).struct.json_encode())


def _stay(prefix: str = "") -> pl.Expr:
    """What an event shows of a stay; null where there is no stay."""
    fields = [pl.col(f"{prefix}{name}").cast(pl.String).alias(name) for name in _SHOWN]
    return pl.when(pl.col(f"{prefix}entry_date").is_not_null()).then(pl.struct(fields))


def _with_other(stay: str, other: str) -> pl.Expr:
    """A stay of a transfer as JSON, with what its other stay was, or is, at the same time."""
    fields = [pl.col(stay).struct.field(name) for name in _SHOWN]
    return pl.struct(*fields, pl.col(other).alias(OTHER_STAY)).struct.json_encode()


def _stay_events(before: pl.DataFrame, after: pl.DataFrame, about: About) -> pl.DataFrame:
    columns = ["student_id", *_SHOWN, "integration"]
    old = before.select(columns).with_row_index("before_row")
    new = after.select(*columns, "evidence").with_row_index("after_row")
    pairs = match_stays(before, after).rename({"before": "before_row", "after": "after_row"})
    old = old.rename({name: f"was_{name}" for name in columns})
    stays = pairs.join(old, on="before_row", how="left").join(new, on="after_row", how="left").drop_nulls("after_row")
    stays = stays.with_columns(is_open=pl.col("status").is_in(OPEN), was_open=pl.col("was_status").is_in(OPEN))

    fresh = stays.filter(pl.col("was_entry_date").is_null())
    is_first = pl.col("integration").is_in(list(about.first_loads))
    arrivals, first = fresh.filter(~is_first), fresh.filter(is_first)
    entries = _with_kind(arrivals.filter(pl.col("status") != "no_show"), stays)
    exits = stays.filter(~pl.col("is_open") & (pl.col("was_open") | (pl.col("was_entry_date").is_null() & ~is_first)))
    exits = exits.with_columns(kind=_exit_kind())
    reopened = stays.filter(pl.col("is_open") & ~pl.col("was_open")).with_columns(seen=_day_of_return(about.as_of))
    transfers, used_entries, used_exits = _pair_transfers(entries, exits, reopened, stays)
    # a stay that is new and already over may be both a used entry and a separate exit
    entries, reopened = (
        it.join(used_entries, on="after_row", how="anti", maintain_order="left") for it in (entries, reopened)
    )
    exits = exits.join(used_exits, on="after_row", how="anti", maintain_order="left")
    continued, used_entries, used_exits = _pair_continued(entries, exits)
    entries = entries.join(used_entries, on="after_row", how="anti", maintain_order="left")
    exits = exits.join(used_exits, on="after_row", how="anti", maintain_order="left")
    amended = stays.filter((pl.col("is_open") == pl.col("was_open")) & _differs())
    return pl.concat(
        [
            _events(first.with_columns(kind=pl.lit("enroll"), evidence=pl.lit("first_load")), "entry_date"),
            _events(entries.with_columns(evidence=pl.lit("new_record")), "entry_date"),
            _events(
                exits.with_columns(evidence=pl.col("evidence").fill_null("explicit_exit")), "exit_date", about.as_of
            ),
            transfers,
            continued,
            _events(reopened.with_columns(kind=pl.lit("re_enter"), evidence=pl.lit("field_change")), "seen"),
            _events(
                amended.with_columns(kind=pl.lit("amend"), evidence=pl.lit("field_change"), seen=_amended_day()),
                "seen",
                about.as_of,
            ),
        ]
    )


def _with_kind(entries: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    """`re_enter` where the student has been at the school before in the year, and left it last on `since`; else `enroll`."""
    been = stays.filter(~pl.col("is_open")).select("student_id", "school_id", left="exit_date", came="entry_date")
    since = (
        entries.select("after_row", "student_id", "school_id", "entry_date")
        .join(been, on=["student_id", "school_id"])
        .filter((pl.col("came") < pl.col("entry_date")) & (pl.col("left") <= pl.col("entry_date")))
        .group_by("after_row")
        .agg(since=pl.col("left").max())
    )
    kind = pl.when(pl.col("since").is_not_null()).then(pl.lit("re_enter")).otherwise(pl.lit("enroll"))
    return entries.join(since, on="after_row", how="left", maintain_order="left").with_columns(kind=kind)


def _exit_kind() -> pl.Expr:
    return pl.col("status").replace_strict(CHANGE_OF_EXIT, default="withdraw")


def _differs() -> pl.Expr:
    """Dates or codes were corrected, or the reason of leaving; withdrawn and transferred are the same leaving."""
    leaving = pl.col("status").replace("transferred", "withdrawn") != pl.col("was_status").replace(
        "transferred", "withdrawn"
    )
    return pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"was_{name}")) for name in _AMENDED) | (
        ~pl.col("is_open") & leaving
    )


def _day_of_return(as_of: date) -> pl.Expr:
    """Of a stay that had ended and runs again: its entry, where that was moved behind the exit, else the day it showed."""
    moved = (pl.col("entry_date") > pl.col("was_entry_date")) & (pl.col("entry_date") >= pl.col("was_exit_date"))
    return pl.when(moved).then("entry_date").otherwise(pl.lit(as_of))


def _amended_day() -> pl.Expr:
    """The day the correction is about: the exit if that changed, else the entry."""
    return pl.when(pl.col("exit_date").ne_missing(pl.col("was_exit_date"))).then("exit_date").otherwise("entry_date")


def _events(stays: pl.DataFrame, day: str, otherwise: date | None = None) -> pl.DataFrame:
    if stays.is_empty():
        return _NO_EVENTS
    return stays.select(
        "student_id",
        "kind",
        pl.col(day).fill_null(otherwise).cast(pl.Date).alias("effective_date")
        if otherwise
        else pl.col(day).alias("effective_date"),
        "school_id",
        pl.lit(None, pl.String).alias("section_id"),
        _shown("was_").alias("before"),
        _shown().alias("after"),
        "evidence",
        "integration",
    )


def _pair_transfers(
    entries: pl.DataFrame, exits: pl.DataFrame, reopened: pl.DataFrame, stays: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Exit and entry of one student at two schools within 14 days are one `transfer`, as `each_once` pairs them.

    The other half may have been seen earlier: an entry after a stay that had already ended, an exit from a stay whose
    successor was already there. Who comes back (a new stay at a school of before, or an old one reopened on the day `seen`)
    is transferred from where they went when they left, or from where they leave at once; whoever was a no-show there had
    never left it. Returns the events, and `after_row` of the entries and of the exits that they use up.
    """
    if entries.is_empty() and exits.is_empty() and reopened.is_empty():
        return _NO_EVENTS, _NO_ROWS, _NO_ROWS
    known = pl.col("was_entry_date").is_not_null()
    left = pl.concat([
        exits.filter(pl.col("kind") == "withdraw").with_columns(news=pl.lit(value=True)),
        stays.filter(known & ~pl.col("is_open") & ~pl.col("was_open")).with_columns(kind=pl.lit(""), news=pl.lit(value=False)),
    ], how="diagonal").drop_nulls("exit_date").select(
        "student_id", "exit_date", "news", left_row="after_row", left_school="school_id", left_entry="entry_date",
        left=pl.coalesce(_stay("was_"), _stay()), left_now=_stay(), left_evidence="evidence",
    )  # fmt: skip
    if left.is_empty():
        return _NO_EVENTS, _NO_ROWS, _NO_ROWS
    came = pl.concat([
        entries.with_columns(fresh=pl.lit(value=True), arrived="entry_date"),
        reopened.with_columns(
            fresh=pl.lit(value=True),
            arrived="seen",
            since=pl.when(pl.col("was_status") != "no_show").then("was_exit_date"),
        ),
        stays.filter(known & pl.col("is_open") & pl.col("was_open")).with_columns(
            fresh=pl.lit(value=False), arrived="entry_date"
        ),
    ], how="diagonal").select(
        "student_id", "arrived", "since", "school_id", "fresh", "integration", came_row="after_row", came=_stay(), came_was=_stay("was_"),
    )  # fmt: skip
    gap = (pl.col("arrived") - pl.col("exit_date")).dt.total_days().abs()
    went_there = (pl.col("left_entry") >= pl.col("since") - pl.duration(days=TRANSFER_DAYS)) & (
        pl.col("exit_date") > pl.col("since")
    )
    # a derived stay that opened again keeps its first entry, so nothing else says that they were there in between
    at_once = pl.col("news") & pl.col("fresh") & (gap <= CONTINUED_DAYS)
    pairs = (
        left.join(came, on="student_id")
        .filter(
            (pl.col("left_school") != pl.col("school_id"))
            & (pl.col("arrived") > pl.col("left_entry"))
            & (pl.col("news") | pl.col("fresh"))
            & (pl.col("since").is_null() | went_there | at_once)
        )
        .with_columns(gap=gap)
        .filter(pl.col("gap") <= TRANSFER_DAYS)
    )
    pairs = each_once(pairs)
    transfers = pairs.select(
        "student_id",
        pl.lit("transfer").alias("kind"),
        pl.col("arrived").alias("effective_date"),
        "school_id",
        pl.lit(None, pl.String).alias("section_id"),
        _with_other("left", "came_was").alias("before"),
        _with_other("came", "left_now").alias("after"),
        pl.when(pl.col("news"))
        .then(pl.col("left_evidence").fill_null("explicit_exit"))
        .otherwise(pl.lit("new_record"))
        .alias("evidence"),
        "integration",
    )
    used_entries = pairs.filter("fresh").select(after_row="came_row")
    used_exits = pairs.filter("news").select(after_row="left_row")
    return transfers, used_entries, used_exits


def each_once(pairs: pl.DataFrame) -> pl.DataFrame:
    """Pairs in which every exit and every entry is used once, nearest first; of several as near, the entry that is primary
    now, then the exit that is, then by school and entry date, then as they come. A second choice counts where the first
    is used up.

    `pairs`: left_row, came_row, gap, and the stays `came` and `left_now`.
    """
    names = [(stay, field) for field in ("enrollment_type", "school_id", "entry_date") for stay in ("came", "left_now")]
    order = [pl.col(stay).struct.field(field).alias(f"{stay}_{field}") for stay, field in names]
    pairs = pairs.sort("gap", *order, maintain_order=True)
    found = [pairs.clear()]
    while pairs.height:
        first = pairs.filter(pl.col("left_row").is_first_distinct() & pl.col("came_row").is_first_distinct())
        found.append(first)
        for used in ("left_row", "came_row"):
            pairs = pairs.join(first, on=used, how="anti", maintain_order="left")
    return pl.concat(found)


def _pair_continued(entries: pl.DataFrame, exits: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """An exit and an entry at the same school, on the same day or the next, are one `amend`: another programme or code,
    and nobody left. Returns as `_pair_transfers`."""
    if entries.is_empty() or exits.is_empty():
        return _NO_EVENTS, _NO_ROWS, _NO_ROWS
    left = exits.filter((pl.col("kind") == "withdraw") & pl.col("was_entry_date").is_not_null()).select(
        "student_id", "school_id", "exit_date", "evidence", left_row="after_row", left_entry="entry_date",
        left=_stay("was_"), left_now=_stay(),
    )  # fmt: skip
    came = entries.select(
        "student_id",
        "school_id",
        "entry_date",
        "integration",
        came_row="after_row",
        came=_stay(),
        came_was=_stay("was_"),
    )
    pairs = (
        left.join(came, on=["student_id", "school_id"])
        .with_columns(gap=(pl.col("entry_date") - pl.col("exit_date")).dt.total_days())
        .filter(pl.col("gap").is_between(0, CONTINUED_DAYS) & (pl.col("entry_date") > pl.col("left_entry")))
    )
    pairs = each_once(pairs)
    events = pairs.select(
        "student_id",
        pl.lit("amend").alias("kind"),
        pl.col("entry_date").alias("effective_date"),
        "school_id",
        pl.lit(None, pl.String).alias("section_id"),
        _with_other("left", "came_was").alias("before"),
        _with_other("came", "left_now").alias("after"),
        pl.col("evidence").fill_null("explicit_exit"),
        "integration",
    )
    return events, pairs.select(after_row="came_row"), pairs.select(after_row="left_row")


def _grade_events(before: pl.DataFrame, after: pl.DataFrame, about: About) -> pl.DataFrame:
    """Grades that changed while the year ran; what a source says afterwards is a later grade, or a correction."""

    def grade(name: str) -> pl.Expr:
        return pl.struct(pl.col(name).alias("grade_level")).struct.json_encode()

    changed = after.select("student_id", "school_id", "grade_level").join(
        before.select("student_id", was="grade_level"), on="student_id"
    ).filter((pl.col("grade_level") != pl.col("was")) & (about.as_of < SchoolYear.parse(about.school_year).day_after))  # fmt: skip
    return changed.select(
        "student_id",
        pl.lit("grade_change").alias("kind"),
        pl.lit(about.as_of).alias("effective_date"),
        "school_id",
        pl.lit(None, pl.String).alias("section_id"),
        grade("was").alias("before"),
        grade("grade_level").alias("after"),
        pl.lit("field_change").alias("evidence"),
        pl.lit(None, pl.String).alias("integration"),
    )


def _seat_events(before: State, after: State, about: About) -> pl.DataFrame:
    """A student's seat that is new (`section_add`) or was given an earlier end than the section has (`section_drop`).

    A seat that never begins is not taken: it is no news when first seen, no drop when its dates change, and taken again
    it is new.
    """
    if before.section_enrollments.is_empty():  # what is first seen in a first load is no news
        is_later = ~pl.col("integration").is_in(list(about.first_loads))
        after = replace(after, section_enrollments=after.section_enrollments.filter(is_later))
    columns = ["begin_date", "end_date"]
    places = after.sections.select("section_id", "school_id", section_end="end_date")
    was = before.section_enrollments.select(
        *SEAT, *(pl.col(name).alias(f"was_{name}") for name in columns), known=pl.lit(value=True)
    )
    seats = (
        after.section_enrollments.filter(pl.col("role") == "student")
        .select(*SEAT, *columns, "evidence", "integration")
        .join(was, on=SEAT, how="left")
    )
    known = pl.col("known").fill_null(value=False)
    was_taken = known & ~never_begins("was_")
    prolonged = pl.col("end_date").is_null() | (pl.col("end_date") > pl.col("was_end_date"))
    came = ~never_begins() & (~was_taken | ((pl.col("was_end_date") <= about.as_of) & prolonged))
    shortened = (
        was_taken
        & pl.col("end_date").is_not_null()
        & (pl.col("was_end_date").is_null() | (pl.col("end_date") < pl.col("was_end_date")))
    )
    is_first = ~known & pl.col("integration").is_in(list(about.first_loads))
    news = seats.with_columns(came=came & ~is_first, shortened=shortened).filter(pl.col("came") | pl.col("shortened"))
    if news.is_empty():
        return _NO_EVENTS
    news = news.join(places, on="section_id", how="left")
    early = pl.col("section_end").is_null() | (pl.col("end_date") < pl.col("section_end"))
    adds = news.filter("came").with_columns(
        kind=pl.lit("section_add"), day=pl.col("begin_date"), evidence=pl.lit("new_record")
    )
    drops = news.filter(pl.col("shortened") & early).with_columns(
        kind=pl.lit("section_drop"), day=pl.col("end_date"), evidence=pl.col("evidence").fill_null("explicit_exit")
    )
    return pl.concat([adds, drops]).select(
        pl.col("person_id").alias("student_id"),
        "kind",
        pl.col("day").fill_null(about.as_of).alias("effective_date"),
        "school_id",
        "section_id",
        pl.when(pl.col("known")).then(_seat("was_")).alias("before"),
        _seat("").alias("after"),
        "evidence",
        "integration",
    )


def _seat(prefix: str) -> pl.Expr:
    return pl.struct(
        pl.col(f"{prefix}{name}").cast(pl.String).alias(name) for name in ("begin_date", "end_date")
    ).struct.json_encode()
