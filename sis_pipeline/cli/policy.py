"""`sis policy`: whose value of an attribute a district publishes, and what another policy would change.
What can be set is declared in roster.policies, keeping it is store.survivorship's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, RefusalError, counted, emit, table

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from sis_pipeline.roster.policies import Policies
    from sis_pipeline.store.survivorship import PolicyVersion

app = typer.Typer(help="Whose value of an attribute is published.", no_args_is_help=True)

District = Annotated[str, typer.Argument(help="The district.")]
Values = Annotated[
    list[str],
    typer.Argument(
        metavar="ATTRIBUTE=POLICY...",
        help="As phone=local_wins; default=… is the policy of all others, ATTRIBUTE=default takes its own back.",
    ),
]


@app.command()
def show(
    district: District,
    *,
    history: Annotated[bool, typer.Option("--history", help="Show who set what, and when.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the policy of every attribute of a district.

    sis_wins: the system with the lowest priority number; an edit made in the table `students` is published only where no
    system has a value. local_wins: such an edit stays until the systems say the same. newest_wins: what changed last.
    manual: what is published, or edited, stays, and the conflict is open, until the systems agree.
    """
    from sis_pipeline.store.survivorship import Survivorship

    store = Survivorship(Installation().engine)
    found, versions = store.policies(district), store.history(district) if history else []
    document: dict[str, Any] = {"policy": _plain(found)}
    if history:
        document["history"] = versions

    def render(console: Console) -> None:
        console.print(_policies(found))
        if history:
            told = [(it.version, it.set_at, it.set_by, it.reason, _flat(it)) for it in versions]
            console.print(table("History", ("version", "at", "by", "because", "set"), told))

    emit(as_json, document, render)


@app.command("set")
def set_(
    district: District,
    values: Values,
    *,
    reason: Annotated[str, typer.Option(help="Why; it goes into the audit log.")],
    as_json: AsJson = False,
) -> None:
    """Set policies of a district; the next merge goes by them. `sis policy check` says beforehand what would change."""
    from sis_pipeline.db.audit import current_actor
    from sis_pipeline.store.survivorship import Survivorship

    store = Survivorship(Installation().engine)
    done = store.set(district, _parsed(values), actor=current_actor(), reason=reason)
    emit(as_json, {"policy": _plain(done)}, lambda console: console.print(_policies(done)))


@app.command()
def check(
    district: District,
    values: Values,
    *,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most this many students.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Say which values another policy would change, and change nothing: per attribute how many, and of which students.

    Every published school year is merged twice, as it is set and as it would be; that takes as long as two merges.
    """
    from sis_pipeline.store.survivorship import Survivorship

    installation = Installation()
    store = Survivorship(installation.engine)
    now, then = store.policies(district), store.proposed(district, _parsed(values))
    found = _differences(installation, district, now.policies, then.policies)
    counts = dict(found.group_by("attribute").len().sort("attribute").iter_rows())
    rows = found.head(limit).rows(named=True)
    document = {
        "district": district,
        "proposed": then.values,
        "values": found.height,
        "students": found["student_id"].n_unique(),
        "attributes": counts,
        "changes": rows,
    }

    def render(console: Console) -> None:
        title = f"{counted(found.height, 'value')} would change"
        cells = [(name, count, now.policies.rule(name), then.policies.rule(name)) for name, count in counts.items()]
        console.print(table(title, ("attribute", "values", "policy now", "policy then"), cells, right=("values",)))
        if rows:
            shown = f", {len(rows):,} shown (--limit)" if len(rows) < found.height else ""
            told = [(row["student_id"], row["attribute"], row["school_year"]) for row in rows]
            console.print(table(f"Of these students{shown}", ("student id", "attribute", "school year"), told))

    emit(as_json, document, render)


def _differences(installation: Installation, district: str, now: Policies, then: Policies) -> pl.DataFrame:
    """attribute, student_id, school_year of the values that a merge would publish otherwise under `then`."""
    from dataclasses import replace

    import polars as pl

    from sis_pipeline.roster.district import merge_district
    from sis_pipeline.roster.merge import changed_values

    parts = [pl.DataFrame(schema=dict.fromkeys(("attribute", "student_id", "school_year"), pl.String))]
    merges = installation.merges
    for year in merges.published_years(district):
        inputs = merges.preview(district, year).inputs
        frames = [merge_district(replace(inputs, policies=policies)).frames for policies in (now, then)]
        parts.append(changed_values(*frames).with_columns(school_year=pl.lit(year)))
    return pl.concat(parts).sort("attribute", "student_id", "school_year")


def _parsed(values: list[str]) -> dict[str, str]:
    found = {}
    for given in values:
        name, equals, policy = given.partition("=")
        if not equals:
            raise RefusalError(f"{given!r} is no ATTRIBUTE=POLICY.", "Write it as phone=local_wins.")
        if name in found:
            raise RefusalError(f"{name!r} is given twice.", "Name each attribute once.")
        found[name] = policy
    return found


def _policies(found: PolicyVersion) -> Any:
    from sis_pipeline.roster.policies import ABOUT, DEFAULT, PERSONAL

    policies = found.policies
    rows = [(DEFAULT, policies.default, "", ABOUT[policies.default])]
    for name in PERSONAL:
        own = policies.rule(name)
        rows.append((name, own, "set" if name in found.values else "by default", ABOUT[own]))
    title = f"Policies of {found.district}, " + (f"version {found.version}" if found.version else "all by default")
    return table(title, ("attribute", "policy", "", "whose value is published"), rows)


def _plain(found: PolicyVersion) -> dict[str, Any]:
    """The policy of every attribute as it holds, and apart what is set."""
    from sis_pipeline.roster.policies import PERSONAL

    policies = found.policies
    return {
        "district": found.district,
        "version": found.version,
        "default": policies.default,
        "policies": {name: policies.rule(name) for name in PERSONAL},
        "set": found.values,
    }


def _flat(found: PolicyVersion) -> str:
    return ", ".join(f"{name}={policy}" for name, policy in found.values.items()) or "all by default"
