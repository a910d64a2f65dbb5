"""A district's account rules, versioned, and its accounts, brought to what the published roster says.
What follows from the rules is decided in roster.accounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final

import polars as pl
from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import account_rules, accounts, roster_tables, spent_usernames
from sis_pipeline.roster import accounts as deciding
from sis_pipeline.roster.account_rules import DEFAULT, AccountRules, Value, check, check_name
from sis_pipeline.roster.accounts import Decision, Roster, decide
from sis_pipeline.roster.contract import DistrictInputs, MergedRoster
from sis_pipeline.roster.enrollments import OPEN
from sis_pipeline.roster.model import ACCOUNTS
from sis_pipeline.roster.usernames import mark
from sis_pipeline.store import bulk, decisions
from sis_pipeline.store.guarding import today_of
from sis_pipeline.store.integrations import check_district
from sis_pipeline.store.locks import begin_writing
from sis_pipeline.store.merged import steady_view

STUDENTS: Final = "select * from sis.students where district = %s"
STAFF: Final = "select * from sis.staff where district = %s"
LINKS: Final = "select distinct staff_id from sis.staff_links where district = %s and active"
STAYS: Final = "select * from sis.enrollments where district = %s and status = any(%s)"
POSTS: Final = """
select distinct e.person_id as staff_id, s.school_id, e.school_year from sis.section_enrollments e
join sis.sections s on s.district = e.district and s.section_id = e.section_id
where e.district = %s and e.role <> 'student' and (e.end_date is null or e.end_date > %s)
union select teacher_id, school_id, school_year from sis.sections where district = %s and teacher_id is not null
"""


@dataclass(frozen=True, slots=True)
class RulesVersion:
    """One version of a district's rules; version 0 is that of a district that never had any, and has no accounts."""

    district: str
    version: int = 0
    values: Mapping[str, Value] = field(default_factory=dict)
    set_by: str | None = None
    reason: str | None = None
    set_at: datetime | None = None
    followed_on: date | None = None

    @property
    def rules(self) -> AccountRules:
        """Raises ConfigError where what is set is wrong."""
        return _valid(self.district, self.values)


@dataclass(frozen=True, slots=True)
class Set:
    """Rules that were set, and what became of the accounts by them at once."""

    rules: RulesVersion
    counts: Mapping[str, int]


