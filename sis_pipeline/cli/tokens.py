"""`sis tokens`: how every token does, and having them replaced, given back or tidied, one by one or all at once.
What a token goes through is `connect.tokens`'; doing it for many is `defs.token_work`'s; the keys are in `rotation`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli import rotation
from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, ExitCode, RefusalError, counted, emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.connect.source import HttpSource
    from sis_pipeline.connect.upkeep import TokenHealth
    from sis_pipeline.store.integrations import Integration

app = typer.Typer(help="OAuth tokens: their health, and refreshing, revoking and sealing them.", no_args_is_help=True)
app.command("rotate-keys")(rotation.rotate_keys)
app.command("retire-key")(rotation.retire_key)

RECENT = timedelta(hours=1)
"""What was refreshed within this time, and is good, is not refreshed again in bulk: so an interrupted call is repeated."""
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(words: str) -> timedelta:
    """`90s`, `30m`, `2h`, `7d`."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", words.strip())
    if found is None:
        raise typer.BadParameter("give a number and s, m, h or d, as in 30m or 2h")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY", help="The integrations' keys.", show_default=False)]  # fmt: skip
All = Annotated[bool, typer.Option("--all", help="Those of every integration.")]
Provider = Annotated[str | None, typer.Option(help="Those of this provider's integrations.")]
District = Annotated[str | None, typer.Option(help="Those of this district's integrations.")]
OlderThan = Annotated[
    timedelta | None,
    typer.Option(parser=duration, metavar="AGE", help="Only those not refreshed within this time, as 30m, 2h or 7d."),
]
Parallel = Annotated[int, typer.Option(min=1, max=8, help="How many integrations at once.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]


@app.command()
def status(keys: Keys = None, *, provider: Provider = None, district: District = None, as_json: AsJson = False) -> None:
    """Tell how every token does, the problems first, without opening any.

    Exit code 5 where one waits for a person; what is tried again by itself leaves it at 0.
    """
    from sis_pipeline.connect.keys import rows_per_key
    from sis_pipeline.connect.upkeep import token_health

    here = Installation()
    chosen = {one.key for one in _named(here, keys or [], provider, district)}
    everything = not (keys or provider or district)
    with here.engine.connect() as connection:
        found = [
            one
            for one in token_health(connection)
            if (everything or one.integration in chosen) and (one.stored or one.status != "active" or one.failures)
        ]
        sealed = rows_per_key(connection)
    found.sort(key=lambda one: (not one.waits_for_a_person, one.advice is None, one.integration, one.kind))
    waiting = sum(one.waits_for_a_person for one in found)
    document = {"ok": not waiting, "tokens": [asdict(one) for one in found], "keys": sealed}

    def render(console: Console) -> None:
        columns = ("integration", "kind", "status", "expires", "last refresh", "failures", "sealed by", "what to do")
        rows = [
            (one.integration, one.kind, one.status, _expires(one), one.last_refreshed_at, one.failures or None, one.key_id, _what_to_do(one))
            for one in found
        ]  # fmt: skip
        title = f"{counted(len(found), 'secret')}, {waiting or 'none'} waiting for a person"
        console.print(table(title, columns, rows, right=("failures",)))
        for key_id, count in sealed.items():
            console.print(f"Key {key_id} seals {counted(count, 'row')}.", markup=False)

    emit(as_json, document, render)
    if waiting:
        raise typer.Exit(ExitCode.PERSON)


@app.command()
def refresh(
    keys: Keys = None,
    *,
    everything: All = False,
    provider: Provider = None,
    district: District = None,
    older_than: OlderThan = None,
    parallel: Parallel = 4,
    as_json: AsJson = False,
) -> None:
    """Have new access tokens, within the rate limits that all processes share. One that fails stops no other.

    Unless they are named, integrations are left out that are paused, wait for a person or have no token, and those
    refreshed within the last hour (or --older-than) whose token is good. So the same command, given again after it was
    interrupted or some failed, goes on with those that are left; --older-than 0s begins anew. One that waited for a person
    because its credentials were refused, and has a new token now, is synced again.
    """
    from sis_pipeline.defs.token_work import refreshing

    here = Installation()
    asked = _asked(here, keys or [], provider, district, everything=everything, narrowed=older_than is not None)
    known = _tokens(here, asked)
    age = older_than if older_than is not None else None if keys else RECENT

    def spared(one: Integration) -> str | None:
        unsuited = None if keys else _unsuited(one, known.rows[one.key])
        return unsuited or _too_young(known, one.key, age)

    report = _done(here, asked, spared, refreshing(here.integrations), "refreshed", parallel=parallel)
    _tell(report, as_json)


@app.command()
def revoke(
    keys: Keys = None,
    *,
    everything: All = False,
    provider: Provider = None,
    district: District = None,
    older_than: OlderThan = None,
    parallel: Parallel = 4,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Give tokens back to the servers that gave them (RFC 7009). One that fails stops no other.

    A token counts as revoked once its server has said so; until then it is revocation_pending, is not used any more,
    and is tried again by the daemon, or by the same command: what is given back already has nothing left to give.
    """
    from sis_pipeline.connect.source import HttpSource

    here = Installation()
    asked = _asked(here, keys or [], provider, district, everything=everything, narrowed=older_than is not None)
    known = _tokens(here, asked)

    def spared(one: Integration) -> str | None:
        if not any(token.stored for token in known.rows[one.key]):
            return "without a token to give back"
        return _too_young(known, one.key, older_than)

    chosen = [one for one in asked if spared(one) is None]
    if chosen:
        _confirm(_consequences(chosen, known.rows), yes=yes)
    report = _done(here, asked, spared, HttpSource.revoke_tokens, "revoked", parallel=parallel)
    _tell(report, as_json)


@app.command()
def cleanup(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Empty access tokens that ended over an hour ago, and delete what belongs to no integration.

    The daemon does it every night. Needs the encryption key, because an emptied row is sealed as well.
    """
    from sis_pipeline.connect.upkeep import cleanup as clean

    done = clean(Installation().vault, dry_run=dry_run)
    orphans = sum(done.deleted.values())
    would = "would be " if dry_run else ""
    words = (
        f"{counted(done.emptied, 'expired token')} {would}emptied, {counted(orphans, 'orphaned row')} {would}deleted."
    )
    emit(as_json, {"dry_run": dry_run, **asdict(done)}, lambda console: console.print(words))


# Which


def _named(here: Installation, keys: Sequence[str], provider: str | None, district: str | None) -> list[Integration]:
    """The integrations with these keys, or all of the provider and the district. Raises for what nothing has."""
    if keys and (provider or district):
        raise RefusalError("Name integrations, or choose them by --provider and --district; not both.")
    if keys:
        return [here.integrations.get(key) for key in dict.fromkeys(keys)]
    found = here.integrations.list(provider, district)
    if not found and (provider or district):
        of = " and ".join(f"{what} {name}" for what, name in (("provider", provider), ("district", district)) if name)
        raise RefusalError(f"There is no integration of {of}.", "`sis integration list` shows those there are.")
    return found


def _asked(
    here: Installation,
    keys: Sequence[str],
    provider: str | None,
    district: str | None,
    *,
    everything: bool,
    narrowed: bool,
) -> list[Integration]:
    """Nothing is done to all tokens because somebody forgot to say whose. `narrowed`: --older-than says it."""
    if everything and (keys or provider or district):
        raise RefusalError("--all is every integration; leave out the others, or --all.")
    if not (keys or provider or district or everything or narrowed):
        raise RefusalError(
            "Say whose tokens.", "Name integrations, or give --all, --provider, --district or --older-than."
        )
    return _named(here, keys, provider, district)


@dataclass(frozen=True)
class _Known:
    """The tokens of integrations (never their client secrets), and the time on the database's clock."""

    rows: Mapping[str, list[TokenHealth]]
    now: datetime


def _tokens(here: Installation, integrations: Iterable[Integration]) -> _Known:
    from sis_pipeline.connect.upkeep import token_health
    from sis_pipeline.store.health import database_now

    rows: dict[str, list[TokenHealth]] = {one.key: [] for one in integrations}
    with here.engine.connect() as connection:
        for one in token_health(connection):
            if one.integration in rows and one.kind != "client_secret":
                rows[one.integration].append(one)
        return _Known(rows, database_now(connection))


def _unsuited(integration: Integration, tokens: Sequence[TokenHealth]) -> str | None:
    """Why a bulk refresh leaves an integration out, in a few words; None where it does not."""
    used = _used(tokens)
    statuses = {one.status for one in used}
    reasons = {
        "paused": integration.paused,
        "waiting for a person": "needs_reauth" in {integration.status, *statuses},
        "given back": bool(statuses & {"revoked", "revocation_pending"}),
        "without a token": not any(one.stored for one in used),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _used(tokens: Sequence[TokenHealth]) -> list[TokenHealth]:
    """Without those that were replaced, and are only still to be given back."""
    from sis_pipeline.connect.vault import TOKENS

    return [one for one in tokens if one.kind in TOKENS]


def _too_young(known: _Known, key: str, age: timedelta | None) -> str | None:
    """`refreshed within 1 h`, where all tokens that are used were, and are good."""
    if age is None:
        return None
    stored = [one for one in _used(known.rows[key]) if one.stored]
    good = all(not one.failures and (one.expires_in is None or one.expires_in > 0) for one in stored)
    young = all(one.last_refreshed_at is not None and one.last_refreshed_at > known.now - age for one in stored)
    return f"refreshed within {_span(age)}" if stored and good and young else None


# Doing it


@dataclass
class _Report:
    """What a bulk command did. `results`: one per integration that was asked for, with its tokens as they are now."""

    verb: str
    results: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def count(self, result: str) -> int:
        return sum(one["result"] == result for one in self.results)


def _done(
    here: Installation,
    asked: Sequence[Integration],
    spared: Callable[[Integration], str | None],
    work: Callable[[HttpSource], object],
    verb: str,
    *,
    parallel: int,
) -> _Report:
    from sis_pipeline.cli.boundary import explain
    from sis_pipeline.cli.progress import Counting
    from sis_pipeline.defs.token_work import Effort, on_each

    report = _Report(verb)
    report.left_out = {one.key: why for one in asked if (why := spared(one)) is not None}
    chosen = [one for one in asked if one.key not in report.left_out]
    if not chosen:
        return report
    errors: dict[str, Exception | None] = {}
    with Counting(verb.capitalize(), len(chosen)) as told:
        for outcome in on_each(chosen, work, vault=here.vault, engine=here.engine, effort=Effort(parallel=parallel)):
            errors[outcome.integration.key] = outcome.error
            told()
    after = _tokens(here, chosen).rows
    for key, error in sorted(errors.items(), key=lambda item: (item[1] is not None, item[0])):
        tokens = [
            {"kind": one.kind, "status": one.status, "stored": one.stored, "expires_in_seconds": one.expires_in}
            for one in after[key]
            if one.stored or one.status != "active"
        ]
        facts = explain(error).facts if error else None
        report.results.append(
            {"integration": key, "result": "failed" if error else verb, "tokens": tokens, "error": facts}
        )
    return report


def _tell(report: _Report, as_json: bool) -> None:
    failed, done = report.count("failed"), report.count(report.verb)
    document = {
        "ok": not failed,
        report.verb: done,
        "failed": failed,
        "results": report.results,
        "left_out": report.left_out,
    }

    def render(console: Console) -> None:
        rows = [
            (one["integration"], one["result"], _states(one["tokens"]), (one["error"] or {}).get("message"), (one["error"] or {}).get("advice"))
            for one in report.results
        ]  # fmt: skip
        if rows:
            title = f"{counted(done, 'integration')} {report.verb}, {failed or 'none'} failed"
            console.print(table(title, ("integration", "result", "tokens", "what went wrong", "what to do"), rows))
        for why, count in Counter(report.left_out.values()).items():
            console.print(f"Left out: {counted(count, 'integration')} {why}.", markup=False)
        if not rows and not report.left_out:
            console.print("There is no integration.")
        if failed:
            console.print(f"The same command goes on with the {failed:,} that failed.")

    emit(as_json, document, render)
    if failed:
        raise typer.Exit(ExitCode.FAILED)


def _consequences(chosen: Sequence[Integration], rows: Mapping[str, list[TokenHealth]]) -> str:
    by_person = [one.key for one in chosen if any(token.kind.startswith("refresh") for token in rows[one.key])]
    named = ", ".join(one.key for one in chosen[:5]) + (f" and {len(chosen) - 5:,} more" if len(chosen) > 5 else "")
    said = [f"The tokens of {counted(len(chosen), 'integration')} will be given back: {named}."]
    if by_person:
        said.append(f"A person has to grant access again (`sis oauth authorize KEY`) to {len(by_person):,} of them.")
    if len(by_person) < len(chosen):
        alone = len(chosen) - len(by_person)
        said.append(f"A new token is fetched at the next sync for {alone:,} of them, unless it is paused.")
    return " ".join(said)


def _confirm(consequences: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusalError(f"{consequences} That needs a confirmation.", "Add --yes.")
    typer.confirm(f"{consequences} Go on?", abort=True, err=True)


# Words


def _states(tokens: Sequence[Mapping[str, Any]]) -> str:
    """`access active for 59 min, refresh active`."""
    said = []
    for one in tokens:
        left = one["expires_in_seconds"]
        lives = f" for {_span(timedelta(seconds=left))}" if one["status"] == "active" and left and left > 0 else ""
        said.append(f"{one['kind']} {one['status']}{lives}")
    return ", ".join(said)


def _expires(one: TokenHealth) -> str:
    if one.expires_in is None:
        return "" if one.stored else "nothing stored"
    span = _span(timedelta(seconds=abs(one.expires_in)))
    return f"in {span}" if one.expires_in > 0 else f"{span} ago"


def _what_to_do(one: TokenHealth) -> str:
    return " ".join(part for part in (one.last_error, one.advice) if part) if one.advice else ""


def _span(span: timedelta) -> str:
    seconds = span.total_seconds()
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
