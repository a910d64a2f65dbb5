"""What the guard of a district goes by: its thresholds, schools declared closed or new, and what persons decided about holds.
What follows from it is the roster guard's; deciding about a hold belongs to `holds`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Literal, cast
from uuid import UUID

import polars as pl
from sqlalchemy import Connection, Engine, func, insert, or_, select, text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import SCHEMA, guard_settings, holds, roster_tables, school_declarations
from sis_pipeline.roster.freeze import CALENDAR
from sis_pipeline.roster.guard import OPENING_DAYS, WEEK_DAYS, Ruling, Rulings
from sis_pipeline.roster.identity import numbered_school
from sis_pipeline.roster.thresholds import DEFAULTS, OF_SCHOOLS, Thresholds, Value
from sis_pipeline.store.integrations import check_district
from sis_pipeline.store.locks import lock_district

Declared = Literal["close", "open"]
PIPELINE = "sis_pipeline"
"""Who closes a hold whose removals are no longer pending."""
WAITING = holds.c.removals["pinned"].as_boolean() & (
    (holds.c.status == "open") | ((holds.c.status == "discarded") & (holds.c.decided_by != PIPELINE))
)
"""Holds that wait whatever their number: the rest of one released in part, and what a person keeps as published."""
NOTHING_SET: dict[str, dict[str, Value]] = {"district": {}, "schools": {}}
"""The settings of a district that took all of them back."""

REMOVED_LATELY = text(f"""
select count(*) from {SCHEMA}.enrollment_changes c
where c.district = :district and c.detected_at > {SCHEMA}.clock() - make_interval(days => :days)
  and c.school_year = :school_year and c.evidence = 'absence' and c.kind in ('withdraw', 'no_show')
  and c.school_id::text <> all(cast(:closed as text[]))
  and c.operation_id in (select operation_id from {SCHEMA}.standing_operations(:district))
  and (c.student_id::text, c.school_id::text) not in (
    select key ->> 0, key ->> 1 from {SCHEMA}.holds h cross join lateral jsonb_array_elements(h.rows) as key
    where h.district = :district and h.school_year = :school_year and h.status = 'applied'
      and h.removals ->> 'entity' = 'enrollments' and key ->> 0 is not null and key ->> 1 is not null)
""")
"""Enrollments that ended by absence in the last days, but those that a person let through or took back, or whose school
closed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One version of a district's settings; version 0 is that of a district that never had any."""

    district: str
    version: int = 0
    values: Mapping[str, Value] = field(default_factory=dict)
    schools: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    set_by: str | None = None
    reason: str | None = None
    set_at: datetime | None = None

    @property
    def thresholds(self) -> Thresholds:
        """Raises ConfigError where what is set is wrong."""
        return _valid(self.district, self.values, self.schools)


@dataclass(frozen=True, slots=True)
class Declaration:
    """A person's word that a school closes, or opens, on a day. `name`: as published, None where it is not yet."""

    district: str
    declaration: int
    school_id: str
    kind: Declared
    effective: date
    declared_by: str
    reason: str
    declared_at: datetime
    name: str | None = None