class Accounts:
    """The accounts of this installation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def rules(self, district: str) -> RulesVersion:
        with self._engine.connect() as connection:
            return _newest(connection, check_district(district))

    def history(self, district: str) -> list[RulesVersion]:
        """Every version, the newest first."""
        query = select(account_rules).where(account_rules.c.district == check_district(district))
        with self._engine.connect() as connection:
            return [RulesVersion(*row) for row in connection.execute(query.order_by(account_rules.c.version.desc()))]

    def plan(self, district: str, values: Mapping[str, Value]) -> tuple[RulesVersion, Decision]:
        """What `set` would do; nothing is kept. Raises ConfigError as it does."""
        with steady_view(self._engine) as connection:
            old = _newest(connection, check_district(district))
            then = RulesVersion(district, old.version + 1, _changed(district, old.values, values))
            today = today_of(connection)
            return then, _decided(connection, district, _roster(connection, district, today), then.rules, today)

    def set(self, district: str, values: Mapping[str, Value], *, actor: str, reason: str) -> Set:
        """Set rules, the rest stays, and bring the accounts to them in the same transaction. Where nothing differs,
        nothing is kept.

        `values`: setting -> value; `default` takes one back. Raises ConfigError for what can't be set, and without a
        reason.
        """
        if not (reason.strip() and actor.strip()):
            raise ConfigError(
                "A change of the account rules needs who makes it and why.",
                code="config.account_reason",
                advice="Give both, and run it again.",
            )
        with self._engine.begin() as connection:
            begin_writing(connection, check_district(district))
            old = _newest(connection, district)
            changed = _changed(district, old.values, values)
            if changed == old.values:
                return Set(old, {})
            kept = {"version": old.version + 1, "rules": changed, "set_by": actor, "reason": reason}
            connection.execute(account_rules.insert().values(district=district, **kept))
            counts = follow(connection, district)
            details = {"version": old.version + 1, "reason": reason, "set": dict(values), "accounts": counts}
            audit.append(connection, "accounts.rules", district, district=district, actor=actor, details=details)
            return Set(_newest(connection, district), counts)

    def follow_days(self, *, dry_run: bool = False) -> dict[str, int]:
        """Bring the accounts of every district to this day, where no publication did: a grace period is over, an entry
        date has come. How many districts that were, and what changed. Raises ConfigError for the first district whose
        rules are wrong, after the others were seen to. `dry_run` undoes it all."""
        with self._engine.connect() as connection:
            districts = connection.scalars(select(account_rules.c.district).distinct().order_by("district")).all()
        found, wrong = [], []
        for one in districts:
            try:
                counts = self._follow_day(one, dry_run=dry_run)
            except ConfigError as error:  # its own trouble, and no other district's
                wrong.append(error)
            else:
                found += [] if counts is None else [counts]
        if wrong:
            raise wrong[0]
        return {"districts": len(found)} | {name: sum(one.get(name, 0) for one in found) for name in Decision.CHANGES}

    def _follow_day(self, district: str, *, dry_run: bool) -> Mapping[str, int] | None:
        with self._engine.begin() as connection:
            begin_writing(connection, district)
            if _newest(connection, district).followed_on == today_of(connection):
                return None
            counts = follow(connection, district)
            if dry_run:
                connection.rollback()
            elif any(counts.get(name) for name in Decision.CHANGES):
                audit.append(connection, "accounts.follow", district, district=district, details=counts)
            return counts


def follow(connection: Connection, district: str) -> dict[str, int]:
    """Bring a district's accounts to what its tables say now, in the caller's transaction, which has the district locked.

    What the guard holds is in the tables as it was before, so it suspends nobody. The counts of what was done; none
    where the district has no rules. Raises ConfigError where the rules are wrong.
    """
    newest = _newest(connection, district)
    rules = newest.rules
    if not rules.kinds:
        return {}
    today = today_of(connection)
    decision = _decided(connection, district, _roster(connection, district, today), rules, today)
    written = pl.concat([decision.changed, decision.made])
    if written.height:
        bulk.apply(connection, ACCOUNTS, written, scope={"district": district}, delete_absent=False)
    this = (account_rules.c.district == district) & (account_rules.c.version == newest.version)
    differs = account_rules.c.followed_on.is_distinct_from(today)
    connection.execute(update(account_rules).where(this, differs).values(followed_on=today))
    return decision.counts


def planned(connection: Connection, inputs: DistrictInputs, merged: MergedRoster) -> Decision | None:
    """What `follow` would do once a merge is published; None where the district has no rules. Raises as it does."""
    rules = _newest(connection, inputs.district).rules
    if not rules.kinds:
        return None
    today = today_of(connection)
    retired = {**merged.retired, **merged.retired_staff}
    roster = _roster(connection, inputs.district, today)
    after = deciding.after_publication(roster, merged.frames, retired, inputs.school_year, today)
    return _decided(connection, inputs.district, after, rules, today)


def spend_usernames(connection: Connection, district: str, person_ids: Sequence[str]) -> None:
    """Before people are erased: keep a mark of their user names, so that nobody else ever gets one."""
    query = select(accounts.c.username).where(accounts.c.district == district, accounts.c.person_id.in_(person_ids))
    marks = [{"district": district, "mark": mark(one)} for one in connection.scalars(query)]
    if marks:
        connection.execute(insert(spent_usernames).on_conflict_do_nothing(), marks)


def _decided(connection: Connection, district: str, roster: Roster, rules: AccountRules, today: date) -> Decision:
    existing = bulk.read(connection, ACCOUNTS, {"district": district})
    spent = frozenset(connection.scalars(select(spent_usernames.c.mark).where(spent_usernames.c.district == district)))
    return decide(district, existing, roster, rules, today, spent=spent)


def _roster(connection: Connection, district: str, today: date) -> Roster:
    def read(query: str, kinds: Any, *parameters: object) -> pl.DataFrame:
        return bulk.copy_out(connection, query, kinds, [district, *parameters])

    sessions = roster_tables["academic_sessions"].c
    begins = dict(
        connection.execute(
            select(sessions.school_year, func.max(sessions.start_date))
            .where(sessions.district == district, sessions.kind == "school_year")
            .group_by(sessions.school_year)
        ).all()
    )
    stays = read(STAYS, deciding.STAY, list(OPEN))
    return Roster(
        students=read(STUDENTS, deciding.STUDENT),
        staff=read(STAFF, deciding.STAFF),
        stays=stays,
        posts=read(POSTS, deciding.POST, today, district),
        links=read(LINKS, deciding.LINK),
        years=dict.fromkeys(stays["school_year"].unique().sort()) | begins,
        aliases=decisions.aliases(connection, district),
    )


def _changed(district: str, old: Mapping[str, Value], values: Mapping[str, Value]) -> dict[str, Value]:
    merged = {**old, **values}
    kept = {name: value for name, value in sorted(merged.items()) if value != DEFAULT}
    try:
        for name in values.keys() - old.keys():
            check_name(name)
        AccountRules.of(kept)
        return {name: check(name, value) for name, value in kept.items()}
    except ValueError as error:
        raise ConfigError(
            f"The account rules of {district} can't be set: {error}.",
            code="config.account_rule",
            advice="`sis accounts rules show DISTRICT` lists what can be set.",
        ) from None


def _valid(district: str, values: Mapping[str, Value]) -> AccountRules:
    try:
        return AccountRules.of(values)
    except ValueError as error:
        raise ConfigError(
            f"The account rules of {district} are wrong: {error}.",
            code="config.account_rule",
            advice=f"`sis accounts rules set {district} SETTING=default --reason …` takes a wrong one back.",
        ) from None


def _newest(connection: Connection, district: str) -> RulesVersion:
    query = select(account_rules).where(account_rules.c.district == district)
    row = connection.execute(query.order_by(account_rules.c.version.desc()).limit(1)).one_or_none()
    return RulesVersion(*row) if row else RulesVersion(district)
