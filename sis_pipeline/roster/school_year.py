"""School years: the readable key `2025-2026`, the years a vendor counts by, and which year a date falls in.
Reading the clock is the caller's business; everything here takes the date it needs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Self

ROLLOVER = (7, 1)
"""Month and day on which the next school year becomes the current one."""


@dataclass(frozen=True, order=True, slots=True)
class SchoolYear:
    """A school year by the calendar year it starts in."""

    start: int

    @classmethod
    def parse(cls, key: str) -> Self:
        """Read `2025-2026`. Raises ValueError, in words for a person, for anything else."""
        first, dash, second = key.partition("-")
        if not (dash and first.isdecimal() and second.isdecimal() and len(first) == len(second) == 4):
            raise ValueError(f"{key!r} is not a school year; write it as 2025-2026")
        if int(second) != int(first) + 1:
            raise ValueError(f"{key!r} is not a school year: the second year must follow the first, as in 2025-2026")
        return cls(int(first))

    @classmethod
    def on(cls, day: date) -> Self:
        """The school year that is current on a day."""
        return cls(day.year if (day.month, day.day) >= ROLLOVER else day.year - 1)

    @classmethod
    def ending(cls, year: int | str) -> Self:
        """The school year that ends in a calendar year, as OneRoster's `schoolYear` counts."""
        return cls(int(year) - 1)

    @property
    def end(self) -> int:
        return self.start + 1

    @property
    def key(self) -> str:
        return f"{self.start:04d}-{self.end:04d}"

    @property
    def first_day(self) -> date:
        return date(self.start, *ROLLOVER)

    @property
    def day_after(self) -> date:
        """The first day of the next school year."""
        return date(self.end, *ROLLOVER)

    def __str__(self) -> str:
        return self.key


def school_years(first: int, today: date) -> list[SchoolYear]:
    """All school years from `first` to the one after the current: districts load next year's roster before it starts."""
    return [SchoolYear(start) for start in range(first, SchoolYear.on(today).start + 2)]
