"""Who is who, as people decide it: near matches that wait, decisions that are remembered, ids of merged students.
What a decision does to the roster is the next merge's work (`roster.identity`); here it is asked, kept and read."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Any, Literal, cast

import polars as pl
from sqlalchemy import Connection, Engine, Row, Table, and_, func, literal, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import SCHEMA, identity_decisions, near_matches, roster_tables, student_aliases
from sis_pipeline.roster.contract import MergedRoster
from sis_pipeline.roster.decisions import DISTINCT, SAME, SAME_WITH_TWO_IDS
from sis_pipeline.roster.identity import RECYCLED
from sis_pipeline.roster.near import TWO_IDS, near_match_id
from sis_pipeline.store.locks import lock_district
from sis_pipeline.store.merged import Operation
from sis_pipeline.store.parting import Entity, Parting, Record, absorbed, holders, parting

NOW = text(f"{SCHEMA}.clock()")
SIDES = ("", "other_")
Status = Literal["open", "decided", "gone"]

links = roster_tables["student_links"]
LINKS: dict[Entity, tuple[Table, str]] = {
    "student": (links, "student_id"),
    "staff": (roster_tables["staff_links"], "staff_id"),
}
"""Where it stands who has which record, and the column of who that is."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of two: its record (None for somebody without one in that school year) and the student, or staff member, it was
    then."""

    record: Record | None
    student_id: str | None
    entity: Entity = "student"

    @property
    def words(self) -> str:
        return "/".join(self.record) if self.record else f"{self.entity} {self.student_id}"


@dataclass(frozen=True, slots=True)
class NearMatch:
    """A pair that may be one person. `evidence` names what agrees; `score` says how alike they are, 0 to 1."""

    near_match_id: str
    district: str
    entity: Entity
    school_year: str
    sides: tuple[Side, Side]
    rule: str
    evidence: str
    score: float
    status: Status
    opened_at: datetime
    closed_at: datetime | None

    @property
    def is_recycled(self) -> bool:
        """Whether it asks if the first side's record is still the other side's, or its id was given to somebody else."""
        return self.rule == RECYCLED


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided about two. `superseded_by` is the later decision about the same two, None while it stands."""

    decision_id: str
    district: str
    entity: Entity
    verdict: Literal["same", "same_with_two_state_ids", "distinct"]
    sides: tuple[Side, Side]
    near_match_id: str | None
    decided_by: str
    reason: str
    decided_at: datetime
    superseded_by: str | None


