"""Survivorship policies: whose value of an attribute is published where the systems, or a local edit, say different things.
What follows from them for a student is decided in `merge`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, cast, get_args

from sis_pipeline.roster.attributes import ATTRIBUTES

Rule = Literal["sis_wins", "local_wins", "newest_wins", "manual"]

ABOUT: dict[Rule, str] = {
    "sis_wins": "the system with the lowest priority number; an edit is published only where no system has a value",
    "local_wins": "an edit in `students` stays until the systems say the same; without one, as sis_wins",
    "newest_wins": "what changed last, by the systems' modified times and the time of the edit",
    "manual": "what is published, or edited, stays, and the conflict is open, until the systems agree",
}
OF_YEAR: Final = ("sis_wins", "newest_wins")
"""The policies of attributes of a school year, which nobody edits in `students`."""
DEFAULT: Final = "default"
"""Names the policy of all attributes that have none of their own; as a policy, takes an attribute's own back."""
PERSONAL = {one.name: one.is_personal for one in ATTRIBUTES if not one.is_protection}
"""What a policy can be set for, and whether it is of the person."""


@dataclass(frozen=True, slots=True)
class Policies:
    """The survivorship rule of a district, and of single attributes (or blocks) where it differs."""

    default: Rule = "sis_wins"
    attributes: Mapping[str, Rule] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Policies:
        """The policies as they are kept: attribute, or `default`, -> policy. Raises ValueError, in words."""
        checked = {name: check(name, policy) for name, policy in given.items()}
        return cls(checked.pop(DEFAULT, cls().default), checked)

    def rule(self, attribute: str) -> Rule:
        rule = self.attributes.get(attribute, self.default)
        return rule if PERSONAL.get(attribute, False) or rule in OF_YEAR else "sis_wins"


def check(name: str, policy: object) -> Rule:
    """The policy, if it can be set for that attribute. Raises ValueError, in words."""
    if name != DEFAULT and name not in PERSONAL:
        raise ValueError(f"{name!r} has no policy; choose one of {', '.join((DEFAULT, *PERSONAL))}")
    of_year = not PERSONAL.get(name, True)
    allowed = OF_YEAR if of_year else get_args(Rule)
    if policy not in allowed:
        why = " (it belongs to a school year)" if of_year else ""
        raise ValueError(f"{name} takes {', '.join(allowed)}{why}, not {policy!r}")
    return cast("Rule", policy)
