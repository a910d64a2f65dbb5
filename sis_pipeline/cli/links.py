"""`sis links`: near matches side by side, and the person's decision who is who.
What waits and what was decided is kept by store.identity; the values that are compared come from `comparison`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.listings import District, Limit, one_of
from sis_pipeline.cli.output import AsJson, RefusalError, as_text, counted, emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.store.identity import Decision, Identities, NearMatch

app = typer.Typer(help="Which records are one person: near matches and decisions.", no_args_is_help=True)

NearMatchId = Annotated[str, typer.Argument(metavar="NEAR_MATCH", help="The near match's id, from `sis links review`.")]
Reason = Annotated[str, typer.Option(help="Why, without the student's values; it goes into the audit log.")]
Values = Annotated[bool, typer.Option("--values", help="Show people's values instead of a mask.")]
STATUSES = ("open", "decided", "gone")
ENTITIES = ("student", "staff")
ONE = {"student": "one student", "staff": "one of the staff"}
ALONE = {"student": "a student of its own", "staff": "a staff member of its own"}
TWO = {"student": "two students", "staff": "two of the staff"}


@app.callback()
def links() -> None:
    """Which records are one person: near matches and decisions."""


@app.command()
def review(
    *,
    district: District = None,
    status: Annotated[str, typer.Option(help="open, decided, gone (the records changed), or all.")] = "open",
    entity: Annotated[str | None, typer.Option(help="Only those of student, or of staff.")] = None,
    limit: Limit = 20,
    values: Values = False,
    as_json: AsJson = False,
) -> None:
    """Show near matches side by side, the likeliest first: pairs that may be one student, or one of the staff, and wait
    for a person.

    Until one decides, both are published on their own and get no account. Before them come recycled ids: records beside
    whom they were, which seem to be somebody else's by now; nothing of them is published until a person decides. After
    them, cut chains: records that are not joined because two state ids, or a person's decision, are in the way. Values
    are masked unless asked for.
    """
    one_of("--status", status, (*STATUSES, "all"))
    one_of("--entity", entity, ENTITIES)
    found = _identities().near_matches(district, None if status == "all" else status, entity)  # type: ignore[arg-type]
    shown = found[:limit]
    compared = [_compared(it, values) for it in shown]
    cut = Installation().merges.cut_chains(district) if status in {"open", "all"} and entity != "staff" else []

    def render(console: Console) -> None:
        for it, rows in zip(shown, compared, strict=True):
            _print_pair(console, it, rows)
        words = "1 near match" if len(found) == 1 else f"{len(found):,} near matches"
        console.print(words + (f", the first {len(shown):,} shown." if len(shown) < len(found) else "."))
        if shown:
            console.print(
                "Decide: sis links confirm NEAR_MATCH, or sis links distinct NEAR_MATCH, with --reason …", markup=False
            )
            if not values:
                console.print("The values: --values", markup=False)
        if cut:
            ends = [
                (
                    it["district"],
                    *("/".join((it[f"{end}integration"], it[f"{end}sis_id"])) for end in ("", "other_")),
                    it["rule"],
                )
                for it in cut[:limit]
            ]
            console.print(table(counted(len(cut), "cut chain"), ("district", "one", "other", "would be one by"), ends))
            console.print(
                "Have the wrong state id corrected in its SIS; where a record is another one's: sis links split.",
                markup=False,
            )

    document = [_plain(it, rows, values) for it, rows in zip(shown, compared, strict=True)]
    emit(as_json, {"near_matches": document, "total": len(found), "cut_chains": cut[:limit]}, render)


@app.command()
def show(
    found_id: Annotated[
        str, typer.Argument(metavar="ID", help="A near match's id, or a student's, or a staff member's.")
    ],
    *,
    values: Values = False,
    as_json: AsJson = False,
) -> None:
    """Show one near match side by side, or the records of a student or staff member and what was decided about them."""
    from sis_pipeline.cli import comparison
    from sis_pipeline.cli.records import is_uuid

    if not is_uuid(found_id):
        raise RefusalError("The id is not a UUID.", "`sis links review` and `sis students show` show ids.")
    near = _near_match(found_id)
    if near is not None:
        rows = _compared(near, values)
        emit(as_json, {"near_match": _plain(near, rows, values)}, lambda console: _print_pair(console, near, rows))
        return
    with Installation().engine.connect() as connection:
        found, entity = comparison.student(connection, found_id, values=values), "student"
        if found is None:
            found, entity = comparison.staff_member(connection, found_id, values=values), "staff"
    if found is None:
        raise RefusalError(
            "No near match and no student or staff member has that id.", "`sis links review` shows near matches."
        )
    decisions = _identities().decisions(found[f"{entity}_id"], entity)  # type: ignore[arg-type]
    document = {entity: found, "decisions": [asdict(it) for it in decisions]}

    def render(console: Console) -> None:
        (comparison.print_student if entity == "student" else comparison.print_staff_member)(console, found)
        columns = ("decided", "verdict", "one", "other", "by", "because", "stands")
        cells = [
            (it.decided_at, it.verdict, *(side.words for side in it.sides), it.decided_by, it.reason, it.superseded_by is None)
            for it in decisions
        ]  # fmt: skip
        if decisions:
            console.print(table(counted(len(decisions), "decision"), columns, cells))
        if len(found["records"]) > 1:
            told = f"sis links split {found[f'{entity}_id']} --record INTEGRATION/SIS_ID --reason …"
            console.print(f"Where a record is somebody else's: {told}", markup=False)

    emit(as_json, document, render)


@app.command()
def confirm(
    near_match: NearMatchId,
    *,
    reason: Reason,
    two_state_ids: Annotated[
        bool,
        typer.Option(
            "--two-state-ids", help="One person was given two state ids of one issuer: join them all the same."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The two are one person: the next merge joins them. Refused where they have two state ids of one issuer, unless
    --two-state-ids says that one person was given both; which one is published follows the policy, as of any attribute.

    Of a recycled id: the record is still that person's, whatever it says from now on.
    """
    from sis_pipeline.db.audit import current_actor

    recycled = _identities().near_match(near_match).is_recycled
    made = _identities().confirm(near_match, current_actor(), reason, two_state_ids=two_state_ids)
    told = f"They are {ONE[made.entity]}; the next merge joins them, and keeps the older id."
    _decided([made], "The record is whose it was; the next merge reads it again." if recycled else told, as_json)