class Identities:
    """The near matches and decisions of this installation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def near_matches(
        self, district: str | None = None, status: Status | None = "open", entity: Entity | None = None
    ) -> list[NearMatch]:
        """Recycled ids first, of which nothing is published until somebody decides; then the likeliest."""
        recycled = near_matches.c.rule == RECYCLED
        query = select(near_matches).order_by(
            recycled.desc(), near_matches.c.score.desc(), near_matches.c.near_match_id
        )
        if district is not None:
            query = query.where(near_matches.c.district == district)
        if status is not None:
            query = query.where(near_matches.c.status == status)
        if entity is not None:
            query = query.where(near_matches.c.entity == entity)
        with self._engine.connect() as connection:
            return [_near_match(row) for row in connection.execute(query)]

    def near_match(self, near_match_id: str) -> NearMatch:
        """Raises ConfigError where there is none."""
        with self._engine.connect() as connection:
            return _get(connection, near_match_id)

    def decisions(self, student_id: str, entity: Entity = "student") -> list[Decision]:
        """Every decision that names a student, or staff member, or one of the records it has now, newest first."""
        with self._engine.connect() as connection:
            who = _Who(student_id, sorted(_records(connection, None, student_id, entity)), entity)
            named = [_is_side(side, who) for side in SIDES]
            table = identity_decisions.c
            query = select(identity_decisions).where(or_(*named)).order_by(table.decided_at.desc(), table.decision_id)
            return [_decision(row) for row in connection.execute(query)]

    def confirm(self, near_match_id: str, actor: str, reason: str, *, two_state_ids: bool = False) -> Decision:
        """The two are one student: the next merge joins them, whatever the rules say, and so does every later one.

        Raises ConfigError without a reason, for an unknown or withdrawn near match, and where the two have different
        state ids of one issuer, unless `two_state_ids` says that one student was given both.
        """
        return self._answer(near_match_id, SAME_WITH_TWO_IDS if two_state_ids else SAME, actor, reason)

    def distinct(self, near_match_id: str, actor: str, reason: str) -> Decision:
        """The two are two students: no merge ever joins them or asks again. Raises ConfigError as `confirm`."""
        return self._answer(near_match_id, DISTINCT, actor, reason)

    def split(self, person_id: str, record: Record, actor: str, reason: str) -> list[Decision]:
        """Tell a record of a student, or staff member, and the others apart, for good: who was a student of its own before
        a merge is that student again, with all its records; a record that never was, and one of staff, becomes a new one.

        The next merge does it. Raises ConfigError without a reason, and where the record is not the person's or its
        only one, unless that waits as one whose id was given to somebody else: then this is the answer, as `distinct`.
        """
        _check_words(actor, reason)
        if question := self._question(person_id, record):
            return [self.distinct(question, actor, reason)]
        with self._engine.begin() as connection:
            lock_district(connection, self._to_split(connection, person_id, record)[0])
            district, entity = self._to_split(connection, person_id, record)  # as it is now that nobody else writes
            if entity == "student":
                found = parting(connection, district, person_id, record)
            else:  # what came along with whom is not kept
                rest = _records(connection, district, person_id, entity) - {record}
                found = Parting(person_id, None, [record], sorted(rest), entity)
            made = _part(connection, district, found, actor=actor, reason=reason)
            details = {
                "decisions": made,
                "reason": reason,
                "restores": found.own,
                "leaving": len(found.leaving),
                "kept_apart": len(found.staying),
            }
            audit.append(connection, "link.split", person_id, district=district, actor=actor, details=details)
            return [_get_decision(connection, one) for one in made]

    def _question(self, person_id: str, record: Record) -> str | None:
        """The open near match that asks whether a person's record is somebody else's by now."""
        table = near_matches.c
        query = select(table.near_match_id).where(
            table.rule == RECYCLED,
            table.status == "open",
            table.integration == record[0],
            table.sis_id == record[1],
            table.other_student_id == _uuid(person_id, "student's or staff member's id"),
        )
        with self._engine.connect() as connection:
            return connection.scalar(query)

    def _to_split(self, connection: Connection, person_id: str, record: Record) -> tuple[str, Entity]:
        """The person's district, and what the person is. Raises ConfigError where the record can't be taken out."""
        _uuid(person_id, "student's or staff member's id")
        entity: Entity = "staff" if _records(connection, None, person_id, "staff") else "student"
        who = f"{'staff member' if entity == 'staff' else entity} {person_id}"
        here = _records(connection, None, person_id, entity)
        if record not in here:
            raise ConfigError(
                f"The record {'/'.join(record)} is not one of {who}.",
                code="config.no_link",
                advice="`sis links show` lists the records of a student or staff member.",
            )
        if len(here) == 1:
            raise ConfigError(
                f"The record {'/'.join(record)} is the only one of {who}: there is nothing to split.",
                code="config.only_link",
            )
        table, person = LINKS[entity]
        return str(connection.scalar(select(table.c.district).where(table.c[person] == person_id).limit(1))), entity

    def _answer(self, near_match_id: str, verdict: str, actor: str, reason: str) -> Decision:
        _check_words(actor, reason)
        with self._engine.begin() as connection:
            district = _get(connection, near_match_id).district
            lock_district(connection, district)
            found = _get(connection, near_match_id)
            if found.status == "gone":
                raise ConfigError(
                    f"Near match {near_match_id} was withdrawn: the records no longer give reason for it.",
                    code="config.near_match_gone",
                    advice="`sis links review` shows the open ones.",
                )
            if verdict == SAME:
                _refuse_two_state_ids(connection, found)
            is_student = found.entity == "student"
            words = {"actor": actor, "reason": reason, "near_match_id": found.near_match_id}
            parts = verdict == DISTINCT and is_student and found.rule != RECYCLED
            joined = _parting_of_joined(connection, district, found.sides) if parts else None
            if joined:
                made = _part(connection, district, joined, **words)
            else:
                made = _decide(connection, district, verdict, [found.sides], **words)
                _supersede(connection, district, *_both(connection, district, found.sides), made)
            _close(connection, [found.near_match_id], "decided")
            two = [side.student_id for side in found.sides]
            people = "students" if is_student else "staff"
            details = {"decisions": made, people: two, "reason": reason, "rule": found.rule}
            if verdict == SAME_WITH_TWO_IDS:
                details["two_state_ids"] = True
            audit.append(
                connection,
                "link.distinct" if verdict == DISTINCT else "link.confirm",
                found.near_match_id,
                district=district,
                actor=actor,
                details=details,
            )
            return _get_decision(connection, made[0])


def record(connection: Connection, operation: Operation, merged: MergedRoster) -> list[audit.Entry]:
    """Bring the queue and the aliases to what a merge says, in the publication's transaction, before links are written.

    Near matches that are found no longer are withdrawn; one that was withdrawn and is found again waits again. What was
    done to students is returned for the audit log.
    """
    who = _record_aliases(connection, operation, merged)
    return [*_record_near_matches(connection, operation, merged), *who]


def _record_near_matches(connection: Connection, operation: Operation, merged: MergedRoster) -> list[audit.Entry]:
    found = [_near_row(operation, row) for row in merged.near_matches.iter_rows(named=True)]
    ids = [row["near_match_id"] for row in found]
    aliases = select(student_aliases.c.alias_id).where(student_aliases.c.restored_at.is_(None))
    gone = select(near_matches.c.near_match_id).where(
        near_matches.c.district == operation.district,
        near_matches.c.status == "open",
        # whoever was merged away is no longer anybody's near match, whichever year found it
        or_(
            near_matches.c.school_year == operation.school_year,
            *(near_matches.c[f"{side}student_id"].in_(aliases) for side in SIDES),
            *(near_matches.c[f"{side}student_id"].in_(merged.retired_staff) for side in SIDES),
        ),
        text("near_match_id <> all(cast(:found as uuid[]))").bindparams(found=ids),
    )
    withdrawn = list(connection.scalars(gone))
    _close(connection, withdrawn, "gone")
    opened = 0
    for start in range(0, len(found), 1_000):
        opened += len(connection.execute(_open(found[start : start + 1_000])).all())
    if not (opened or withdrawn):
        return []
    counts: dict[str, object] = {"opened": opened, "withdrawn": len(withdrawn)}
    return [audit.Entry("near_match.found", operation.operation_id, operation.district, counts)]


def _near_row(operation: Operation, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: row[name] for side in SIDES for name in (f"{side}integration", f"{side}sis_id", f"{side}student_id")},
        "near_match_id": near_match_id(operation.district, row["student_id"], row["other_student_id"]),
        "district": operation.district,
        "entity": row.get("entity", "student"),  # frames of an earlier version say nothing
        "school_year": operation.school_year,
        "rule": row["rule"],
        "evidence": row["evidence"],
        "score": row["score"],
        "operation_id": operation.operation_id,
    }


def _open(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A statement that gives the ids of near matches that wait only since now. An earlier year's merge changes nothing
    of one that a later year found; what is as it was is not written."""
    statement = insert(near_matches).values(list(rows))
    said = {
        name: statement.excluded[name] for name in rows[0] if name not in {"near_match_id", "district", "operation_id"}
    }
    differs = or_(
        near_matches.c.status != "open", *(near_matches.c[name].is_distinct_from(new) for name, new in said.items())
    )
    return statement.on_conflict_do_update(
        index_elements=["near_match_id"],
        set_={
            **said,
            "operation_id": statement.excluded.operation_id,
            "status": "open",
            "opened_at": text(
                f"case when near_matches.status = 'open' then near_matches.opened_at else {SCHEMA}.clock() end"
            ),
            "closed_at": None,
        },
        where=and_(differs, near_matches.c.school_year <= statement.excluded.school_year),
    ).returning(near_matches.c.near_match_id)


