"""The school calendar of a world: terms, first and last days, and which date is day 1.
Pure dates; who attends is decided elsewhere."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

from sis_pipeline.sandbox.things import Term


def terms(year: int) -> tuple[Term, Term, Term]:
    """The whole year and its two semesters; ends are exclusive."""
    begin, middle, end = date(year, 9, 1), date(year + 1, 1, 25), date(year + 1, 6, 19)
    return (
        Term("Y", f"{year}-{year + 1}", begin, end),
        Term("S1", "Semester 1", begin, middle),
        Term("S2", "Semester 2", middle, end),
    )


def term(year: int, code: str) -> Term:
    return next(found for found in terms(year) if found.code == code)


def day_date(first_day: date, day: int) -> date:
    """The date of day 1, 2, 3 …"""
    return first_day + timedelta(days=day - 1)


def stamp(day: date, hour: int = 6) -> datetime:
    """The instant at which a change of that day was entered, UTC."""
    return datetime.combine(day, time(hour, 15), tzinfo=UTC)
