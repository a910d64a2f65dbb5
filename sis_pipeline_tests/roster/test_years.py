"""Who is who is one question for all school years of a district: in whichever order they are merged, all end the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import permutations
from typing import Any

import polars as pl
from hypothesis import example, given
from hypothesis import strategies as st

from sis_pipeline.roster.contract import PUBLICATION, MergedRoster
from sis_pipeline.roster.decisions import DISTINCT, SAME
from sis_pipeline_tests.roster.rosters import Roster, laws, merge, publish, rows
from sis_pipeline_tests.roster.test_decisions import decided, decisions

LAST, NOW = "2024-2025", "2025-2026"
ENTRY = {LAST: "2024-08-19", NOW: "2025-08-18"}
TODAY = date(2025, 10, 1)
OURS = ("a/1", "b/2", "c/3")
EVERYWHERE = {year: frozenset(OURS) for year in ENTRY}
PEOPLE = tuple(name for name, scope in PUBLICATION.items() if scope != "append" and not name.startswith("staff"))


@dataclass
class District:
    """What is published of a district, over all years, and the ids that were merged away."""

    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def merge(self, roster: Roster, decided: pl.DataFrame) -> MergedRoster:
        merged = merge(roster, self.tables, as_of=TODAY, aliases=self.aliases, decisions=decided)
        self.tables = publish(self.tables, merged, roster.year)
        known = set(self.tables["student_links"]["student_id"])
        aliases = {alias: merged.retired.get(now, now) for alias, now in self.aliases.items()} | dict(merged.retired)
        self.aliases = {alias: now for alias, now in aliases.items() if alias not in known}
        return merged

    def student(self, record: str) -> str:
        integration, sis_id = record.split("/")
        links = self.tables["student_links"]
        mine = links.filter((pl.col("integration") == integration) & (pl.col("sis_id") == sis_id))
        return str(mine["student_id"].item())

    def rosters(self) -> dict[str, list[Any]]:
        """Who is published in which year, and where: every table of people but for how it came about."""
        aside = {"snapshot_id", "rule", "confidence", "near_match"}
        return {name: rows(frame, *(it for it in frame.columns if it not in aside)) for name in PEOPLE
                if not (frame := self.tables[name]).is_empty()}  # fmt: skip


def delivered(year: str, records: frozenset[str], **of_ours: Mapping[str, Any]) -> Roster:
    """A school year with some records of ours and two more students in every system; each has a stay and a seat."""
    roster = Roster(year)
    for integration in "abc":
        mine = [record for record in records if record.startswith(integration)]
        roster.school("1", integration)
        others = [f"{integration}{number}" for number in range(2)]
        for number, sis_id in enumerate(others):
            name = {"first_name": f"First{number}", "last_name": f"Last{integration}", "ssid": f"{integration}{number}"}
            roster.student(sis_id, integration=integration, stay={"entry_date": ENTRY[year]}, **name)
        for record in mine:
            sis_id = record.split("/")[1]
            said = dict(of_ours.get(integration, {}))
            roster.student(sis_id, integration=integration, stay={"entry_date": ENTRY[year]}, **said)
        seats = [*others, *(record.split("/")[1] for record in mine)]
        roster.section(f"m-{year}", *seats, integration=integration)
    return roster


def loaded(years: Mapping[str, frozenset[str]]) -> District:
    district = District()
    for year, records in years.items():
        district.merge(delivered(year, records), decisions())
    return district


def followed(district: District, order: Sequence[Roster], made: pl.DataFrame) -> District:
    """The district after its years were merged in an order: nothing happened to anybody."""
    after = District(district.tables, district.aliases)
    for roster in order:
        merged = after.merge(roster, made)
        assert merged.changes.is_empty(), merged.changes["kind"].to_list()
        assert merged.held == ()
    return after


def in_any_order(district: District, rosters: Sequence[Roster], made: pl.DataFrame) -> District:
    """What every order of the years leads to; to merge them again changes nothing."""
    end, *others = [followed(district, order, made) for order in permutations(rosters)]
    assert all(other.rosters() == end.rosters() for other in others)
    again = followed(end, rosters, made)
    assert all(again.tables[name].equals(frame) for name, frame in end.tables.items())
    named = {
        person
        for name in ("student_years", "enrollments", "student_sources")
        for person in end.tables[name]["student_id"]
    }
    assert named <= set(end.tables["students"]["student_id"])
    return end


def parted(district: District, leaving: Mapping[str, str], staying: Sequence[str]) -> pl.DataFrame:
    """What a person says who splits: every record that leaves gets its id back and is none of those that stay."""
    return decisions(
        *(
            decided(DISTINCT, one, other, own, district.student(other))
            for one, own in leaving.items()
            for other in staying
        )
    )


def test_students_that_turn_out_to_be_one_are_joined_in_every_year_without_a_removal() -> None:
    district = loaded(EVERYWHERE)
    before = {record: district.student(record) for record in OURS}
    assert len(set(before.values())) == 3
    same_id = {"a": {"ssid": "777"}, "b": {"ssid": "777"}}
    rosters = [delivered(LAST, EVERYWHERE[LAST]), delivered(NOW, EVERYWHERE[NOW], **same_id)]
    for order in (rosters, rosters[::-1]):
        end = District(district.tables, district.aliases)
        for roster in [rosters[1], *order]:  # this year's merge finds out
            merged = end.merge(roster, decisions())
            assert merged.changes.is_empty()
            assert merged.held == ()
        assert end.student("a/1") == end.student("b/2") != end.student("c/3")
        gone = ({before["a/1"], before["b/2"]} - {end.student("a/1")}).pop()
        for table in ("students", "student_years", "student_sources", "enrollments"):
            assert gone not in set(end.tables[table]["student_id"]), table
        assert gone not in set(end.tables["section_enrollments"]["person_id"])


def test_who_left_in_the_year_is_joined_too() -> None:
    """Nothing that is delivered names the student any more: only the alias knows."""
    district = loaded(EVERYWHERE)
    rosters = [delivered(LAST, frozenset({"a/1", "c/3"})), delivered(NOW, EVERYWHERE[NOW])]
    district.merge(rosters[0], decisions())
    gone = district.student("b/2")
    end = in_any_order(district, rosters, decisions(decided(SAME, "a/1", "b/2")))
    left = end.tables["student_years"].filter(pl.col("school_year") == LAST)
    assert (gone in set(left["student_id"])) == (end.student("a/1") == gone)


def test_a_split_takes_the_other_child_s_values_along() -> None:
    """The two were never in one school year; what the later one said of the joined student is not the first child's."""
    rosters = [delivered(LAST, frozenset(OURS[:1])), delivered(NOW, frozenset(OURS[1:2]), b={"middle_name": "May"})]
    district = District()
    for roster in rosters:
        district.merge(roster, decisions())
    before = {record: district.student(record) for record in OURS[:2]}
    joined = in_any_order(district, rosters, decisions(decided(SAME, "a/1", "b/2")))
    keeper = joined.student("a/1")
    [leaver] = [record for record in before if before[record] != keeper]
    [stayer] = [record for record in before if before[record] == keeper]
    apart = in_any_order(joined, rosters, parted(joined, {leaver: before[leaver]}, [stayer]))
    values = ("student_id", "middle_name", "latest_school_year", "origins")
    assert rows(apart.tables["students"], *values) == rows(district.tables["students"], *values)


