"""The truth against the world, counted another way: what changed is what differs between two days."""

from __future__ import annotations

from collections import Counter

import pytest

from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.things import Person
from sis_pipeline.sandbox.world import World


def open_seats(world: World, day: int) -> set[tuple[int, str, int]]:
    return {
        (person.key, seat.system, seat.section)
        for person in world.people(day).values()
        for seat in person.seats
        if seat.year == world.year and seat.dropped is None and not person.bad
        and (seat.system, seat.section) in world.population.sections
    }  # fmt: skip


def running(world: World, person: Person) -> set[str]:
    return {stint.school for stint in person.stints if stint.year == world.year and stint.status == "active"}


@pytest.mark.parametrize("day", [2, 3, 4])
def test_section_events_are_the_difference_between_two_days(world: World, day: int) -> None:
    before, after = open_seats(world, day - 1), open_seats(world, day)
    events = Counter(
        (change.kind, (change.person, *change.section)) for change in world.truth(day).changes if change.section
    )
    assert events == Counter(
        [("section_add", seat) for seat in after - before] + [("section_drop", seat) for seat in before - after]
    )


@pytest.mark.parametrize("day", [2, 3, 4])
def test_enrollment_events_are_the_difference_between_two_days(world: World, day: int) -> None:
    before, after = world.people(day - 1), world.people(day)
    schools_before = {key: running(world, person) for key, person in before.items()}
    expected: Counter[tuple[int, str, str | None]] = Counter()
    for key, person in after.items():
        old, new = schools_before.get(key, set()), running(world, person)
        if old - new and new - old:
            expected[key, "transfer", next(iter(new - old))] += 1
        elif new - old:
            been = key in before
            expected[key, "re_enter" if been else "enroll", next(iter(new - old))] += 1
        elif old - new:
            never = any(stint.status == "no_show" for stint in person.stints)
            expected[key, "no_show" if never else "withdraw", next(iter(old - new))] += 1
    found = Counter(
        (change.person, change.kind, change.school)
        for change in world.truth(day).changes
        if change.kind in {"enroll", "withdraw", "transfer", "re_enter", "no_show"}
    )
    assert found == expected


def test_every_kind_of_event_happens(world: World) -> None:
    kinds = {change.kind for day in (2, 3) for change in world.truth(day).changes}
    assert kinds == {
        "enroll", "withdraw", "transfer", "no_show", "re_enter", "amend", "grade_change", "section_add", "section_drop",
    }  # fmt: skip
    across = [
        change for day in (2, 3) for change in world.truth(day).changes
        if change.kind == "transfer"
        and world.population.schools[change.school].system != world.population.schools[change.from_school].system
    ]  # fmt: skip
    assert across


def test_some_graduate_in_the_middle_of_the_year_where_that_is_asked_for() -> None:
    world = World(systems=[System("a", "powerschool", 80, {"graduates": True})])
    days = {day: [change for change in world.truth(day).changes if change.kind == "graduate"] for day in range(2, 5)}
    assert [len(changes) for changes in days.values()] == [1] * len(days)
    for day, [change] in days.items():
        assert (change.effective, change.stated) == (world.date(day), True)
        assert world.people(5)[change.person].stints[-1].status == "graduated", "and never comes back"


def test_who_left_stays_away_as_long_as_is_asked_for() -> None:
    world = World(systems=[System("a", "powerschool", 80, {"stays_away": 3})])
    left, stayed = {}, []
    for day in range(2, 8):
        for change in world.truth(day).changes:
            if change.kind in {"withdraw", "no_show"}:
                left[change.person] = day
            elif change.kind == "re_enter":
                stayed.append(day - left[change.person])
    assert stayed
    assert min(stayed) == 3


def test_a_drop_without_a_date_shows_on_its_day_but_never_before_the_seat_begins(world: World) -> None:
    today = world.date(2)
    drops = [change for change in world.truth(2).changes if change.kind == "section_drop" and not change.stated]
    assert {change.effective > today for change in drops} == {False, True}
    assert all(change.effective >= today for change in drops)


