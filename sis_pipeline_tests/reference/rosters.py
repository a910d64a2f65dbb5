"""Small rosters made to be nasty, a few days each: systems that contradict each other about few people who are much alike.
They are only made here; what they come to is `district`'s, and the engine's, to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
from hypothesis import strategies as st

from sis_pipeline.roster.contract import DistrictInputs, IntegrationInput
from sis_pipeline.roster.decisions import DECISIONS, DISTINCT, SAME, SAME_WITH_TWO_IDS
from sis_pipeline.roster.enrollments import STAY as STAY_KEY
from sis_pipeline.roster.guard import Hold, Ruling, Rulings
from sis_pipeline.roster.merge import EDITS
from sis_pipeline.roster.policies import Policies
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.thresholds import Thresholds
from sis_pipeline.roster.withdrawals import WITHDRAWALS
from sis_pipeline_tests.roster.rosters import Roster

Row = dict[str, Any]
DAYS = (date(2025, 10, 1), date(2025, 10, 20), date(2025, 10, 21))


def _mostly(value: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([value] * (len(others) + 1) + list(others))


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "first_name": st.sampled_from(
        ["Ada", "Adá", "ada maria", "Ada Luz", "Bea", "William", "Bill", "Maria", "Marta", "Katherine", "-"]
    ),
    "last_name": st.sampled_from(
        ["Moss", "MÓSS", "Moss-Hill", "Hill", "O'Hill", "Garcia-Lopez", "Gracia Lopez", "Garcia-Perez", "Mosss"]
    ),
    "birth_date": st.sampled_from(["2012-03-04", "2012-03-04", "2012-04-03", "2012-03-05", "2011-11-21", None]),
    "preferred_first_name": _mostly(None, "Lee", "Ada", "Bill"),
    "preferred_last_name": _mostly(None, "Hill"),
    "ssid": st.sampled_from(["1", "2", " 1", None, None]),
    "ssid_issuer": _mostly(None, "TX", "OK"),
    "local_id": st.sampled_from(["5", "6", "05", None, None]),
    "local_id_issuer": _mostly(None, "north", "south"),
    "email": st.sampled_from(["home@example.org", "Home@example.org ", "ada@example.org", "none", None]),
    "phone": _mostly(None, "(512) 555-0100", "5125550111"),
    "mobile_phone": _mostly(None, "+1 512 555 0100", "512-555-0111 x4"),
    "grade_level": _mostly("05", "06", None),
    "modified_at": _mostly("2025-09-01T00:00:00+00:00", "2025-09-02T00:00:00+00:00", None),
}
VALUES |= {
    "home_street": _mostly(None, "1 Elm St.", "2 Elm St"),
    "home_city": _mostly(None, "Waco"),
    "directory_opt_out": _mostly(None, False, True),
    "graduation_year": _mostly(None, 2030, 2031),
    "enrollment_status": _mostly(None, "active", "withdrawn"),
}
SECTIONS = {
    "fall": ("2025-08-18", "2025-10-10"),
    "spring": ("2026-01-05", "2026-06-10"),
    "year": ("2025-08-18", "2026-06-10"),
    "last year": ("2024-08-19", "2025-06-10"),
}
ENTRIES = ["2025-08-18", "2025-08-25", "2025-09-01", "2025-09-10", "2025-10-10", "2025-12-01"]
STAY: dict[str, st.SearchStrategy[Any]] = {
    "school": st.sampled_from("123"),
    "entry_date": st.sampled_from(ENTRIES),
    "exit_date": _mostly(None, "2025-08-18", "2025-08-31", "2025-09-09", "2025-09-10", "2025-10-09"),
    "status": _mostly("active", "withdrawn", "transferred", "graduated", "pre_registered", "no_show"),
    "enrollment_type": _mostly("primary", "secondary"),
    "entry_date_source": _mostly("sis", "class_begin", "session_start"),
    "entry_code": _mostly(None, "E1"),
    "exit_code": _mostly(None, "W1"),
    "grade_level": _mostly(None, "05"),
}
stay = st.fixed_dictionaries(STAY)
seat = st.fixed_dictionaries(
    {
        "section": st.sampled_from([*SECTIONS]),
        "begin_date": _mostly("2025-08-18", "2025-10-15", None),
        "end_date": _mostly(None, "2025-08-18", "2025-10-01", "2025-10-10", "2026-06-01"),
    }
)
record = st.fixed_dictionaries(
    {
        "integration": st.sampled_from("abc"),
        "school": st.just("1"),
        **VALUES,
        "stays": st.lists(stay, max_size=5),
        "seats": st.lists(seat, max_size=2),
    }
)
FIRST, LAST = ("Ines", "Omar", "Ruth", "Sven", "Yuki"), ("Abbot", "Castle", "Dunn", "Esposito", "Vogel")
policy = _mostly("sis_wins", "newest_wins", "local_wins", "manual")
LENIENT = Thresholds(district_floor=99, school_floor=99, seat_floor=99, week_floor=99, exit_floor=99)
OTHER_CHILD = ("first_name", "last_name", "birth_date", "ssid")
"""What makes a record that of a child to whom an id was given."""
WHO = ("first_name", "last_name", "birth_date", "ssid", "local_id", "email")
_seldom = st.sampled_from([False] * 8 + [True])
edits = st.dictionaries(st.sampled_from([*VALUES, *WHO, *WHO, *WHO]), st.none(), max_size=3)
CLEARED = ("preferred_first_name", "email", "phone", "mobile_phone", "home_street", "home_city")
cleared = st.sets(st.sampled_from(CLEARED), max_size=4)
stay_edits = st.dictionaries(st.sampled_from(sorted(STAY)), st.none(), min_size=1, max_size=2)
fate = st.sampled_from(
    ["stays"] * 4 + ["edited"] * 3 + ["gone", "gone", "alone", "tombstone", "quarantined", "given away"]
)
ALONE: Row = {"email": "changed@example.org", "stays": [], "seats": []}
"""A student told with a change, and no enrollment, as by a reading that repeats nothing unchanged."""


@st.composite
def told_of(draw: st.DrawFn, people: list[Row]) -> Row:
    """What some system says of one of these people, rightly or not quite."""
    row = draw(st.sampled_from(people)) | {"integration": draw(st.sampled_from("abc"))}
    return row if draw(st.booleans()) else draw(edited(row))


@st.composite
def edited(draw: st.DrawFn, row: Row) -> Row:
    """The record with a few of its values, and of its stays', drawn anew."""
    changed = row | {name: draw(VALUES[name]) for name in draw(edits)} | dict.fromkeys(draw(cleared))
    stays = []
    for one in row["stays"]:
        became = draw(fate)
        if became == "edited":
            stays.append(one | {name: draw(STAY[name]) for name in draw(stay_edits)})
        elif became not in {"gone", "given away"}:
            stays.append(one | ({"record_status": "to_be_deleted"} if became == "tombstone" else {}))
    seats = draw(st.lists(st.sampled_from(row["seats"]), max_size=2)) if row["seats"] else []
    return changed | {
        "stays": stays + draw(st.lists(stay, max_size=1)),
        "seats": seats + draw(st.lists(seat, max_size=1)),
    }