somewhere = st.frozensets(st.sampled_from(OURS), min_size=1)


@laws(2)
@example(last=frozenset(OURS), now=frozenset(OURS), third=True, leaver="c/3")
@example(last=frozenset(OURS[:1]), now=frozenset(OURS[1:]), third=False, leaver="b/2")
@given(last=somewhere, now=somewhere, third=st.booleans(), leaver=st.sampled_from(OURS))
def test_law_of_years(last: frozenset[str], now: frozenset[str], third: bool, leaver: str) -> None:
    """Whatever the order in which years are merged after a join, and after the split that undoes it: every year ends with
    the same students, nobody enrolls or leaves, and merging again changes nothing."""
    years = {LAST: last, NOW: now}
    district = loaded(years)
    rosters = [delivered(year, records) for year, records in years.items()]
    known = sorted(last | now)
    before = {record: district.student(record) for record in known}
    one = known if third else known[:2]
    made = decisions(*(decided(SAME, one[0], other, before[one[0]], before[other]) for other in one[1:]))
    joined = in_any_order(district, rosters, made)
    keeper = joined.student(one[0])
    assert {joined.student(record) for record in one} == {keeper}
    leaving = {record: before[record] for record in one if record == leaver and before[record] != keeper}
    if leaving:
        apart = in_any_order(joined, rosters, parted(joined, leaving, [it for it in one if it not in leaving]))
        assert apart.student(leaver) == before[leaver]
        for table in ("student_years", "student_sources", "enrollments"):
            of_leaver = [frame.filter(pl.col("student_id") == before[leaver]) for frame in
                         (district.tables[table], apart.tables[table])]  # fmt: skip
            assert rows(of_leaver[0], "school_year") == rows(of_leaver[1], "school_year"), table