def _close(connection: Connection, ids: Sequence[str], status: Status) -> None:
    if ids:
        connection.execute(
            update(near_matches).where(near_matches.c.near_match_id.in_(ids)).values(status=status, closed_at=NOW)
        )


def _record_aliases(connection: Connection, operation: Operation, merged: MergedRoster) -> list[audit.Entry]:
    """Before the links are written: they still say which records the merged student had."""
    district = operation.district
    by: dict[str, object] = {"operation_id": operation.operation_id}
    entries = []
    for alias_id, student_id in sorted(merged.retired.items()):
        had = select(links.c.integration, links.c.sis_id).where(
            links.c.district == district, links.c.student_id == alias_id
        )
        values = {
            "student_id": student_id,
            "records": sorted([row.integration, row.sis_id] for row in connection.execute(had)),
            "operation_id": operation.operation_id,
        }
        statement = insert(student_aliases).values(district=district, alias_id=alias_id, **values)
        again = {**values, "merged_at": NOW, "restored_at": None}
        connection.execute(statement.on_conflict_do_update(index_elements=["alias_id"], set_=again))
        # whoever was merged into this one before goes along
        connection.execute(
            update(student_aliases)
            .where(student_aliases.c.district == district, student_aliases.c.student_id == alias_id)
            .values(student_id=student_id)
        )
        entries.append(audit.Entry("student.merged", alias_id, district, {**by, "into": student_id}))
    back = _restored(connection, district, merged)
    return [*entries, *(audit.Entry("student.restored", alias_id, district, by) for alias_id in back)]