class Guarding:
    """The guard's settings and declarations, of every district of this installation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def settings(self, district: str) -> Settings:
        with self._engine.connect() as connection:
            return _newest(connection, check_district(district))

    def history(self, district: str) -> list[Settings]:
        """Every version, the newest first."""
        query = select(guard_settings).where(guard_settings.c.district == check_district(district))
        with self._engine.connect() as connection:
            return [_settings(row) for row in connection.execute(query.order_by(guard_settings.c.version.desc()))]

    def set(
        self, district: str, values: Mapping[str, Value], *, school: str | None = None, actor: str, reason: str
    ) -> Settings:
        """Set thresholds of a district or of one of its schools; the rest stays. Where nothing differs, nothing is kept.

        Raises ConfigError for values that are wrong, an unknown school, and without a reason.
        """
        return self._change(district, dict(values), (), school=school, actor=actor, reason=reason)

    def reset(
        self, district: str, names: Sequence[str] = (), *, school: str | None = None, actor: str, reason: str
    ) -> Settings:
        """Take settings back to the defaults: the named ones, or all of the district or school. Raises as `set`."""
        known = tuple(DEFAULTS) if school is None else OF_SCHOOLS
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ConfigError(
                f"{', '.join(unknown)} can't be reset.",
                code="config.guard_setting",
                advice=f"Choose from {', '.join(known)}.",
            )
        return self._change(district, None, names, school=school, actor=actor, reason=reason)

    def _change(
        self,
        district: str,
        values: Mapping[str, Value] | None,
        without: Sequence[str],
        *,
        school: str | None,
        actor: str,
        reason: str,
    ) -> Settings:
        _give_reason(actor, reason)
        with self._engine.begin() as connection:
            lock_district(connection, check_district(district))
            old = _newest(connection, district)
            own = None if school is None else find_school(connection, district, school)[0]
            district_values, schools = dict(old.values), {key: dict(found) for key, found in old.schools.items()}
            changed = district_values if own is None else schools.setdefault(own, {})
            if values is not None:
                changed.update(values)
            else:
                kept = {name: value for name, value in changed.items() if without and name not in without}
                changed.clear()
                changed.update(kept)
                if school is None and not without:
                    schools.clear()
            schools = {key: found for key, found in schools.items() if found}
            _valid(district, district_values, schools)
            if (district_values, schools) == (old.values, old.schools):
                return old
            connection.execute(
                guard_settings.insert().values(
                    district=district,
                    version=old.version + 1,
                    settings={"district": district_values, "schools": schools},
                    set_by=actor,
                    reason=reason,
                )
            )
            details: dict[str, object] = {"version": old.version + 1, "reason": reason, "school_id": own}
            details |= {"set": dict(values)} if values is not None else {"reset": list(without) or "all"}
            audit.append(connection, "guard.set", district, district=district, actor=actor, details=details)
            return _newest(connection, district)

    def declare(
        self, kind: Declared, school: str, district: str, *, effective: date, actor: str, reason: str
    ) -> Declaration:
        """Keep a person's word that a school closes or opens. A new school is named by its number before it is published.

        Raises ConfigError for a school that the district does not have, and without a reason.
        """
        _give_reason(actor, reason)
        with self._engine.begin() as connection:
            school_id, name = find_school(connection, check_district(district), school, unpublished=kind == "open")
            row = connection.execute(
                insert(school_declarations)
                .values(
                    district=district,
                    school_id=school_id,
                    kind=kind,
                    effective=effective,
                    declared_by=actor,
                    reason=reason,
                )
                .returning(school_declarations)
            ).one()
            details = {"effective": effective.isoformat(), "reason": reason}
            audit.append(connection, f"school.{kind}", school_id, district=district, actor=actor, details=details)
            return Declaration(**row._mapping, name=name)  # noqa: SLF001

    def declarations(self, district: str) -> list[Declaration]:
        """Every one, the newest first."""
        schools = roster_tables["schools"].c
        query = (
            select(school_declarations, schools.name)
            .outerjoin_from(
                school_declarations,
                roster_tables["schools"],
                (schools.district == school_declarations.c.district)
                & (schools.school_id == school_declarations.c.school_id),
            )
            .where(school_declarations.c.district == check_district(district))
            .order_by(school_declarations.c.declaration.desc())
        )
        with self._engine.connect() as connection:
            return [Declaration(**row._mapping) for row in connection.execute(query)]  # noqa: SLF001


def find_school(
    connection: Connection, district: str, school: str, *, unpublished: bool = False
) -> tuple[str, str | None]:
    """The id and name of a published school, by its id, number or name. Raises ConfigError where it is none, or several.

    With `unpublished`, what no school is called is the number of one that is still to come.
    """
    if not school.strip():
        raise ConfigError(
            "The school's name is empty.",
            code="config.no_school",
            advice="Name the school by its id, number or name; an unset variable is no name.",
        )
    schools = roster_tables["schools"].c
    named = [schools.school_number == school, func.lower(schools.name) == school.lower()]
    if _is_uuid(school):
        named.append(schools.school_id == school)
    query = select(schools.school_id, schools.name).where(schools.district == district, or_(*named))
    found = connection.execute(query.order_by(schools.school_id)).all()
    if len(found) == 1:
        return found[0].school_id, found[0].name
    if found:
        raise ConfigError(
            f"{len(found)} schools of {district} are called {school[:80]!r}.",
            code="config.no_school",
            advice=f"Name it by its id: {', '.join(row.school_id for row in found[:5])}.",
        )
    if unpublished:
        return numbered_school(district, school), None
    raise ConfigError(
        f"{district} has no published school {school[:80]!r}.",
        code="config.no_school",
        advice="Name it by its id, number or name, as in the table `schools`.",
    )


def thresholds(connection: Connection, district: str) -> Thresholds:
    """Raises ConfigError where what is set is wrong."""
    return _newest(connection, district).thresholds


def rulings(connection: Connection, district: str, school_year: str, today: date) -> Rulings:
    """What persons decided about removals of a district's school year, and what went lately."""
    same = (holds.c.district == district) & (holds.c.school_year == school_year)
    closed, opened = _declared(connection, district, today)
    lately = connection.scalar(
        REMOVED_LATELY,
        {"district": district, "school_year": school_year, "days": WEEK_DAYS, "closed": sorted(closed)},
    )
    return Rulings(
        released=_rulings(connection, same & (holds.c.status == "released")),
        waiting=_rulings(connection, same & WAITING),
        closed=closed,
        opened=opened,
        removed_lately=lately or 0,
    )


