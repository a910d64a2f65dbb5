"""The staff of a merge: who they are, what is published of them, and whose absence waits for a person.
Who is who is decided in `identity`, how much may go at once in `guard`."""

from __future__ import annotations

import polars as pl

from sis_pipeline.roster.catalog import published_staff, refer
from sis_pipeline.roster.decisions import SPLIT
from sis_pipeline.roster.delivery import Delivery
from sis_pipeline.roster.frames import fit
from sis_pipeline.roster.guard import Hold, Question, guard
from sis_pipeline.roster.identity import Resolution, repointed, resolve_staff
from sis_pipeline.roster.model import MERGED
from sis_pipeline.roster.presence import ABSENT, CARRIED, DELIVERED, RECORD


def identify_staff(now: Delivery, school_ids: pl.DataFrame) -> Resolution:
    records = refer(now.records("staff"), "school_sis_id", school_ids, "school_id")
    links, published = now.existing("staff_links"), now.existing("staff")
    return resolve_staff(now.inputs.district, records, links, published, now.inputs.staff_decisions)


def merged_staff(now: Delivery, staff: Resolution, school_ids: pl.DataFrame) -> pl.DataFrame:
    """Staff of now, and those who begin or cease to wait for a person's word on who they are. Someone whom a partial
    snapshot may not have named in full otherwise stays as published."""
    who = staff.assignment.select(*RECORD, staff_id="person_id")
    records = now.records("staff").join(who, on=RECORD)
    unsure = now.presence("staff").fates(repointed(now.existing("staff_links"), staff.retired, "staff_id"))
    unsure = unsure.filter((pl.col("fate") == CARRIED) & pl.col("active"))
    merged = published_staff(records, school_ids, now.inputs.district, now.priorities, staff.doubted)
    existing = now.existing("staff").filter(~pl.col("staff_id").is_in(list(staff.retired)))
    published = existing.join(unsure, on="staff_id", how="semi") if now.is_owner else existing
    current = merged.join(published, on="staff_id", how="anti", maintain_order="left")
    waits = pl.col("staff_id").is_in(pl.Series(staff.doubted, dtype=pl.String).implode())
    turned = existing.filter(pl.col("near_match").ne_missing(waits)).with_columns(near_match=waits)
    rest = turned.join(current, on="staff_id", how="anti", maintain_order="left")
    return pl.concat([current, rest.select(current.columns)])


def merged_staff_links(now: Delivery, staff: Resolution) -> tuple[pl.DataFrame, tuple[Hold, ...]]:
    """The links of staff, and the staff members whose absence waits: theirs stay active."""
    links = _staff_links(now, staff)
    ended = links.filter(pl.col("was") & ~pl.col("active"))
    if ended.is_empty():
        return fit(links, MERGED["staff_links"]), ()
    schools = now.existing("staff").select("staff_id", "school_id")
    ended = ended.join(links.filter("active"), on="staff_id", how="anti", maintain_order="left")
    absent = ended.filter(pl.col("fate") == ABSENT).unique("staff_id", maintain_order=True)
    removals = absent.join(schools, on="staff_id", how="left", maintain_order="left")
    removals = removals.with_columns(evidence="fate", change=pl.lit("remove"))
    closed = pl.col("school_id").is_in(list(now.inputs.rulings.closed)).fill_null(value=False)
    sizes = [
        pl.DataFrame({"school_id": [None], "active": [links.filter(column)["staff_id"].n_unique()]})
        for column in ("was", "active")
    ]
    question = Question("staff", ["staff_id"], removals.filter(~closed), before=sizes[0], after=sizes[1])
    holds = guard(question, now.inputs.thresholds, now.inputs.rulings)
    held = pl.col("staff_id").is_in([staff_id for hold in holds for (staff_id,) in hold.keys])
    kept = links.with_columns(active=pl.col("active") | (held & pl.col("was") & (pl.col("fate") == ABSENT)))
    return fit(kept, MERGED["staff_links"]), holds


def _staff_links(now: Delivery, staff: Resolution) -> pl.DataFrame:
    """As `student_links`, with `was` (active) and `fate`; only the latest year says that a staff member is no longer
    delivered."""
    owner = now.is_owner
    links = repointed(now.existing("staff_links"), staff.retired, "staff_id")
    held = staff.known.rename({"person_id": "staff_id"})
    moved = held.join(links.select(*RECORD, "staff_id"), on=[*RECORD, "staff_id"], how="anti")
    fated = now.presence("staff").fates(links.update(moved.with_columns(rule=pl.lit(SPLIT)), on=RECORD))
    fated = fated.with_columns(was="active")
    if owner:
        seen = pl.when(pl.col("fate") == CARRIED).then("active").otherwise(pl.col("fate") == DELIVERED)
        fated = fated.with_columns(active=seen)
    new = staff.assignment.rename({"person_id": "staff_id"}).join(links, on=RECORD, how="anti")
    about = {"district": pl.lit(now.inputs.district), "active": pl.lit(owner), "was": pl.lit(value=False)}
    new = new.with_columns(**about, fate=pl.lit(DELIVERED))
    columns = [*MERGED["staff_links"].names, "was", "fate"]
    return pl.concat([fated.select(columns), new.select(columns)]).sort(RECORD)