def _restored(connection: Connection, district: str, merged: MergedRoster) -> list[str]:
    """Aliases that have a record of their own again. Those that had been merged into them before go along."""
    query = select(student_aliases).where(
        student_aliases.c.district == district, student_aliases.c.restored_at.is_(None)
    )
    aliases = {row.alias_id: row for row in connection.execute(query)}
    known = set(aliases) - set(merged.retired)
    if not known:
        return []
    linked = merged.frames["student_links"]
    back = sorted(linked.filter(pl.col("student_id").is_in(list(known)))["student_id"].unique())
    if back:
        _set_aliases(connection, back, restored_at=NOW)
    gone = sorted(set(aliases) - set(back)) if back else []
    held_by = holders(linked, [record for alias_id in gone for record in aliases[alias_id].records])
    for alias_id in gone:
        now = {held_by.get(tuple(record), alias_id) for record in aliases[alias_id].records}
        if now and now <= set(back):
            _set_aliases(connection, [alias_id], student_id=min(now))
    return back


def _set_aliases(connection: Connection, ids: Sequence[str], **values: Any) -> None:
    connection.execute(update(student_aliases).where(student_aliases.c.alias_id.in_(ids)).values(**values))


def _parting_of_joined(connection: Connection, district: str, sides: tuple[Side, Side]) -> Parting | None:
    """How two that are one student by now part again; None for two who are two."""
    now = [_student_now(connection, district, side) for side in sides]
    if now[0] is None or now[0] != now[1]:
        return None
    named = [side.record or _a_record_of(connection, side.student_id) for side in sides]
    record, other = named if named[0] else reversed(named)
    return parting(connection, district, now[0], record, other) if record else None


def _student_now(connection: Connection, district: str, side: Side) -> str | None:
    if side.record is not None:
        return _holder(connection, district, side.record, side.entity)
    alias = select(student_aliases.c.student_id).where(
        student_aliases.c.alias_id == side.student_id, student_aliases.c.restored_at.is_(None)
    )
    return connection.scalar(alias) or side.student_id


def _a_record_of(connection: Connection, alias_id: str | None) -> Record | None:
    """One of the records that a student had when it was merged away; None for one that was not."""
    query = select(student_aliases.c.records).where(
        student_aliases.c.alias_id == alias_id, student_aliases.c.restored_at.is_(None)
    )
    records = connection.scalar(query)
    return tuple(records[0]) if records else None


def _holder(connection: Connection, district: str, record: Record, entity: Entity) -> str | None:
    """Who has a record."""
    (table, person), (integration, sis_id) = LINKS[entity], record
    query = select(table.c[person]).where(
        table.c.district == district, table.c.integration == integration, table.c.sis_id == sis_id
    )
    found: str | None = connection.scalar(query)
    return found


