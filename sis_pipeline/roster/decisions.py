"""What people decided about who is who: pairs of students that are the same one, or two, whatever the rules say.
Asking people and remembering their answers is the store's work; the rules that decide without them are in `identity`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import polars as pl

from sis_pipeline.roster.presence import RECORD

SAME = "same"
SAME_WITH_TWO_IDS = "same_with_two_state_ids"
"""As SAME, of somebody who has two state ids of one issuer, which SAME never joins."""
DISTINCT = "distinct"
GIVEN = "given"
"""The id of a record was given to somebody else than the person: two people from then on, and in the years before one."""
KEPT = "kept"
"""A record is the person's, however little it resembles."""
CONFIRMED = "confirmed"
"""The rule of a record that a person put with another one."""
SPLIT = "split"
"""The rule of a record that a person took out of a student."""

OTHER_RECORD = ["other_integration", "other_sis_id"]
DECISIONS = dict.fromkeys((*RECORD, "person_id", *OTHER_RECORD, "other_person_id", "verdict"), pl.String)
"""One row per decision that stands. Each side is a record, or where it names none a person; the person id beside a
record is the one it had, or gets back where links have joined what the decision keeps apart."""

Record = tuple[str, str]


class _End(NamedTuple):
    record: Record | None
    person_id: str | None

    def person(self, linked: Mapping[Record, str | None]) -> str | None:
        return linked.get(self.record) if self.record else self.person_id


_NOTHING_DECIDED = pl.DataFrame(schema={"node": pl.Int64, "hub": pl.Int64, "verdict": pl.String})


@cache
def no_decisions() -> pl.DataFrame:
    return pl.DataFrame(schema=DECISIONS)


def without_kept(recycled: pl.DataFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """Without the records (integration, sis_id, person_id) of which a person said that they are that one's."""
    kept = decisions.filter(pl.col("verdict") == KEPT)
    return recycled.join(kept.select(*RECORD, person_id="other_person_id"), on=[*RECORD, "person_id"], how="anti")


def given_as_distinct(decisions: pl.DataFrame, links: pl.DataFrame, recycled: pl.DataFrame) -> pl.DataFrame:
    """The decisions as same or distinct. That an id was given to somebody else holds of records that tell of somebody else, as
    `recycled` (integration, sis_id, person_id) says, or that are no longer the person's: in the years before, they are."""
    given = decisions.filter(pl.col("verdict") == GIVEN)
    rest = decisions.filter(pl.col("verdict") != GIVEN).with_columns(pl.col("verdict").replace({KEPT: SAME}))
    if given.is_empty():
        return rest
    has = [*RECORD, "other_person_id"]
    theirs, told = (it.select(*RECORD, other_person_id="person_id") for it in (links, recycled))
    early = theirs.join(told, on=has, how="anti")
    return pl.concat([rest, given.join(early, on=has, how="anti").with_columns(verdict=pl.lit(DISTINCT))])


def links_as_decided(links: pl.DataFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """The links without those that join what a person keeps apart.

    The record whose own id differs from the student it is linked to goes back to that id; a record that has none left
    loses its link, and so becomes a student of its own. `links`: integration, sis_id, person_id, rule, ….
    """
    apart = decisions.filter(pl.col("verdict") == DISTINCT)
    if apart.is_empty():
        return links
    apart = apart.sort(pl.all())
    named = pl.concat([apart.select(RECORD), apart.select(**dict(zip(RECORD, OTHER_RECORD, strict=True)))]).unique()
    rows = links.join(named, on=RECORD, how="semi").select(*RECORD, "person_id").iter_rows()
    linked: dict[Record, str | None] = {(integration, sis_id): person for integration, sis_id, person in rows}
    moved = _moved(apart, linked)
    if not moved:
        return links
    goes = pl.DataFrame(
        [(*record, person) for record, person in moved.items()],
        schema=dict.fromkeys((*RECORD, "goes_to"), pl.String),
        orient="row",
    )
    kept = links.join(goes, on=RECORD, how="anti", maintain_order="left")
    back = links.join(goes.drop_nulls(), on=RECORD, how="inner")
    back = back.with_columns(person_id="goes_to", rule=pl.lit(SPLIT)).select(links.columns)
    return pl.concat([kept, back])


def _moved(apart: pl.DataFrame, linked: dict[Record, str | None]) -> dict[Record, str | None]:
    """Which records leave their student, and for which one. A record moves at most twice, so this ends."""
    pairs = [(_End(_record(a, b), c), _End(_record(d, e), f)) for a, b, c, d, e, f, _ in _rows(apart)]
    moved: dict[Record, str | None] = {}
    while joined := [pair for pair in pairs if _are_joined(pair, linked)]:
        pair = joined[0]
        leaver = _leaver(pair, linked)
        if leaver is None or leaver.record is None:
            pairs.remove(pair)
            continue
        back = leaver.person_id if leaver.record not in moved else None
        moved[leaver.record] = linked[leaver.record] = None if back == linked[leaver.record] else back
    return moved


def _rows(decisions: pl.DataFrame) -> list[tuple[str | None, ...]]:
    return decisions.select(*DECISIONS).rows()


def _record(integration: str | None, sis_id: str | None) -> Record | None:
    return None if integration is None or sis_id is None else (integration, sis_id)


def _are_joined(pair: tuple[_End, _End], linked: Mapping[Record, str | None]) -> bool:
    one, other = (end.person(linked) for end in pair)
    return one is not None and one == other


def _leaver(pair: tuple[_End, _End], linked: Mapping[Record, str | None]) -> _End | None:
    """The side that was somebody else, else the side that can leave."""
    able = [end for end in pair if end.record is not None]
    others = [end for end in able if end.person_id != end.person(linked)]
    return next(iter([*others, *able]), None)


def decided_nodes(facts: pl.DataFrame, links: pl.DataFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """The decisions between two nodes of `facts`: node, hub (the earlier one), verdict. A side is its record, else the
    person it is linked to, else the person it names; a decision about somebody who is not here waits."""
    if decisions.is_empty():
        return _NOTHING_DECIDED
    sides = [
        _nodes(facts, links, decisions.select(integration=i, sis_id=s, person_id=p)).alias(name)
        for name, (i, s, p) in {
            "node": (*RECORD, "person_id"),
            "hub": (*OTHER_RECORD, "other_person_id"),
        }.items()
    ]
    found = pl.DataFrame([*sides, decisions["verdict"]]).drop_nulls().filter(pl.col("node") != pl.col("hub"))
    ends = [pl.max_horizontal("node", "hub").alias("node"), pl.min_horizontal("node", "hub").alias("hub")]
    return found.with_columns(ends).unique().sort(pl.all())


def _nodes(facts: pl.DataFrame, links: pl.DataFrame, ends: pl.DataFrame) -> pl.Series:
    records = facts.filter(pl.col("sis_id").is_not_null()).select(*RECORD, record_node="node")
    people = facts.filter(pl.col("sis_id").is_null()).select("person_id", person_node="node")
    linked = links.select(*RECORD, linked_person="person_id").join(ends, on=RECORD, how="semi")
    placed = (
        ends.join(records, on=RECORD, how="left", maintain_order="left")
        .join(linked, on=RECORD, how="left", maintain_order="left")
        .with_columns(person_id=pl.coalesce("linked_person", "person_id"))
        .join(people, on="person_id", how="left", maintain_order="left")
    )
    return placed.select(pl.coalesce("record_node", "person_node").cast(pl.Int64)).to_series()
