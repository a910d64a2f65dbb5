"""Which accounts a district's people have, as its published roster and its account rules say on a day.
Nothing here reads or writes anything; user names are made in `usernames`, what is kept is written by store.accounts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import ClassVar
from uuid import NAMESPACE_URL, uuid5

import polars as pl

from sis_pipeline.roster.account_rules import KINDS, AccountKind, AccountRules, KindRules
from sis_pipeline.roster.enrollments import OPEN
from sis_pipeline.roster.frames import fit
from sis_pipeline.roster.model import ACCOUNTS, Kind
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.usernames import given_names, wanted_names

STUDENT: dict[str, Kind] = {
    "student_id": "uuid", "first_name": "text", "middle_name": "text", "last_name": "text", "preferred_first_name": "text",
    "graduation_year": "int", "local_id": "text", "username": "text", "near_match": "bool",
}  # fmt: skip
"""What is needed of a published student."""
STAFF: dict[str, Kind] = {
    "staff_id": "uuid", "first_name": "text", "middle_name": "text", "last_name": "text", "preferred_first_name": "text",
    "local_id": "text", "username": "text", "role": "text", "school_id": "uuid", "near_match": "bool",
}  # fmt: skip
STAY: dict[str, Kind] = {"student_id": "uuid", "school_id": "uuid", "school_year": "text", "entry_date": "date"}
"""An open enrollment."""
POST: dict[str, Kind] = {"staff_id": "uuid", "school_id": "uuid", "school_year": "text"}
"""A section that somebody teaches, or works in, until a later day."""
LINK: dict[str, Kind] = {"staff_id": "uuid"}
"""An active link of a staff member."""

ASKING = {"person_id": pl.String, "waits": pl.Boolean, "role": pl.String, "school_ids": pl.String, "kind": pl.String, "wanted": pl.String}  # fmt: skip

LEFT = "the roster has no place for the person"
UNKNOWN = "the roster does not know the person any more"
MERGED_INTO = "merged into "
YEAR_BEGINS = (10, 1)
"""Month and day from which on a school year without sessions has begun."""


@dataclass(frozen=True)
class Roster:
    """What a district has published, as far as accounts go by it. `years`: the published school years -> the first day of
    school, where the sessions tell. `aliases`: students that were merged away -> who they are now."""

    students: pl.DataFrame
    staff: pl.DataFrame
    stays: pl.DataFrame
    posts: pl.DataFrame
    links: pl.DataFrame
    years: Mapping[str, date | None]
    aliases: Mapping[str, str]


@dataclass(frozen=True)
class Decision:
    """`accounts`: all accounts of a district as they are to be, as ACCOUNTS; `made`: those of them that are new, `changed`:
    those that are as they were not. `becoming`: kind and person_id of both, and what `becomes` of each, one of CHANGES.
    `leaving`: active ones in their grace period. `waiting`: students without an account because a possible same person
    is under review. `numbered`: new user names with a number, the plain one being taken."""

    accounts: pl.DataFrame
    made: pl.DataFrame
    changed: pl.DataFrame
    becoming: pl.DataFrame
    leaving: int
    waiting: int
    numbered: int

    CHANGES: ClassVar = ("created", "updated", "suspended", "restored")

    @property
    def counts(self) -> dict[str, int]:
        found = dict(self.becoming["becomes"].value_counts().iter_rows())
        changes = {name: found.get(name, 0) for name in self.CHANGES}
        return {**changes, "leaving": self.leaving, "waiting": self.waiting}


def decide(
    district: str,
    accounts: pl.DataFrame,
    roster: Roster,
    rules: AccountRules,
    as_of: date,
    *,
    spent: Collection[int] = (),
) -> Decision:
    """The accounts that follow from a published roster on a day. The result does not depend on the order of any input.

    An account is never deleted, keeps its user name, and is suspended when its person has had no place for the days of
    grace, or at once when the person became another one. A kind of which the roster has nobody at all is left as it is:
    such an absence proves nothing. `spent`: see `usernames.given_names`.
    """
    before, people = accounts.sort("account_id"), _heard(roster, rules, as_of)
    after = [before.filter(~pl.col("kind").is_in(list(people)))]
    asking = [pl.DataFrame(schema=ASKING)]
    for kind, found in people.items():
        own = rules.of_kind(kind)
        after.append(_followed(before.filter(pl.col("kind") == kind), found, own, roster.aliases, as_of))
        asking.append(_asking(kind, found.filter("present"), before, own))
    followed = pl.concat([fit(part, ACCOUNTS) for part in after]).sort("account_id")
    new = pl.concat(asking)
    made, numbered = _made(district, new.filter(~pl.col("waits")), before, rules, spent)
    was, now = before["status"] == "active", followed["status"] == "active"
    differs = _differs(before, followed)
    becomes = pl.when(was & ~now).then(pl.lit("suspended")).when(now & ~was).then(pl.lit("restored"))
    changed = followed.with_columns(becomes=becomes.otherwise(pl.lit("updated"))).filter(differs)
    becoming = pl.concat([made.with_columns(becomes=pl.lit("created")), changed])
    return Decision(
        accounts=pl.concat([followed, made]).sort("account_id"),
        made=made,
        changed=changed.drop("becomes"),
        becoming=becoming.select("kind", "person_id", "becomes"),
        leaving=int((now & followed["missing_since"].is_not_null()).sum()),
        waiting=int(new["waits"].sum()),
        numbered=numbered,
    )


def after_publication(
    roster: Roster, frames: Mapping[str, pl.DataFrame], retired: Mapping[str, str], school_year: str, as_of: date
) -> Roster:
    """The published roster once the frames of a merge of a school year, by MERGED name, are published. `retired`: students
    and staff whom it merges into others."""

    def people(table: str, key: str, before: pl.DataFrame) -> pl.DataFrame:
        now = frames[table].select(before.columns)
        rest = before.filter(~pl.col(key).is_in(list(retired))).join(now, on=key, how="anti")
        return pl.concat([rest, now])

    def of_year(before: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
        return pl.concat([before.filter(pl.col("school_year") != school_year), now.select(before.columns)])

    sessions = frames["academic_sessions"].filter(pl.col("kind") == "school_year")
    stays = of_year(roster.stays, frames["enrollments"].filter(pl.col("status").is_in(OPEN)))
    years = {year: begins for year, begins in roster.years.items() if year != school_year}
    if sessions.height or school_year in stays["school_year"]:
        years[school_year] = sessions.select(pl.col("start_date").max()).item()
    return Roster(
        students=people("students", "student_id", roster.students),
        staff=people("staff", "staff_id", roster.staff),
        stays=stays,
        posts=of_year(roster.posts, _posts(frames["section_enrollments"], frames["sections"], as_of)),
        links=frames["staff_links"].filter("active").select("staff_id").unique(),
        years=dict(sorted(years.items())),
        aliases={**{alias: retired.get(now, now) for alias, now in roster.aliases.items()}, **retired},
    )


def _posts(seats: pl.DataFrame, sections: pl.DataFrame, as_of: date) -> pl.DataFrame:
    """As POST: who works in a section until a later day, and whom it names as its teacher."""
    at_work = (pl.col("role") != "student") & (pl.col("end_date").is_null() | (pl.col("end_date") > as_of))
    working = seats.filter(at_work).select("section_id", staff_id="person_id").join(sections, on="section_id")
    named = sections.drop_nulls("teacher_id").rename({"teacher_id": "staff_id"})
    return pl.concat([working.select(list(POST)), named.select(list(POST))]).unique()


def _heard(roster: Roster, rules: AccountRules, as_of: date) -> dict[AccountKind, pl.DataFrame]:
    """By kind of account that the district has: everybody the roster knows. A kind without anybody is left out."""
    found = {
        kind: _students(roster, rules.student, as_of) if kind == "student" else _staff(roster, as_of)
        for kind in rules.kinds
    }
    delivered = {"student": True, "staff": roster.links.height > 0}
    return {kind: people for kind, people in found.items() if delivered[kind] and people["present"].any()}


def _asking(kind: AccountKind, people: pl.DataFrame, accounts: pl.DataFrame, rules: KindRules) -> pl.DataFrame:
    """Who has a place and no account, with the user name that each would have alone."""
    have = accounts.filter(pl.col("kind") == kind).select("person_id")
    without = people.join(have, on="person_id", how="anti")
    named = without.with_columns(kind=pl.lit(kind), wanted=wanted_names(without, rules, kind))
    return named.select(list(ASKING))


def _differs(before: pl.DataFrame, after: pl.DataFrame) -> pl.Series:
    both = [before[name].ne_missing(after[name]) for name in before.columns]
    return pl.select(pl.any_horizontal(both)).to_series()


def _placed(known: pl.DataFrame, places: pl.DataFrame) -> pl.DataFrame:
    """Everybody known, with `present` and `school_ids`. `places`: person_id, and school_id where it is one."""
    placed = places.group_by("person_id").agg(
        first=pl.col("school_id").min(), last=pl.col("school_id").max(), present=pl.lit(value=True)
    )
    # nearly everybody is at one school, and joining texts group by group takes longer than all the rest
    several = placed.filter(pl.col("first") != pl.col("last")).select("person_id")
    listed = (
        places.join(several, on="person_id", how="semi")
        .group_by("person_id")
        .agg(schools=pl.col("school_id").drop_nulls().unique().sort().str.join('", "'))
    )
    text = pl.lit('["') + pl.coalesce("schools", "first") + pl.lit('"]')
    return (
        known.join(placed, on="person_id", how="left")
        .join(listed, on="person_id", how="left")
        .with_columns(pl.col("present").fill_null(value=False), school_ids=text.fill_null("[]"))
    )


def _students(roster: Roster, rules: KindRules, as_of: date) -> pl.DataFrame:
    known = roster.students.rename({"student_id": "person_id"}).with_columns(
        waits=pl.col("near_match").fill_null(value=False), role=pl.lit("student")
    )
    come = pl.col("entry_date") <= as_of + timedelta(days=rules.lead_days)
    counts = pl.col("school_year").is_in(_counting(roster.years, as_of)) & come
    return _placed(known, roster.stays.filter(counts).select("school_id", person_id="student_id"))


def _staff(roster: Roster, as_of: date) -> pl.DataFrame:
    """Present is whoever a system delivers, or has a section."""
    known = roster.staff.rename({"staff_id": "person_id"}).with_columns(
        waits=pl.col("near_match").fill_null(value=False)
    )
    posts = roster.posts.filter(pl.col("school_year").is_in(_counting(roster.years, as_of)))
    teaching = posts.select("school_id", person_id="staff_id")
    working = pl.concat([roster.links["staff_id"], teaching["person_id"]]).unique()
    main = known.filter(pl.col("person_id").is_in(working.implode())).select("school_id", "person_id")
    return _placed(known.drop("school_id"), pl.concat([main, teaching]))


def _counting(years: Mapping[str, date | None], as_of: date) -> list[str]:
    """The school years whose open enrollments are places: the newest published one that is not still to come, those
    after it, and the one before it until school has begun. So nobody leaves because the year turned."""
    present = SchoolYear.on(as_of).key
    newest = max((year for year in years if year <= present), default=present)
    begins = years.get(newest) or date(SchoolYear.parse(newest).start, *YEAR_BEGINS)
    before = [SchoolYear(SchoolYear.parse(newest).start - 1).key] if as_of < begins else []
    return [*before, *(year for year in years if year >= newest)]


def _followed(
    accounts: pl.DataFrame, people: pl.DataFrame, rules: KindRules, aliases: Mapping[str, str], as_of: date
) -> pl.DataFrame:
    """Accounts there are, as they go on."""
    now = people.select("person_id", "present", now_role="role", now_schools="school_ids", known=pl.lit(value=True))
    merged = pl.col("person_id").replace_strict(dict(aliases), default=None, return_dtype=pl.String)
    is_present = pl.col("present").fill_null(value=False)
    is_known = pl.col("known").fill_null(value=False)
    is_over = ~is_present & (~is_known | (pl.col("missing_since") + timedelta(days=rules.grace_days) <= as_of))
    missing = accounts.join(now, on="person_id", how="left").with_columns(
        missing_since=pl.when(~is_present).then(pl.coalesce("missing_since", pl.lit(as_of)))
    )
    note = (
        pl.when(is_known).then(pl.lit(LEFT))
        .when(merged.is_not_null()).then(pl.lit(MERGED_INTO) + merged)
        .otherwise(pl.lit(UNKNOWN))
    )  # fmt: skip
    return missing.with_columns(
        status=pl.when(is_present).then(pl.lit("active")).when(is_over).then(pl.lit("suspended")).otherwise("status"),
        role=pl.coalesce("now_role", "role"),
        school_ids=pl.when(is_present).then("now_schools").otherwise("school_ids"),
        email=_email(rules.domain),
    ).with_columns(note=pl.when(pl.col("status") == "suspended").then(note))


def _email(domain: str | None) -> pl.Expr:
    return pl.lit(None, pl.String) if domain is None else pl.col("username") + pl.lit(f"@{domain}")


def _made(
    district: str, asking: pl.DataFrame, accounts: pl.DataFrame, rules: AccountRules, spent: Collection[int]
) -> tuple[pl.DataFrame, int]:
    """The accounts of those who have none, and how many could not have the user name they would have alone."""
    if asking.is_empty():
        return accounts.clear(), 0
    new = asking.sort("wanted", "kind", "person_id")
    taken = set(accounts["username"])
    longest = {kind: rules.of_kind(kind).max_length for kind in KINDS}
    wanted = ((name, longest[kind]) for name, kind in new.select("wanted", "kind").iter_rows())
    names = given_names(wanted, taken, spent)
    ids = [str(uuid5(NAMESPACE_URL, f"sis:account:{district}:{one}")) for one in new["person_id"]]
    named = new.with_columns(
        district=pl.lit(district),
        account_id=pl.Series(ids, dtype=pl.String),
        username=pl.Series(names, dtype=pl.String),
        status=pl.lit("active"),
    )
    email = pl.coalesce(
        *(pl.when(pl.col("kind") == kind).then(_email(rules.of_kind(kind).domain)) for kind in KINDS),
    )
    made = fit(named.with_columns(email=email), ACCOUNTS)
    return made, int((named["wanted"] != named["username"]).sum())