@st.composite
def given_away(draw: st.DrawFn, row: Row) -> Row:
    """The record's id with another child, whose enrollments may be other ones."""
    other = draw(record)
    return (draw(edited(row)) if draw(st.booleans()) else row) | {name: other[name] for name in OTHER_CHILD}


@st.composite
def three_days(draw: st.DrawFn, most: int = 9) -> tuple[Row, Row, Row]:
    """Three deliveries, the second made of the first; the third is the second, read whole."""
    people = draw(st.lists(record, min_size=1, max_size=3))
    first = [_numbered(draw(told_of(people)) | {"sis_id": str(number)}) for number in range(draw(st.integers(1, most)))]
    second, lost = [], []
    for row in draw(st.permutations(first)):
        became = draw(fate)
        if became == "quarantined":
            lost.append(row)
        elif became == "given away":
            second.append(draw(given_away(row)))
        elif became == "alone":
            second.append(row | ALONE)
        elif became != "gone":
            changed = draw(edited(row)) if became == "edited" else row
            second.append(changed | ({"record_status": "to_be_deleted"} if became == "tombstone" else {}))
    fresh = [draw(told_of(people)) | {"sis_id": f"n{number}"} for number in range(draw(st.integers(0, 3)))]
    complete = {name: draw(_mostly("complete", "partial", "delta")) for name in "abc"}
    if draw(st.booleans()):  # a child whom one system drops while another, read in part, names it alone
        dropping, naming, _ = draw(st.permutations("abc"))
        child = draw(record) | {"stays": [draw(stay) | {"school": "1", "status": "active", "exit_date": None}]}
        child |= {"sis_id": "both", "integration": naming}
        first += [_numbered(child), _numbered(child | {"integration": dropping})]
        second.append(child | ALONE)
        complete |= {dropping: "complete", naming: draw(st.sampled_from(["partial", "delta"]))}
    stopped = draw(st.sampled_from(CLEARED)), draw(st.sampled_from("abc-"))
    second = [_numbered(_without(row, *stopped)) for row in [*second, *fresh]]
    priorities = draw(st.permutations([1, 2, 2]))
    named = [(row["integration"], row["sis_id"], None) for row in first]
    two = st.lists(st.sampled_from(named), min_size=2, max_size=2, unique=True)
    verdicts = st.tuples(two, st.sampled_from([SAME, SAME_WITH_TWO_IDS, DISTINCT]))
    decided = draw(st.lists(verdicts, max_size=2) if len(named) > 1 else st.just([]))
    always = {
        "decisions": [(*one, *other, verdict) for (one, other), verdict in decided],
        "priorities": priorities,
        "policies": Policies(
            draw(policy), draw(st.dictionaries(st.sampled_from(["email", "ssid", "home_address"]), policy))
        ),
        "thresholds": draw(st.sampled_from([Thresholds(), LENIENT])),
    }
    whole = dict.fromkeys("abc", "complete")
    return (
        {"rows": first, "completeness": whole, "lost": [], **always},
        {"rows": second, "completeness": complete, "lost": lost, **always},
        {"rows": second, "completeness": whole, "lost": lost, **always},
    )