def test_the_first_load_is_one_enroll_per_good_enrollment(world: World) -> None:
    for year in (world.school_year, world.prior_year):
        truth = world.truth(1, year)
        assert {change.kind for change in truth.changes} == {"enroll"}
        assert len(truth.changes) == sum(rows["enrollments"].good for rows in truth.rows.values())


def test_nothing_new_happens_in_the_year_before(world: World) -> None:
    assert world.truth(2, world.prior_year).changes == ()


def test_bad_rows_take_with_them_what_hangs_on_them(world: World) -> None:
    rows = world.truth(1).rows
    for name, counted in rows.items():
        assert counted["students"].bad == 2, name
        assert counted["section_enrollments"].bad == 2 * 7 + 1, name
        scheduled = world.system(name).speech.scheduled
        assert counted["enrollments"].bad == 2 + scheduled, name
        quarantined = world.truth(1).quarantined_students[name]
        assert len(quarantined) == 2
        assert not {(name, sis_id) for sis_id in quarantined} & set().union(*world.truth(1).people.values())
    assert all(not counted["students"].bad for counted in world.truth(1, world.prior_year).rows.values())


def test_without_birth_dates_a_wrong_one_harms_nobody() -> None:
    world = World(systems=[System("a", "infinite_campus", 40, {"demographics": False})])
    assert world.truth(1).rows["a"]["students"].bad == 1


def test_bad_rows_can_be_left_out() -> None:
    world = World(systems=[System("a", "powerschool", 40, {"bad_rows": False})])
    assert not any(rows.bad for rows in world.truth(1).rows["a"].values())


def test_people_are_grouped_by_person_and_a_group_holds_each_system_once(world: World) -> None:
    truth = world.truth(2)
    records = [record for group in truth.people.values() for record in group]
    assert len(records) == len(set(records))
    assert truth.matched == len(truth.groups) > 0
    for group in truth.groups:
        assert len({system for system, _ in group}) == len(group) == 2


def test_who_is_gone_stays_known(world: World) -> None:
    one, two = world.truth(1), world.truth(2)
    assert set(two.known_people) == set(one.people) | set(two.people)
    assert set(one.people) - set(two.people), "somebody vanished"


def test_disagreements_begin_and_end(world: World) -> None:
    one, two = set(world.truth(1).disagreements), set(world.truth(2).disagreements)
    assert two - one
    assert one - two
    for claimed in world.truth(2).disagreements.values():
        assert len(claimed) == 2


def test_a_student_of_two_systems_is_enrolled_in_both_and_the_first_is_primary(world: World) -> None:
    order = [system.name for system in world.systems]
    truth = world.truth(1)
    for key, group in truth.people.items():
        if len(group) == 2:
            first, second = sorted((system for system, _ in group), key=order.index)
            schools = {world.population.schools[number].system: kind for number, kind in truth.enrolled[key]}
            assert schools == {first: "primary", second: "secondary"}


def test_corrections_change_what_a_system_says(world: World) -> None:
    truth = world.truth(2)
    assert truth.corrected
    for (key, attribute), system in truth.corrected.items():
        values = []
        for day in (1, 2):
            rows = world.view(system, day).students
            values.append(next(row.values[attribute] for row in rows if row.person.key == key))
        assert values[0] != values[1]


def test_pre_registered_students_are_enrolled_when_first_seen_and_begin_on_their_day() -> None:
    world = World(systems=[System("a", "powerschool", 40, {"pre_registered": 2})])
    waiting = [
        person.key for person in world.people(1).values() for stint in person.stints if stint.status == "pre_registered"
    ]
    assert len(waiting) == 2
    enrolled = {change.person for change in world.truth(1).changes}
    assert set(waiting) <= enrolled
    assert not [change for change in world.truth(3).changes if change.person in waiting]
    assert all(world.people(3)[key].stints[-1].status == "active" for key in waiting)