def _refuse_two_state_ids(connection: Connection, near: NearMatch) -> None:
    """Whatever is published of the two, and their records, say now counts."""
    one, other = (_state_ids(connection, near, side) for side in near.sides)
    differ = any(issuer == issuer_too and ssid != ssid_too for issuer, ssid in one for issuer_too, ssid_too in other)
    if differ or TWO_IDS in near.evidence:
        raise ConfigError(
            "The two have different state ids of one issuer, and nobody said that one person was given both.",
            code="config.two_state_ids",
            advice="Have a wrong one corrected in its SIS; the next sync then joins them, or asks again. Where one person "
            "really was given both, confirm with `--two-state-ids`.",
        )


def _state_ids(connection: Connection, near: NearMatch, side: Side) -> set[tuple[str, str]]:
    """Issuer and state id, as often as they are said of somebody; those of staff have no issuer."""
    if near.entity == "staff":
        staff = roster_tables["staff"].c
        mine = (staff.district == near.district) & (staff.staff_id == side.student_id)
        query = select(literal(""), func.trim(staff.state_staff_id)).where(mine, staff.state_staff_id.is_not(None))
        return {(issuer, state_id) for issuer, state_id in connection.execute(query)}
    found: set[tuple[str, str]] = set()
    for table in (roster_tables["students"], roster_tables["student_sources"]):
        query = select(func.trim(table.c.ssid_issuer), func.trim(table.c.ssid)).where(
            table.c.district == near.district, table.c.student_id == side.student_id, table.c.ssid.is_not(None)
        )
        found |= {(issuer or "", ssid) for issuer, ssid in connection.execute(query)}
    return found


def _decide(
    connection: Connection,
    district: str,
    verdict: str,
    pairs: Sequence[tuple[Side, Side]],
    *,
    actor: str,
    reason: str,
    near_match_id: str | None = None,
) -> list[str]:
    """Remember a decision about one or several pairs of sides; their ids."""
    made = []
    for sides in pairs:
        decision_id = str(uuid.uuid4())
        values: dict[str, Any] = {}
        for prefix, side in zip(SIDES, sides, strict=True):
            integration, sis_id = side.record or (None, None)
            values |= {f"{prefix}integration": integration, f"{prefix}sis_id": sis_id}
            values |= {f"{prefix}student_id": side.student_id}
        connection.execute(
            identity_decisions.insert().values(
                district=district,
                decision_id=decision_id,
                entity=sides[0].entity,
                verdict=verdict,
                near_match_id=near_match_id,
                decided_by=actor,
                reason=reason,
                **values,
            )
        )
        made.append(decision_id)
    return made


@dataclass(frozen=True, slots=True)
class _Who:
    """Somebody in the words of decisions: the id, where it is the whole person, and the records."""

    student_id: str | None
    records: Sequence[Record]
    entity: Entity = "student"


def _supersede(connection: Connection, district: str, one: _Who, other: _Who, decisions: Sequence[str]) -> None:
    """What was decided before between the same two no longer stands."""
    either_way = or_(
        and_(_is_side("", one), _is_side("other_", other)), and_(_is_side("", other), _is_side("other_", one))
    )
    table = identity_decisions.c
    connection.execute(
        update(identity_decisions)
        .where(
            table.district == district,
            table.superseded_by.is_(None),
            table.decision_id.not_in(decisions),
            either_way,
        )
        .values(superseded_by=decisions[0])
    )


def _part(
    connection: Connection,
    district: str,
    found: Parting,
    *,
    actor: str,
    reason: str,
    near_match_id: str | None = None,
) -> list[str]:
    """Decide that every record that leaves a person and every one that stays are two people."""
    pairs = [
        (Side(one, found.own, found.entity), Side(other, found.student_id, found.entity))
        for one, other in product(found.leaving, found.staying)
    ]
    made = _decide(connection, district, DISTINCT, pairs, actor=actor, reason=reason, near_match_id=near_match_id)
    sides = _Who(found.own, found.leaving, found.entity), _Who(found.student_id, found.staying, found.entity)
    _supersede(connection, district, *sides, made)
    return made