@app.command()
def distinct(near_match: NearMatchId, *, reason: Reason, as_json: AsJson = False) -> None:
    """The two are two people: no merge joins them, and nobody is asked again.

    Two who were joined part again. Of staff, only the record of the near match leaves; the others stay. Of a recycled
    id: the record is a new person's, and whoever had the id goes the way of somebody whose record is absent.
    """
    from sis_pipeline.db.audit import current_actor

    made = _identities().distinct(near_match, current_actor(), reason)
    _decided([made], f"They are {TWO[made.entity]}; no merge joins them, and nobody is asked again.", as_json)


@app.command()
def split(
    person: Annotated[str, typer.Argument(metavar="ID", help="The id of the student, or staff member, that is two.")],
    *,
    record: Annotated[
        str, typer.Option(metavar="INTEGRATION/SIS_ID", help="The record that is not the same person's as the others.")
    ],
    reason: Reason,
    as_json: AsJson = False,
) -> None:
    """Tell a record of a student, or staff member, and the others apart, for good: the next merge makes them two.

    Where the record was a student of its own before a merge, that student comes back with its id, its history and all
    records it had. Where it is the one that the others were merged into, it keeps the id and they leave. Of staff, only the
    record leaves. A recycled id becomes somebody new's, as with `distinct`.
    """
    from sis_pipeline.db.audit import current_actor

    integration, slash, sis_id = record.partition("/")
    if not (integration and slash and sis_id):
        raise RefusalError("--record takes INTEGRATION/SIS_ID: an integration's key, a slash, the record's id there.")
    made = _identities().split(person, (integration, sis_id), current_actor(), reason)
    own = made[0].sides[0].student_id
    leaving = ", ".join(sorted({decision.sides[0].words for decision in made}))
    back = f"student {own} again" if own and made[0].near_match_id is None else ALONE[made[0].entity]
    _decided(made, f"The next merge makes {leaving} {back}, never to be joined with the others again.", as_json)


def _identities() -> Identities:
    from sis_pipeline.store.identity import Identities

    return Identities(Installation().engine)


def _near_match(found_id: str) -> NearMatch | None:
    from sis_pipeline.connect.errors import ConfigError

    try:
        return _identities().near_match(found_id)
    except ConfigError:  # the id may be a student's
        return None


def _compared(near: NearMatch, values: bool) -> list[dict[str, Any]]:
    from sis_pipeline.cli import comparison

    here, record = Installation(), near.sides[0].record
    said = None
    if near.is_recycled and record:
        said = here.merges.set_aside(near.district, near.school_year, near.entity, record)
    with here.engine.connect() as connection:
        return comparison.of_pair(connection, near, values=values, set_aside=said)


def _decided(made: list[Decision], consequence: str, as_json: bool) -> None:
    words = f"Decided. {consequence}"
    document = {"decisions": [asdict(it) for it in made]}
    emit(as_json, document, lambda console: console.print(words, markup=False))


def _plain(near: NearMatch, rows: list[dict[str, Any]], values: bool) -> dict[str, Any]:
    """Without people's values, unless they were asked for: then what was compared, side by side."""
    return {**asdict(near), **({"attributes": rows} if values else {})}


def _print_pair(console: Console, near: NearMatch, rows: list[dict[str, Any]]) -> None:
    kind = ", staff" if near.entity == "staff" else ""
    head = f"Near match {near.near_match_id} of {near.district}{kind}, {near.status}: {near.score:.0%} alike by {near.rule}"
    console.print(head, style="bold", markup=False)
    if near.is_recycled:
        console.print(
            f"The id {near.sides[0].words} seems to be given to somebody else: nothing that it says is published.\n"
            "A new person: sis links distinct. Still the same one: sis links confirm.",
            markup=False,
        )
    console.print(f"What agrees: {near.evidence or 'nothing but the block'}.", markup=False)
    columns = ("attribute", *(side.words for side in near.sides), "")
    if near.is_recycled and not rows:
        console.print("What the record says is no longer kept; the next merge keeps it again.", markup=False)
    cells = [(row["attribute"], as_text(row["one"]), as_text(row["other"]), row["verdict"]) for row in rows]
    console.print(table(None, columns, cells))