@dataclass(frozen=True)
class Day:
    """A day of `many_days`. `delivery`: as `inputs` takes it; `systems`: those that take part. `edits`: the attribute that a
    person edited of some student; `withdrawn`: whether one withdrew somebody; `who`: which student, and enrollment, that is.
    `ruling`: what a person said of what was held on the day before."""

    delivery: Row
    as_of: date
    systems: str
    edits: str | None
    withdrawn: bool
    who: int
    ruling: str | None

    def inputs(self, tables: Mapping[str, pl.DataFrame], held: Sequence[Hold], **rest: Any) -> DistrictInputs:
        """With what people said about the roster that is published by then."""
        said = {} if self.ruling is None else {self.ruling: tuple(Ruling.about(hold) for hold in held)}
        found = inputs(
            self.delivery, tables, self.as_of,
            edits=self._edits(tables), withdrawals=self._withdrawals(tables), rulings=Rulings(**said), **rest,
        )  # fmt: skip
        here = pl.col("integration").is_in(list(self.systems))
        return replace(
            found,
            integrations={key: part for key, part in found.integrations.items() if key in self.systems},
            records={entity: frame.filter(here) for entity, frame in found.records.items()},
            quarantined={entity: frame.filter(here) for entity, frame in found.quarantined.items()},
        )

    def _edits(self, tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
        if self.edits is None or not tables or tables["students"].is_empty():
            return pl.DataFrame(schema=EDITS)
        students = tables["students"].sort("student_id")
        edited = {
            "edit": pl.lit(1, pl.Int64), "attribute": pl.lit(self.edits), "edited_by": pl.lit("clerk"),
            "edited_at": pl.lit(datetime(2025, 9, 1, 12, tzinfo=UTC)).cast(EDITS["edited_at"]),
            self.edits: pl.lit("Edited"),
        }  # fmt: skip
        return students[self.who % students.height].with_columns(**edited).select(list(EDITS))

    def _withdrawals(self, tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
        if not self.withdrawn or not tables or tables["enrollments"].is_empty():
            return pl.DataFrame(schema=WITHDRAWALS)
        stays = tables["enrollments"].sort(STAY_KEY)
        made = {"withdrawal_id": pl.lit("w"), "effective_date": date(2025, 10, 5), "exit_code": pl.lit("W9")}
        return stays[self.who % stays.height].with_columns(**made).select(list(WITHDRAWALS))


@st.composite
def many_days(draw: st.DrawFn) -> list[Day]:
    """Some days on each of which little happens, and sometimes nothing: to records, readings, people's decisions."""
    first, second, _ = draw(three_days(1))
    people = draw(st.lists(record, min_size=2, max_size=7))
    others = [_numbered(draw(_somebody(people, n)) | {"sis_id": f"p{n}"}) for n in range(draw(st.integers(4, 10)))]
    rows = {(row["integration"], row["sis_id"]): row for row in [*first["rows"], *others]}
    known = {(row["integration"], row["sis_id"]): row for row in second["rows"][:1]} | rows
    found, lost, as_of = [], [], DAYS[0]
    always = {name: first[name] for name in ("decisions", "priorities", "policies", "thresholds")}
    for number in range(draw(st.integers(3, 6))):
        for name in draw(st.lists(st.sampled_from(sorted(known)), max_size=2)) if number else ():
            became = draw(fate)
            row = known[name]
            if became in {"edited", "given away"}:
                row = draw(edited(row) if became == "edited" else given_away(row))
            row = row | ALONE if became == "alone" else row
            rows = {key: one for key, one in rows.items() if key != name}
            if became == "quarantined":
                lost = [*lost, row]
            elif became != "gone":
                rows[name] = _numbered(row | ({"record_status": "to_be_deleted"} if became == "tombstone" else {}))
        lost = [] if draw(_seldom) else lost
        as_of += timedelta(days=draw(st.sampled_from([0, 1, 1, 1, 2, 7, 40])) if number else 0)
        always |= {"decisions": []} if draw(_seldom) else {}
        always |= {"thresholds": draw(st.sampled_from([Thresholds(), LENIENT]))} if draw(_seldom) else {}
        read = {name: draw(_mostly("complete", "partial", "delta") | st.just("complete")) for name in "abc"}
        found.append(
            Day(
                {"rows": list(rows.values()), "completeness": read, "lost": lost, **always},
                as_of,
                systems=draw(st.sampled_from(["ab", "a"])) if draw(_seldom) else "abc",
                edits=draw(st.sampled_from(["first_name", "email"])) if draw(_seldom) else None,
                withdrawn=draw(_seldom),
                who=draw(st.integers(0, 5)),
                ruling=draw(st.sampled_from([None, None, "released", "waiting"])),
            )
        )
    return found


@st.composite
def _somebody(draw: st.DrawFn, people: list[Row], number: int) -> Row:
    """A record of one of a few students who are nobody else, and may have two."""
    who = number // 2
    own = {"first_name": FIRST[who], "last_name": LAST[who], "birth_date": f"2010-{who + 1:02}-1{who}"}
    return (
        draw(told_of(people))
        | own
        | {"ssid": draw(_mostly(f"1{who}", None)), "ssid_issuer": None, "local_id": None, "grade_level": "05"}
    )


def _without(row: Row, column: str, integration: str) -> Row:
    """The record, had the system stopped supplying a column."""
    return row | {column: None} if row["integration"] == integration else row


def _numbered(row: Row) -> Row:
    """Its stays' ids stay with them, whatever becomes of the others."""
    taken = {one["sis_id"] for one in row["stays"] if "sis_id" in one}
    free = (name for n in range(9) if (name := f"e{row['sis_id']}-{n}") not in taken)
    return row | {"stays": [one if "sis_id" in one else one | {"sis_id": next(free)} for one in row["stays"]]}


def _add(roster: Roster, row: Row) -> None:
    """A student's record and its stays."""
    integration, sis_id = row["integration"], row["sis_id"]
    values = {name: value for name, value in row.items() if name not in {"school", "stays", "seats"}}
    roster.add("students", school_sis_id=f"school-{row['school']}", **values)
    for number, told in enumerate(row["seats"]):
        values = {"begin_date": told["begin_date"], "end_date": told["end_date"], "person_sis_id": sis_id}
        name = f"x{sis_id}-{number}"
        roster.add(
            "section_enrollments", sis_id=name, section_sis_id=told["section"], integration=integration, **values
        )
    for told in row["stays"]:
        values = {name: value for name, value in told.items() if name != "school"}
        roster.stay(sis_id, told["school"], integration=integration, **values)


def inputs(day: Row, existing: Mapping[str, pl.DataFrame], as_of: date, **rest: Any) -> DistrictInputs:
    """A day's delivery as the engine takes it."""
    roster = Roster()
    for integration in "abc":
        for number in "123":
            roster.school(number, integration)
        for name, (begin, end) in SECTIONS.items():
            year = SchoolYear.on(date.fromisoformat(begin)).key
            of_year = {"title": name, "kind": "semester", "start_date": begin, "end_date": end, "school_year": year}
            roster.add("academic_sessions", sis_id=name, integration=integration, **of_year)
            roster.section(name, integration=integration, session_sis_ids=f'["{name}"]')
    for row in day["rows"]:
        _add(roster, row)
    parts = {
        name: IntegrationInput(rank, day["completeness"][name], as_of - timedelta(days=1))
        for name, rank in zip("abc", day["priorities"], strict=True)
    }
    rejected = [(row["integration"], row["sis_id"]) for row in day["lost"]]
    quarantined = pl.DataFrame(rejected, schema=dict.fromkeys(("integration", "sis_id"), pl.String), orient="row")
    judged = {name: day[name] for name in ("policies", "thresholds")}
    judged["decisions"] = pl.DataFrame(day["decisions"], schema=DECISIONS, orient="row")
    lost = {"students": quarantined}
    return roster.inputs(existing, as_of=as_of, integrations=parts, quarantined=lost, **judged, **rest)