def _both(connection: Connection, district: str, sides: tuple[Side, Side]) -> tuple[_Who, _Who]:
    """The two sides; a record is on one of them only, where they are still, or again, one student."""
    one, other = (_who(connection, district, side) for side in sides)
    smaller, larger = sorted((one, other), key=lambda who: len(who.records))
    rest = [record for record in larger.records if record not in smaller.records]
    return smaller, _Who(larger.student_id, rest, larger.entity)


def _who(connection: Connection, district: str, side: Side) -> _Who:
    """A side with all records of its student. Where its record is another student's by now: those that came along from
    the student it was, else that record only."""
    if side.record is not None:
        held_by = _holder(connection, district, side.record, side.entity)
        if held_by != side.student_id:
            if side.entity == "staff":  # what came along with whom is not kept
                return _Who(None, [side.record], side.entity)
            held = _records(connection, district, held_by, side.entity)
            came = absorbed(connection, district, held_by, held) if held_by else []
            along = [one.records for one in came if one.alias_id == side.student_id and side.record in one.records]
            return _Who(side.student_id if along else None, next(iter(along), [side.record]))
    return _Who(side.student_id, sorted(_records(connection, district, side.student_id, side.entity)), side.entity)


def _records(connection: Connection, district: str | None, person_id: str | None, entity: Entity) -> set[Record]:
    """Somebody's records; the district may be left out, as an id is in one only."""
    table, person = LINKS[entity]
    query = select(table.c.integration, table.c.sis_id).where(table.c[person] == person_id)
    if district is not None:
        query = query.where(table.c.district == district)
    return {(row.integration, row.sis_id) for row in connection.execute(query)}


def _is_side(prefix: str, who: _Who) -> Any:
    table = identity_decisions.c
    named = [
        and_(table[f"{prefix}integration"] == integration, table[f"{prefix}sis_id"] == sis_id)
        for integration, sis_id in who.records
    ]
    whole = and_(table[f"{prefix}integration"].is_(None), table[f"{prefix}student_id"] == who.student_id)
    return and_(table.entity == who.entity, or_(*named, whole))


def _check_words(actor: str, reason: str) -> None:
    if not (reason.strip() and actor.strip()):
        raise ConfigError(
            "A decision about who is who needs who decides and why.",
            code="config.link_reason",
            advice="Give both, and run it again.",
        )


def _uuid(given: str, what: str) -> str:
    try:
        return str(uuid.UUID(given))
    except ValueError:
        raise ConfigError(f"{given[:80]!r} is no {what}.", code="config.no_near_match") from None


def _get(connection: Connection, near_match_id: str) -> NearMatch:
    query = select(near_matches).where(near_matches.c.near_match_id == _uuid(near_match_id, "near match's id"))
    row = connection.execute(query).one_or_none()
    if row is None:
        raise ConfigError(
            f"There is no near match {near_match_id}.",
            code="config.no_near_match",
            advice="`sis links review` shows those there are.",
        )
    return _near_match(row)


def _get_decision(connection: Connection, decision_id: str) -> Decision:
    query = select(identity_decisions).where(identity_decisions.c.decision_id == decision_id)
    return _decision(connection.execute(query).one())


def _near_match(row: Row[Any]) -> NearMatch:
    return NearMatch(**_fields(NearMatch, row))


def _decision(row: Row[Any]) -> Decision:
    return Decision(**_fields(Decision, row))


def _fields(kind: Any, row: Row[Any]) -> dict[str, Any]:
    values = cast("Mapping[str, Any]", row._mapping)  # noqa: SLF001
    plain = {name: values[name] for name in kind.__dataclass_fields__ if name != "sides"}
    return {**plain, "sides": tuple(_side(values, prefix) for prefix in SIDES)}


def _side(values: Mapping[str, Any], prefix: str) -> Side:
    integration, sis_id = values[f"{prefix}integration"], values[f"{prefix}sis_id"]
    record = None if integration is None else (integration, sis_id)
    return Side(record, values[f"{prefix}student_id"], values["entity"])