def released(connection: Connection, district: str, school_year: str) -> frozenset[str]:
    """Fingerprints of the released holds."""
    same = (holds.c.district == district) & (holds.c.school_year == school_year)
    return frozenset(connection.scalars(select(holds.c.fingerprint).where(same, holds.c.status == "released")))


def rules(connection: Connection, district: str, school_year: str) -> list[object]:
    """What a merge depends on beside snapshots and released holds, where it is not as by default; see `rulings`.

    Of the days only those count on which something changes: a declaration takes effect, a freeze is over. The settings
    are taken as they are written: wrong ones are their district's trouble when it is merged, and no other's.
    """
    today = today_of(connection)
    newest = _newest_row(connection, district)
    declared = [sorted(schools) for schools in _declared(connection, district, today)]
    thawed = connection.scalars(
        select(holds.c.hold_id)
        .where(
            holds.c.district == district,
            holds.c.school_year == school_year,
            holds.c.status == "open",
            holds.c.removals["until"].as_string() <= today.isoformat(),
        )
        .order_by(holds.c.hold_id)
    ).all()
    found: list[object] = [newest.settings] if newest and newest.settings != NOTHING_SET else []
    return [*found, *([declared] if any(declared) else []), *([list(thawed)] if thawed else [])]


def today_of(connection: Connection) -> date:
    """The database's day, in UTC."""
    return cast("date", connection.scalar(text(f"select {SCHEMA}.clock()::date")))


def calendar(connection: Connection, district: str, school_year: str) -> pl.DataFrame:
    """The published sessions of whole school years, but those of the one that is merged."""
    sessions = roster_tables["academic_sessions"].c
    query = select(*(sessions[name] for name in CALENDAR)).where(
        sessions.district == district, sessions.kind == "school_year", sessions.school_year != school_year
    )
    return pl.DataFrame([tuple(row) for row in connection.execute(query)], schema=CALENDAR, orient="row")


def _declared(connection: Connection, district: str, today: date) -> tuple[frozenset[str], frozenset[str]]:
    """The schools that are closed, and those that have just opened, as the last word about each says.

    A closing, or opening, takes the place of the one declared before it, also where its own day is still to come.
    """
    table = school_declarations.c
    query = select(table.school_id, table.kind, table.effective, table.declaration).where(table.district == district)
    newest = {(row.school_id, row.kind): row for row in connection.execute(query.order_by(table.declaration))}
    in_effect = sorted((row for row in newest.values() if row.effective <= today), key=lambda row: row.declaration)
    last = {row.school_id: row for row in in_effect}
    young = today - timedelta(days=OPENING_DAYS)
    return (
        frozenset(school for school, row in last.items() if row.kind == "close"),
        frozenset(school for school, row in last.items() if row.kind == "open" and row.effective > young),
    )


def _rulings(connection: Connection, condition: Any) -> tuple[Ruling, ...]:
    query = select(holds.c.fingerprint, holds.c.removals, holds.c.rows).where(condition).order_by(holds.c.fingerprint)
    return tuple(
        Ruling(row.fingerprint, row.removals["kind"], row.removals["entity"], frozenset(map(tuple, row.rows)))
        for row in connection.execute(query)
    )


def _newest(connection: Connection, district: str) -> Settings:
    row = _newest_row(connection, district)
    return _settings(row) if row else Settings(district)


def _newest_row(connection: Connection, district: str) -> Any:
    query = select(guard_settings).where(guard_settings.c.district == district)
    return connection.execute(query.order_by(guard_settings.c.version.desc()).limit(1)).one_or_none()


def _settings(row: Any) -> Settings:
    return Settings(
        row.district,
        row.version,
        row.settings["district"],
        row.settings["schools"],
        set_by=row.set_by,
        reason=row.reason,
        set_at=row.set_at,
    )


def _valid(district: str, values: Mapping[str, Value], schools: Mapping[str, Mapping[str, Value]]) -> Thresholds:
    try:
        return Thresholds.of(values, schools)
    except ValueError as error:
        raise ConfigError(
            f"The guard's settings of {district} would be wrong: {error}.",
            code="config.guard_setting",
            advice=f"`sis guard show --district {district}` shows what can be set.",
        ) from None


def _give_reason(actor: str, reason: str) -> None:
    if not (reason.strip() and actor.strip()):
        raise ConfigError(
            "A change of the guard needs who makes it and why.",
            code="config.guard_reason",
            advice="Give both, and run it again.",
        )


def _is_uuid(name: str) -> bool:
    try:
        UUID(name)
    except ValueError:
        return False
    return True
