"""Accounts follow the roster: by law for any roster, and case by case for names, grace, the turn of the year and merges."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster import accounts as deciding
from sis_pipeline.roster.account_rules import AccountRules
from sis_pipeline.roster.accounts import LEFT, UNKNOWN, Decision, Roster, decide
from sis_pipeline.roster.frames import POLARS_DTYPES, empty
from sis_pipeline.roster.model import ACCOUNTS
from sis_pipeline.roster.usernames import mark
from sis_pipeline_tests.roster.rosters import laws

DAY = date(2025, 10, 1)
YEAR, BEFORE, NEXT = "2025-2026", "2024-2025", "2026-2027"
RULES = AccountRules.of({
    "student.username": "{first_initial}{last_name}{grad_year2}", "student.domain": "kids.lincoln.example",
    "staff.username": "{first_name}.{last_name}",
})  # fmt: skip


def uid(*names: object) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "/".join(map(str, names))))


def frame(kinds: Mapping, rows: list[dict]) -> pl.DataFrame:
    return pl.DataFrame([{name: row.get(name) for name in kinds} for row in rows], schema={n: POLARS_DTYPES[k] for n, k in kinds.items()})  # fmt: skip


def student(number: int, first: str | None = "Ada", last: str | None = "Lovelace", **values: object) -> dict:
    return {"student_id": uid("student", number), "first_name": first, "last_name": last, "graduation_year": 2031, "near_match": False, **values}  # fmt: skip


def stay(number: int, year: str = YEAR, entry: date | None = None, school: str = "north") -> dict:
    return {"student_id": uid("student", number), "school_id": uid(school), "school_year": year, "entry_date": entry or date(int(year[:4]), 8, 18)}  # fmt: skip


def teacher(number: int, first: str = "Grace", last: str = "Hopper", role: str = "teacher") -> dict:
    return {"staff_id": uid("staff", number), "first_name": first, "last_name": last, "role": role, "school_id": uid("north")}  # fmt: skip


def roster(
    students: list[dict] = (), stays: list[dict] = (), staff: list[dict] = (), links: list[int] = (), posts: list[dict] = (), **values
) -> Roster:  # fmt: skip
    return Roster(**{
        "students": frame(deciding.STUDENT, list(students)),
        "staff": frame(deciding.STAFF, list(staff)),
        "stays": frame(deciding.STAY, list(stays)),
        "posts": frame(deciding.POST, list(posts)),
        "links": frame(deciding.LINK, [{"staff_id": uid("staff", number)} for number in links]),
        "years": {YEAR: date(2025, 8, 18)},
        "aliases": {},
        **values,
    })  # fmt: skip


def enrolled(*people: dict, **values) -> Roster:
    stays = [{**stay(0), "student_id": one["student_id"]} for one in people]
    return roster(students=list(people), stays=stays, **values)


def follow(
    now: Roster, before: pl.DataFrame | Decision | None = None, day: date = DAY, rules=RULES, **values
) -> Decision:
    accounts = before.accounts if isinstance(before, Decision) else empty(ACCOUNTS) if before is None else before
    return decide("lincoln", accounts, now, rules, day, **values)


def names(done: Decision | pl.DataFrame) -> dict[str, str]:
    accounts = done.accounts if isinstance(done, Decision) else done
    return dict(accounts.select("person_id", "username").iter_rows())


def one(done: Decision, number: int, kind: str = "student") -> dict:
    [row] = done.accounts.filter(pl.col("person_id") == uid(kind, number)).rows(named=True)
    return row


FIRST = st.sampled_from(["Ada", "Åda", "Al", "O'Neil", "李", None])
LAST = st.sampled_from(["Lee", "Lee-Roy", "Núñez", "Null", "Lee2"])


@st.composite
def rosters(draw) -> Roster:
    """Up to eight students and four staff, some unknown, absent or under review, with few names between them."""
    known = draw(st.lists(st.integers(0, 7), unique=True))
    students = [
        student(n, draw(FIRST), draw(LAST), near_match=draw(st.booleans()), graduation_year=draw(st.sampled_from([2031, None])))
        for n in known
    ]  # fmt: skip
    stays = [stay(n, draw(st.sampled_from([BEFORE, YEAR]))) for n in known if draw(st.booleans())]
    working = draw(st.lists(st.integers(0, 3), unique=True))
    staff = [teacher(n, draw(FIRST) or "Al", draw(LAST)) for n in working]
    aliases = {uid("student", n): uid("student", known[0]) for n in range(8) if known and n not in known}
    return roster(students, stays, staff, [n for n in working if draw(st.booleans())], aliases=aliases)


def shuffled(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    return frame.sample(fraction=1, shuffle=True, seed=seed)


@laws(25)
@given(st.lists(rosters(), min_size=1, max_size=3), st.integers(0, 9))
def test_laws_hold_for_any_run_of_rosters(days, seed):
    accounts, day = empty(ACCOUNTS), DAY
    for now in days:
        day += timedelta(days=10)
        done = follow(now, accounts, day)
        parts = {name: shuffled(getattr(now, name), seed) for name in ("students", "staff", "stays", "posts", "links")}
        again = follow(replace(now, **parts), shuffled(accounts, seed), day)
        assert again.counts == done.counts
        assert again.accounts.equals(done.accounts), "the order of the inputs does not count"
        after = follow(now, done, day)
        assert after.accounts.equals(done.accounts), "following twice changes nothing"
        assert sum(after.counts[name] for name in Decision.CHANGES) == 0

        assert done.accounts["username"].is_unique().all()
        assert done.accounts["account_id"].is_unique().all()
        was, found = names(accounts), names(done)
        assert was == {person: name for person, name in found.items() if person in was}, (
            "nobody loses an account or name"
        )
        known = {*now.students["student_id"], *now.staff["staff_id"]}
        assert set(found) - set(was) <= known, "nobody is invented"
        assert len(found) - len(was) == done.counts["created"]
        waiting = set(now.students.filter("near_match")["student_id"])
        assert not (set(found) - set(was)) & waiting
        present = set(now.stays["student_id"]) & set(now.stays.filter(pl.col("school_year") == YEAR)["student_id"])
        assert present - waiting <= set(done.accounts.filter(pl.col("status") == "active")["person_id"])
        accounts = done.accounts


def test_the_name_is_of_the_template_and_the_email_of_the_domain():
    done = follow(enrolled(student(1, "Zoë", "O'Brien-Łęski")))
    assert {**one(done, 1), "account_id": None} == {
        "district": "lincoln", "account_id": None, "kind": "student", "person_id": uid("student", 1), "username": "zobrienleski31",
        "email": "zobrienleski31@kids.lincoln.example", "status": "active", "missing_since": None, "note": None,
        "role": "student", "school_ids": f'["{uid("north")}"]',
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "values", "name"),
    [
        ({"username": "{first_name}.{last_name}", "characters": "-"}, {"last": "Lee-Roy"}, "ada.lee-roy"),
        ({"username": "{first_name}.{middle_initial}.{last_name}"}, {"last": "Lee"}, "ada.lee"),
        ({"username": "{preferred_first_name}"}, {"preferred_first_name": "Addie"}, "addie"),
        ({"username": "{preferred_first_initial}{last_name}"}, {}, "alovelace"),
        ({"username": "s{local_id}"}, {"local_id": "004 2"}, "s0042"),
        ({"username": "{local_id}"}, {"local_id": "0042"}, "student0042"),
        ({"username": "{last_name}{grad_year}", "max_length": 9}, {}, "lovelace2"),
        ({"username": "{sis_username}"}, {"username": "ALove"}, "alove"),
        ({"username": "{first_name}{last_name}"}, {"first": "李", "last": None}, "student"),
    ],
)
def test_names_are_normalised_and_cut(settings, values, name):
    rules = AccountRules.of({f"student.{key}": value for key, value in settings.items()})
    assert list(names(follow(enrolled(student(1, **values)), rules=rules)).values()) == [name]


def test_a_taken_name_gets_a_number_and_whoever_has_a_name_keeps_it():
    lees = [student(n, "Al", "Lee") for n in range(3)]
    first = follow(enrolled(*lees))
    assert sorted(names(first).values()) == ["alee31", "alee312", "alee313"]
    assert (first.counts["created"], first.numbered) == (3, 2)
    married = [{**lees[0], "last_name": "Yu"}, *lees[1:], student(9, "Al", "Lee")]
    later = follow(enrolled(*married), first)
    assert {**names(later), uid("student", 9): ""} == {**names(first), uid("student", 9): ""}
    assert names(later)[uid("student", 9)] == "alee314"


def test_a_number_takes_no_plain_name_away():
    people = [student(1, "Al", "Lee", graduation_year=None), student(2, "Al", "Lee", graduation_year=None), student(3, "Al", "Lee2", graduation_year=None)]  # fmt: skip
    found = names(follow(enrolled(*people)))
    assert (found[uid("student", 3)], sorted(found.values())) == ("alee2", ["alee", "alee2", "alee3"])


def test_students_and_staff_share_no_name_and_a_long_one_is_cut_for_its_number():
    rules = AccountRules.of({"student.username": "{last_name}", "student.max_length": 6, "staff.username": "{last_name}"})  # fmt: skip
    now = roster([student(1, last="Hopper")], [stay(1)], [teacher(1)], [1])
    assert sorted(names(follow(now, rules=rules)).values()) == ["hoppe2", "hopper"]


def test_the_name_of_somebody_who_was_erased_is_given_to_nobody():
    done = follow(enrolled(student(1)), spent={mark("alovelace31")})
    assert list(names(done).values()) == ["alovelace312"]


def test_an_account_is_suspended_after_its_days_of_grace_and_restored_for_who_returns():
    both, left = enrolled(student(1), student(2)), enrolled(student(1), student(2))
    left = replace(left, stays=left.stays.head(1))
    first = follow(both)
    leaving = follow(left, first)
    gone = left.students["student_id"][1]
    assert (leaving.counts["suspended"], leaving.leaving, leaving.counts["updated"]) == (0, 1, 1)
    almost = follow(left, leaving, DAY + timedelta(days=13))
    assert almost.accounts.equals(leaving.accounts)
    over = follow(left, almost, DAY + timedelta(days=14))
    [row] = over.accounts.filter(pl.col("person_id") == gone).rows(named=True)
    assert (row["status"], row["note"], row["missing_since"], over.counts["suspended"]) == ("suspended", LEFT, DAY, 1)
    assert row["school_ids"] == f'["{uid("north")}"]', "what it could see is still known"
    back = follow(both, over, DAY + timedelta(days=60))
    assert (back.counts["restored"], back.accounts.equals(first.accounts)) == (1, True)


def test_a_student_under_review_gets_no_account_and_loses_none():
    first = follow(enrolled(student(1)))
    doubted = enrolled(student(1, near_match=True), student(2, near_match=True))
    done = follow(doubted, first)
    assert (done.waiting, done.counts["created"], done.accounts.equals(first.accounts)) == (1, 0, True)
    assert follow(enrolled(student(1), student(2)), done).counts["created"] == 1


def test_a_merge_keeps_the_older_account_and_a_split_gives_the_other_back():
    two = enrolled(student(1), student(2))
    first = follow(two)
    merged = enrolled(student(1), aliases={uid("student", 2): uid("student", 1)})
    joined = follow(merged, first)
    assert (one(joined, 1), joined.counts["suspended"]) == (one(first, 1), 1)
    assert (one(joined, 2)["status"], one(joined, 2)["note"]) == ("suspended", f"merged into {uid('student', 1)}")
    split = follow(two, joined, DAY + timedelta(days=99))
    assert (split.counts["restored"], split.accounts.equals(first.accounts)) == (1, True)
    assert one(follow(enrolled(student(1)), first), 2)["note"] == UNKNOWN


def test_nobody_leaves_because_the_year_turned():
    people = [student(1), student(2)]
    summer = roster(people, [stay(1, BEFORE), stay(2, BEFORE), stay(1)], years={BEFORE: None, YEAR: date(2025, 8, 18)})
    first = follow(replace(summer, years={BEFORE: None}), day=date(2025, 6, 1))
    assert first.counts["created"] == 2
    for day in (date(2025, 7, 20), date(2025, 8, 17)):
        assert follow(summer, first, day).leaving == 0
    assert follow(replace(summer, years={BEFORE: None}), first, date(2025, 12, 1)).leaving == 0, (
        "nothing newer is published"
    )
    assert follow(summer, first, date(2025, 8, 18)).leaving == 1
    no_sessions = replace(summer, years={BEFORE: None, YEAR: None})
    assert [follow(no_sessions, first, day).leaving for day in (date(2025, 9, 30), date(2025, 10, 1))] == [0, 1]


def test_an_old_withdrawal_does_not_outrank_a_stay_of_now():
    """Only open enrollments are told of, whatever older ended ones say; two years, one open."""
    done = follow(roster([student(1)], [stay(1)], years={BEFORE: None, YEAR: date(2025, 8, 18)}))
    assert (done.counts["created"], done.leaving) == (1, 0)


def test_who_is_still_to_come_has_an_account_the_lead_days_before():
    ahead = AccountRules.of({"student.username": "{last_name}", "student.lead_days": 7})
    now = roster([student(1)], [stay(1, NEXT, date(2026, 8, 18)), stay(5)], years={YEAR: None, NEXT: None})
    found = [follow(now, day=day, rules=ahead).counts["created"] for day in (date(2026, 8, 10), date(2026, 8, 11))]
    assert found == [0, 1]


def test_staff_have_accounts_while_a_system_or_a_section_names_them():
    staff = [teacher(1), teacher(2, "Alan", "Kay", "principal"), teacher(3, "Old", "Hand")]
    posts = [{"staff_id": uid("staff", 1), "school_id": uid("south"), "school_year": YEAR}]
    first = follow(roster(staff=staff, links=[2], posts=posts))
    assert sorted(names(first).values()) == ["alan.kay", "grace.hopper"]
    assert one(first, 1, "staff")["school_ids"] == '["' + '", "'.join(sorted([uid("north"), uid("south")])) + '"]'
    assert (one(first, 2, "staff")["role"], one(first, 2, "staff")["email"]) == ("principal", None)
    gone = follow(roster(staff=staff, links=[2]), first)
    assert one(gone, 1, "staff")["missing_since"] == DAY


def test_a_roster_with_nobody_in_it_suspends_nobody():
    first = follow(roster([student(1)], [stay(1)], [teacher(1)], [1]))
    nothing = follow(roster([student(1)], [], [teacher(1)], []), first, DAY + timedelta(days=400))
    assert nothing.accounts.equals(first.accounts)
    no_stay_of_now = roster([student(1)], [stay(1, BEFORE)], years={BEFORE: None, YEAR: date(2025, 8, 18)})
    assert follow(no_stay_of_now, first, DAY + timedelta(days=30)).leaving == 0


def test_a_kind_that_is_not_configured_stays_as_it_is_and_a_domain_moves_everybody():
    first = follow(roster([student(1)], [stay(1)], [teacher(1)], [1]))
    moved = AccountRules.of({"staff.username": "{last_name}", "staff.domain": "lincoln.example"})
    done = follow(roster([student(1)], [], [teacher(1)], [1]), first, DAY + timedelta(days=99), moved)
    assert one(done, 1) == one(first, 1)
    assert (one(done, 1, "staff")["email"], done.counts["updated"]) == ("grace.hopper@lincoln.example", 1)
    assert follow(roster([student(1)], [stay(1)]), rules=AccountRules()).accounts.is_empty()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"student.shoe": 1}, "'student.shoe' is no setting of accounts; choose one of student.username"),
        ({"pupil.username": "{last_name}"}, "is no setting"),
        ({"staff.lead_days": 3}, "is no setting"),
        ({"student.domain": "lincoln.example"}, "no student.username"),
        ({"student.username": "{ssid}"}, "names what there is not; a student has {first_name}"),
        ({"staff.username": "{grad_year}"}, "names what there is not"),
        ({"student.username": "{last_name!r}"}, "names what there is not"),
        ({"student.username": "{last_name:>9}"}, "names what there is not"),
        ({"student.username": "pupil"}, "names nothing of the student"),
        ({"student.username": "{last_name"}, "can't be read"),
        ({"student.username": "{last_name}@x"}, "has other text than"),
        ({"student.username": "{last_name}", "student.max_length": 3}, "from 4 to 64, not '3'"),
        ({"student.username": "{last_name}", "student.grace_days": "soon"}, "from 0 to 365, not 'soon'"),
        ({"student.username": "{last_name}", "student.characters": "!"}, "takes some of"),
        ({"student.username": "{last_name}", "student.domain": "lincoln"}, "takes a domain"),
        ({"student.username": "{last_name}", "student.domain": "a@lincoln.example"}, "takes a domain"),
    ],
)
def test_a_wrong_rule_is_said_in_words(settings, why):
    with pytest.raises(ValueError, match=why):
        AccountRules.of(settings)
