"""What survives as a whole when a student's records are merged: single columns, and blocks that one record gives together.
Which record's value survives is decided in `merge`, by what rule in `policies`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sis_pipeline.roster.model import STUDENTS

BLOCKS: dict[str, tuple[str, ...]] = {
    "ssid": ("ssid", "ssid_issuer"),
    "local_id": ("local_id", "local_id_issuer"),
    "home_address": ("home_street", "home_city", "home_state", "home_postal_code"),
    "mailing_address": ("mailing_street", "mailing_city", "mailing_state", "mailing_postal_code"),
    "grade_level": ("grade_level", "grade_level_source"),
}
"""Columns that one record supplies together: half an address from each of two systems is nobody's address.

A record supplies a block if any of its columns has a value (an issuer alone supplies no id). In `conflicts`,
`origins`, `student_edits` and policies a block goes by its name here."""

ANY_TRUE = ("directory_opt_out", "address_confidential")
"""Protections: true if anybody says so, whatever the policy."""

CLEARABLE = (
    "preferred_first_name", "preferred_middle_name", "preferred_last_name",
    "email", "phone", "mobile_phone", "home_address", "mailing_address",
)  # fmt: skip
"""What a source may take away for good, as under a protective order: then it says that there is nothing, see `clearing`."""


@dataclass(frozen=True)
class Attribute:
    """One thing that survives as a whole: a column or a block. `lead` are the columns that make it supplied."""

    name: str
    columns: tuple[str, ...]
    lead: tuple[str, ...]
    compared: bool

    @property
    def is_protection(self) -> bool:
        return self.name in ANY_TRUE

    @property
    def is_clearable(self) -> bool:
        return self.name in CLEARABLE

    @property
    def is_personal(self) -> bool:
        """Whether it stands in `students`, and not in a school year's own table."""
        return set(self.columns) <= PERSON


PERSON = frozenset(column.name for column in STUDENTS.of_scope("person"))


def _attributes() -> Iterator[Attribute]:
    blocked = {column for columns in BLOCKS.values() for column in columns}
    for name, columns in BLOCKS.items():
        lead = (name,) if name in columns else columns
        yield Attribute(name, columns, lead, compared=True)
    for column in STUDENTS:
        if column.scope != "record" and column.name not in blocked and column.name != "school_sis_id":
            yield Attribute(column.name, (column.name,), (column.name,), compared=column.merged)
    yield Attribute("school_id", ("school_id",), ("school_id",), compared=False)


ATTRIBUTES: tuple[Attribute, ...] = tuple(_attributes())
EDITED: dict[str, tuple[str, ...]] = {one.name: one.columns for one in ATTRIBUTES if one.is_personal}
"""The attributes of which an edit in `students` is noted, with their columns."""
