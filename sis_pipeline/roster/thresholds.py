"""How much of a district's roster may go at once before a person is asked: the numbers, their bounds, and who sets which.
What is counted against them, and what is held, is decided in `guard`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Final

MAXIMUM: Final = 10_000_000
Value = bool | int | float


def _number(default: float, about: str, most: float = MAXIMUM) -> Any:
    return field(default=default, metadata={"about": about, "most": most})


def _share(default: float, about: str) -> Any:
    return _number(default, about, 1.0)


def _days(default: int, about: str) -> Any:
    return _number(default, about, 120)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A share is of what was active before; a limit is exceeded by going above it. `schools` are the settings of single
    schools, by school_id: those of `OF_SCHOOLS`."""

    district_floor: int = _number(2, "absences of a district that are never held")
    district_share: float = _share(0.02, "share of a district's enrollments above which absences are held")
    district_cap: int = _number(250, "absences of a district above which they are held, whatever the share")
    school_floor: int = _number(2, "absences of a school that are never held")
    school_share: float = _share(0.10, "share of a school's enrollments above which absences are held")
    seat_floor: int = _number(2, "absences from a school's sections that are never held")
    seat_share: float = _share(0.10, "share of a school's section enrollments above which absences from them are held")
    week_floor: int = _number(2, "absences of a district within seven days that are never held")
    week_share: float = _share(
        0.05, "share of a district's enrollments above which absences within seven days are held"
    )
    exit_floor: int = _number(10, "explicit exits of a district that are never held")
    exit_share: float = _share(0.05, "share of a district's enrollments above which explicit exits are held")
    staff_floor: int = _number(5, "staff members of a district whose absence is never held")
    staff_share: float = _share(0.10, "share of a district's staff above which their absence is held")
    freeze: bool = field(default=True, metadata={"about": "whether absences are held between two school years"})
    freeze_before_end: int = _days(2, "days before a school's last day from which on absences are held")
    freeze_before_start: int = _days(14, "days before a school's first day until which absences are held")
    schools: tuple[tuple[str, tuple[tuple[str, Value], ...]], ...] = ()

    @classmethod
    def of(cls, district: Mapping[str, Value], schools: Mapping[str, Mapping[str, Value]] | None = None) -> Thresholds:
        """The defaults with a district's settings, and those of its schools. Raises ValueError, in words."""
        given = {name: check(name, value) for name, value in district.items()}
        own = {
            school: tuple(sorted((name, check(name, value, of_school=True)) for name, value in settings.items()))
            for school, settings in (schools or {}).items()
            if settings
        }
        made = cls(**given, schools=tuple(sorted(own.items())))  # type: ignore[arg-type]
        if made.district_floor > made.district_cap:
            raise ValueError(
                f"district_floor ({made.district_floor:,}) is above district_cap ({made.district_cap:,}), so one of them never counts"
            )
        return made

    def district(self, active: int) -> int:
        return int(max(self.district_floor, min(self.district_share * active, self.district_cap)))

    def school(self, active: int, school_id: str | None = None) -> int:
        own = self._own(school_id)
        return int(max(own.get("school_floor", self.school_floor), own.get("school_share", self.school_share) * active))

    def seats(self, active: int, school_id: str | None = None) -> int:
        own = self._own(school_id)
        return int(max(own.get("seat_floor", self.seat_floor), own.get("seat_share", self.seat_share) * active))

    def _own(self, school_id: str | None) -> dict[str, Value]:
        return dict(dict(self.schools).get(school_id or "", ()))

    def week(self, active: int) -> int:
        return int(max(self.week_floor, self.week_share * active))

    def exits(self, active: int) -> int:
        return int(max(self.exit_floor, self.exit_share * active))

    def staff(self, active: int) -> int:
        return int(max(self.staff_floor, self.staff_share * active))


SETTINGS: dict[str, Field[Any]] = {one.name: one for one in fields(Thresholds) if one.metadata}
"""What can be set, by name."""
OF_SCHOOLS = ("school_floor", "school_share", "seat_floor", "seat_share")
"""What can be set for a single school."""
DEFAULTS: dict[str, Value] = {name: getattr(Thresholds(), name) for name in SETTINGS}


def check(name: str, value: object, *, of_school: bool = False) -> Value:
    """The value as the setting takes it. Raises ValueError, in words, for an unknown name and a value out of bounds."""
    allowed = OF_SCHOOLS if of_school else tuple(SETTINGS)
    if name not in allowed:
        whose = "a single school" if of_school else "a district"
        raise ValueError(f"{name!r} can't be set for {whose}; choose one of {', '.join(allowed)}")
    default, most = DEFAULTS[name], SETTINGS[name].metadata.get("most", 1)
    if isinstance(default, bool) != isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} takes {_kind(default)}, not {value!r}")
    if isinstance(default, int) and not float(value).is_integer():
        raise ValueError(f"{name} takes a whole number, not {value}")
    if not 0 <= value <= most:
        raise ValueError(f"{name} goes from 0 to {most:,}, so {value} is out of bounds")
    return type(default)(value)


def parse(name: str, text: str, *, of_school: bool = False) -> Value:
    """A value as a person writes it: `40`, `0.15`, `15%`, `yes`. Raises ValueError, in words."""
    default = DEFAULTS.get(name)
    value: object = text
    if isinstance(default, bool):
        value = {"yes": True, "true": True, "no": False, "false": False}.get(text.lower(), text)
    elif default is not None:
        digits = text.removesuffix("%")
        try:
            value = float(digits) / 100 if text.endswith("%") else float(digits)
        except ValueError:
            value = text
    return check(name, value, of_school=of_school)


def _kind(default: Value) -> str:
    if isinstance(default, bool):
        return "yes or no"
    return "a whole number" if isinstance(default, int) else "a share, as 0.1 or 10%"
