"""What a district says about its accounts: how a user name is made, its domain, and when accounts come and end.
Making the names is in `usernames`, which account comes of what is decided in `accounts`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from string import Formatter
from typing import Any, Final, Literal, cast, get_args

AccountKind = Literal["student", "staff"]
Value = str | int

KINDS: Final[tuple[AccountKind, ...]] = get_args(AccountKind)
DEFAULT: Final = "default"
"""As a value, takes a setting back."""
NAMES = ("first_name", "middle_name", "last_name", "preferred_first_name")
"""Names a template may use; each also as `…_initial`, without the `_name`. A preferred name that is not given is the legal one."""
INITIALS = {name.replace("_name", "_initial"): name for name in NAMES}
YEARS = ("grad_year", "grad_year2")
PLACEHOLDERS: dict[AccountKind, tuple[str, ...]] = {
    "student": (*NAMES, *INITIALS, *YEARS, "local_id", "sis_username"),
    "staff": (*NAMES, *INITIALS, "local_id", "sis_username"),
}
"""What a template of a kind may name."""
PUNCTUATION: Final = "._-"
LITERAL = re.compile(rf"[a-z0-9{re.escape(PUNCTUATION)}]*")
DOMAIN = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])")


def _setting(default: Value | None, about: str, **bounds: int) -> Any:
    return field(default=default, metadata={"about": about, **bounds})


@dataclass(frozen=True, slots=True)
class KindRules:
    """The rules of one kind of account. Without `username` the district has no accounts of that kind."""

    username: str | None = _setting(None, "template of the user name, as {first_initial}{last_name}{grad_year2}")
    max_length: int = _setting(20, "longest user name; a longer one is cut", least=4, most=64)
    characters: str = _setting("", f"which of {PUNCTUATION} stay where a name has them")
    domain: str | None = _setting(None, "domain of the email address; without one accounts have none")
    grace_days: int = _setting(
        14, "days without a place in the roster before an account is suspended", least=0, most=365
    )
    lead_days: int = _setting(0, "days before the entry date from which on a student has an account", least=0, most=120)


SETTINGS: dict[str, Field[Any]] = {
    f"{kind}.{one.name}": one
    for kind in KINDS
    for one in fields(KindRules)
    if (kind, one.name) != ("staff", "lead_days")
}
"""What can be set, as `student.username`."""


@dataclass(frozen=True, slots=True)
class AccountRules:
    """The account rules of a district."""

    student: KindRules = KindRules()
    staff: KindRules = KindRules()

    @classmethod
    def of(cls, given: Mapping[str, Value]) -> AccountRules:
        """The rules as they are kept: setting -> value. Raises ValueError, in words."""
        own: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        for setting, value in given.items():
            kind, _, name = setting.partition(".")
            own.setdefault(kind, {})[name] = check(setting, value)
        made = cls(KindRules(**own["student"]), KindRules(**own["staff"]))
        for kind in KINDS:
            if own[kind] and made.of_kind(kind).username is None:
                raise ValueError(f"{kind} accounts have settings but no {kind}.username")
        return made

    def of_kind(self, kind: AccountKind) -> KindRules:
        return self.student if kind == "student" else self.staff

    @property
    def kinds(self) -> tuple[AccountKind, ...]:
        """The kinds of account that the district has."""
        return tuple(kind for kind in KINDS if self.of_kind(kind).username is not None)


def check(setting: str, value: object) -> Value:
    """The value as the setting takes it; a number may be text. Raises ValueError, in words."""
    check_name(setting)
    bounds = SETTINGS[setting].metadata
    if "most" in bounds:
        return _number(setting, value, bounds["least"], bounds["most"])
    kind, _, name = setting.partition(".")
    text = str(value).strip().lower()
    if name == "username":
        placeholders(text, cast("AccountKind", kind))
    elif name == "characters" and set(text) - set(PUNCTUATION):
        raise ValueError(f"{setting} takes some of {PUNCTUATION}, not {text!r}; letters and digits are always allowed")
    elif name == "domain" and not DOMAIN.fullmatch(text):
        raise ValueError(f"{setting} takes a domain, as students.lincoln.example, not {text!r}")
    return "".join(sorted(set(text))) if name == "characters" else text


def check_name(setting: str) -> None:
    """Raises ValueError, in words, for what can't be set."""
    if setting not in SETTINGS:
        raise ValueError(f"{setting!r} is no setting of accounts; choose one of {', '.join(SETTINGS)}")


def _number(setting: str, value: object, least: int, most: int) -> int:
    text = str(value)
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ValueError(f"{setting} takes a whole number from {least} to {most}, not {text!r}")
    return int(text)


def placeholders(template: str, kind: AccountKind) -> list[tuple[str, str | None]]:
    """The parts of a template: (literal text, what follows it). Raises ValueError, in words."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"the template {template!r} can't be read: {error}") from None
    for literal, name, spec, conversion in parsed:
        if not LITERAL.fullmatch(literal):
            raise ValueError(f"the template {template!r} has other text than a-z, 0-9 and {PUNCTUATION}")
        if spec or conversion or (name is not None and name not in PLACEHOLDERS[kind]):
            raise ValueError(
                f"the template {template!r} names what there is not; a {kind} has "
                + ", ".join(f"{{{one}}}" for one in PLACEHOLDERS[kind])
            )
    if not any(name for _, name, _, _ in parsed):
        raise ValueError(f"the template {template!r} names nothing of the {kind}")
    return [(literal, name) for literal, name, _, _ in parsed]
