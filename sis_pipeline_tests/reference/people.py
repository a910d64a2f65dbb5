"""Who is who: which records are one student, which may be, and what each student's permanent id is.
Written from the rules (DESIGN 6, docs/failure-modes.md 8 to 14) over signatures: two records with a signature in common
are one student by that rule. What a student's values are is found in `values`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from rapidfuzz.distance import OSA, Hamming, JaroWinkler

from sis_pipeline.roster.ids import derived_id
from sis_pipeline.roster.near import NEIGHBOURS
from sis_pipeline.roster.nicknames import NICKNAMES
from sis_pipeline_tests.reference import spelling

Row = Mapping[str, Any]
Key = tuple[str, str]
"""Integration and sis_id of a record."""
Signature = tuple[Any, ...]
Signatures = Callable[["Facts"], Iterator[Signature]]
Pair = tuple[int, int]
"""Numbers of two records, the later one first."""
ROUNDING = 1e-6
"""The engine counts likeness in single precision."""


@dataclass(frozen=True)
class Facts:
    """What is compared of a record, or, where `key` is None, of a student as published; `once_…` is what the student is, or
    was, published as, and nothing of a record."""

    key: Key | None
    student: str | None
    ssid: tuple[str, str] | None
    one_of: tuple[str, str] | None
    """The state id, or that of the same child's which stands for it."""
    local_id: tuple[str, str] | None
    first: str | None
    last: str | None
    firsts: frozenset[str]
    lasts: frozenset[str]
    once_firsts: frozenset[str]
    once_lasts: frozenset[str]
    birth: date | None
    email: str | None
    phones: frozenset[str]
    school: str | None
    grade: str | None


@dataclass(frozen=True)
class Found:
    """`students`: of every record the student, the rule and the confidence. `near`, `cut`: rows as `merge_district` has
    them. `recycled`: whose id was given to another child; `questions`: rows as of near matches, that ask about these. `retired`: a student's id that is now another's. `everybody`: the student of every record ever linked."""

    students: Mapping[Key, tuple[str, str, float]]
    near: Sequence[Row]
    cut: Sequence[Row]
    recycled: frozenset[Key]
    questions: Sequence[Row]
    retired: Mapping[str, str]
    everybody: Mapping[Key, str]


# --- the rules --------------------------------------------------------------------------------------------------------


def by_ssid(it: Facts) -> Iterator[Signature]:
    """One state id, and a first name with the birth date or a last name."""
    yield from _by_id(it, it.ssid)


def by_local_id(it: Facts) -> Iterator[Signature]:
    """One local id of one issuer, and the same."""
    yield from _by_id(it, it.local_id)


def _by_id(it: Facts, number: tuple[str, str] | None) -> Iterator[Signature]:
    for first in it.firsts if number else ():
        if it.birth:
            yield number, first, it.birth
        for last in it.lasts | it.once_lasts:
            yield number, first, last


def by_school_and_grade(it: Facts) -> Iterator[Signature]:
    """Exactly the name and the birth date, and the school with the grade."""
    if it.first and it.last and it.birth and it.school and it.grade:
        yield it.first, it.last, it.birth, it.school, it.grade


def by_email(it: Facts) -> Iterator[Signature]:
    if it.first and it.last and it.birth and it.email:
        yield it.first, it.last, it.birth, it.email


def by_phone(it: Facts) -> Iterator[Signature]:
    for phone in it.phones if it.first and it.last and it.birth else ():
        yield it.first, it.last, it.birth, phone


STRENGTHS: tuple[tuple[tuple[str, Signatures], ...], ...] = (
    (("ssid", by_ssid),),
    (("local_id", by_local_id),),
    (("name_birth_school_grade", by_school_and_grade), ("name_birth_email", by_email), ("name_birth_phone", by_phone)),
)
"""Rules by which two records are one student, the strongest first."""


def alike_by_ssid(it: Facts) -> Iterator[Signature]:
    if it.ssid:
        yield (it.ssid,)


def alike_by_local_id(it: Facts) -> Iterator[Signature]:
    if it.local_id:
        yield (it.local_id,)


def alike_by_name_and_birth(it: Facts) -> Iterator[Signature]:
    if it.first and it.last and it.birth:
        yield it.first, it.last, it.birth


DOUBTS: tuple[tuple[str, Signatures], ...] = (
    ("ssid", alike_by_ssid),
    ("local_id", alike_by_local_id),
    ("name_birth", alike_by_name_and_birth),
)
"""What makes two records of two students a near match, the strongest first."""
LESSER = len(DOUBTS)
"""The strength of near matches by likeness alone."""


def compared(it: Facts) -> Iterator[Signature]:
    """Only who shares one of these is looked at for likeness."""
    if it.birth:
        day, month = sorted((it.birth.day, it.birth.month))
        for last in it.lasts:
            yield "birth and last name", it.birth, last
            if it.birth.day <= 12:
                yield "birth, day and month either way", it.birth.year, day, month, last
            if it.first:
                yield "last name, initial and year", last, it.first[0], it.birth.year
        for first in it.firsts:
            yield "birth and first name", it.birth, first
        if it.first and it.last:
            yield "birth and initials", it.birth, it.first[0], it.last[0]


# --- how it goes ------------------------------------------------------------------------------------------------------


def who_is_who(
    district: str,
    records: Sequence[Row],
    *,
    links: Sequence[Row],
    students: Sequence[Row],
    before: Sequence[Row],
    decisions: Sequence[Row] = (),
    former: Sequence[Row] = (),
) -> Found:
    """`records` have `school_id`; `before`: what records said when they were published; `decisions` are between two
    records, and no link joins two that were told apart. `former`: names that were published of students before."""
    link = {(row["integration"], row["sis_id"]): row for row in links}
    facts = _facts(records, students, former)
    was = {(row["integration"], row["sis_id"]): row["student_id"] for row in before}
    recycled = frozenset(_recycled(facts, link, _facts(before, []), was))
    questions = [row for key in sorted(recycled) for row in _question(district, facts, key, link, was.get(key))]
    facts = [it for it in facts if it.key not in recycled]
    numbers = _numbers(facts, link)
    same, with_two_ids, told = (
        _decided(decisions, verdict, numbers) for verdict in ("same", "same_with_two_state_ids", "distinct")
    )

    linked = _linked(facts, link)
    group = joined(list(range(len(facts))), linked)
    facts = _with_ids_of_one_child(facts, joined(group, with_two_ids), with_two_ids)
    rules: dict[int, tuple[int, str]] = {}
    cut: list[tuple[Pair, str]] = []
    for strength, pairs in _strengths(_surely_named(facts), [*same, *with_two_ids]):
        held, torn, group = _joined_but_apart(facts, group, pairs, told)
        cut += torn
        for pair, rule in held:
            for number in pair:
                rules[number] = min(rules.get(number, (strength, rule)), (strength, rule))

    ids, retired, found_before = _ids(district, facts, group, links, link)
    near = _near(facts, group, ids, told)
    assigned = _assigned(facts, group, ids, found_before=found_before, link=link, rules=rules, near=near)
    now = {key: student for key, (student, _, _) in assigned.items()}
    before = {key: retired.get(row["student_id"], row["student_id"]) for key, row in link.items()}
    return Found(assigned, near, _cut_rows(facts, cut), recycled, questions, retired, {**before, **now})


def _facts(records: Sequence[Row], students: Sequence[Row], former: Sequence[Row] = ()) -> list[Facts]:
    """Records by their key, then students by their id, so that nothing depends on the order in which they came."""
    rows = [
        *sorted(records, key=lambda row: (row["integration"], row["sis_id"])),
        *sorted(students, key=lambda row: row["student_id"]),
    ]
    only = {kind: _only_issuer(rows, kind) for kind in ("ssid", "local_id")}

    def issued(row: Row, kind: str) -> tuple[str, str] | None:
        number = spelling.exact(row[kind])
        return (spelling.exact(row[f"{kind}_issuer"]) or only[kind], number) if number else None

    def once(row: Row, variants: Callable[[Row], frozenset[str]]) -> frozenset[str]:
        if "sis_id" in row:
            return frozenset()
        names = [one for one in former if one["student_id"] == row["student_id"]]
        return frozenset().union(*(variants(one) for one in (row, *names)))

    return [
        Facts(
            key=(row["integration"], row["sis_id"]) if "sis_id" in row else None,
            student=None if "sis_id" in row else row["student_id"],
            ssid=issued(row, "ssid"),
            one_of=issued(row, "ssid"),
            local_id=issued(row, "local_id"),
            first=spelling.name(row["first_name"]),
            last=spelling.name(row["last_name"]),
            firsts=_firsts(row),
            lasts=_lasts(row),
            once_firsts=once(row, _firsts),
            once_lasts=once(row, _lasts),
            birth=row["birth_date"],
            email=spelling.email(row["email"]),
            phones=frozenset(
                phone for phone in (spelling.phone(row["phone"]), spelling.phone(row["mobile_phone"])) if phone
            ),
            school=row.get("school_id"),
            grade=row.get("grade_level"),
        )
        for row in rows
    ]


def _firsts(row: Row) -> frozenset[str]:
    return spelling.first_names(row["first_name"], row.get("preferred_first_name"))


def _lasts(row: Row) -> frozenset[str]:
    return spelling.last_names(row["last_name"], row.get("preferred_last_name"))


def _only_issuer(rows: Iterable[Row], kind: str) -> str:
    """An issuer that is not named is the only one that the district's records name, if there is only one."""
    named = {spelling.exact(row[f"{kind}_issuer"]) for row in rows} - {None}
    return str(next(iter(named))) if len(named) == 1 else ""


def _recycled(
    facts: Sequence[Facts], link: Mapping[Key, Row], before: Sequence[Facts], was: Mapping[Key, str]
) -> Iterator[Key]:
    """Records of which two of name, birth date and state id are others than those of the student they were, as published;
    but for what they told of the same student before."""
    students = {it.student: it for it in facts if it.student}
    own = {it.key: it for it in before}
    for it in facts:
        if it.key in link and it.key:
            student = students.get(link[it.key]["student_id"])
            others = _others(it, student) if student else set()
            told = own.get(it.key)
            if told and student and was[it.key] == student.student:
                others -= _told_before(it, told) if len(others) > 1 else set()
            if len(others) > 1:
                yield it.key


def _others(it: Facts, student: Facts) -> set[str]:
    """What is known of both and not the same."""
    found = set()
    if not _same_name(it, student):
        found.add("name")
    if it.birth and student.birth and it.birth != student.birth:
        found.add("birth")
    if it.ssid and student.ssid and it.ssid[0] == student.ssid[0] and it.ssid[1] != student.ssid[1]:
        found.add("ssid")
    return found


def _told_before(it: Facts, told: Facts) -> set[str]:
    found = set()
    if _same_name(it, told):
        found.add("name")
    if it.birth is not None and it.birth == told.birth:
        found.add("birth")
    if it.ssid and told.ssid and it.ssid[1] == told.ssid[1]:
        found.add("ssid")
    return found


def _same_name(it: Facts, other: Facts) -> bool:
    """First and last name, or what is known of them."""
    same_last = not (it.lasts and other.lasts) or it.lasts & other.lasts
    return bool(_same_first(it, other) and same_last)


def _same_first(it: Facts, other: Facts) -> bool:
    """Maria is Maria Elena, but Maria Jose is not."""
    shared = it.firsts & other.firsts
    if len(shared) == 1 and it.first and other.first:
        [word] = shared
        go_on = all(name.startswith(word) and name != word for name in (it.first, other.first))
        return not go_on or it.first.startswith(other.first) or other.first.startswith(it.first)
    return bool(shared) or not (it.firsts and other.firsts)


def _question(
    district: str, facts: Sequence[Facts], key: Key, link: Mapping[Key, Row], was: str | None
) -> Iterator[Row]:
    """Whether a record is somebody new; not where it was published of another one than it is linked to."""
    student = link[key]["student_id"]
    if was is not None and was != student:
        return
    [one] = [number for number, it in enumerate(facts) if it.key == key]
    [other] = [number for number, it in enumerate(facts) if it.student == student]
    taken = {row["student_id"] for row in link.values()} | {it.student for it in facts if it.student}
    named = (derived_id("student", district, *key, *salt) for salt in _salts())
    ids = {one: next(new for new in named if new not in taken), other: student}
    yield _near_row(facts, range(len(facts)), ids, (one, other), "recycled_id")


def _numbers(facts: Sequence[Facts], link: Mapping[Key, Row]) -> dict[Key, int]:
    """The number of every record; one that is not here any more is meant by its student as published."""
    students = {it.student: number for number, it in enumerate(facts) if it.student}
    gone = {key: students[row["student_id"]] for key, row in link.items() if row["student_id"] in students}
    return gone | {it.key: number for number, it in enumerate(facts) if it.key}


def _decided(decisions: Iterable[Row], verdict: str, numbers: Mapping[Key, int]) -> list[Pair]:
    ends = [
        (numbers.get((row["integration"], row["sis_id"])), numbers.get((row["other_integration"], row["other_sis_id"])))
        for row in decisions
        if row["verdict"] == verdict
    ]
    return [(max(a, b), min(a, b)) for a, b in ends if a is not None and b is not None and a != b]


def _linked(facts: Sequence[Facts], link: Mapping[Key, Row]) -> list[Pair]:
    """Records and published students that are one already."""
    first: dict[str, int] = {}
    pairs = []
    for number, it in enumerate(facts):
        student = link[it.key]["student_id"] if it.key in link else it.student
        if student is not None:
            pairs.append((number, first.setdefault(student, number)))
    return pairs


def joined(group: Sequence[int], pairs: Iterable[Pair]) -> list[int]:
    """The groups after the groups of each pair became one: each named by its first member."""
    beside: dict[int, list[int]] = defaultdict(list)
    for a, b in pairs:
        beside[group[a]].append(group[b])
        beside[group[b]].append(group[a])
    named: dict[int, int] = {}
    for start in sorted(set(group)):
        waiting = [start]
        while waiting:
            one = waiting.pop()
            if one not in named:
                named[one] = start
                waiting += beside[one]
    return [named[one] for one in group]


def _surely_named(facts: Sequence[Facts]) -> list[Facts]:
    """Without the first words, halves of double names and preferred names that may be another's: two who share an id, or
    birth date and a last name, go by them, and their full names contradict each other."""
    full: dict[Signature, set[str]] = defaultdict(set)
    for it in facts:
        for signature, name in _lesser_names(it):
            full[signature].add(name)

    def surely(it: Facts) -> Facts:
        doubtful: dict[str, set[str]] = {"first": set(), "last": set()}
        for signature, _ in _lesser_names(it):
            names = full[signature]
            if not all(max(names, key=len).startswith(name) for name in names):
                doubtful[signature[0]].add(signature[1])
        first, last = doubtful["first"], doubtful["last"]
        return replace(it, firsts=it.firsts - first, lasts=it.lasts - last, once_lasts=it.once_lasts - last)

    return [surely(it) for it in facts]


def _lesser_names(it: Facts) -> Iterator[tuple[Signature, str]]:
    """What somebody else may go by too, beside whom, and the full name that it stands for."""
    ids = [("ssid", it.ssid), ("local_id", it.local_id)]
    shared = [one for one in ids if one[1]]
    twins = [("birth", it.birth, last) for last in it.lasts | it.once_lasts if it.birth]
    for beside in [*shared, *twins] if it.first else ():
        yield from ((("first", name, beside), it.first) for name in it.firsts - {it.first})
    for beside in shared if it.last else ():
        yield from ((("last", name, beside), it.last) for name in (it.lasts | it.once_lasts) - {it.last})


def _strengths(facts: Sequence[Facts], same: Sequence[Pair]) -> Iterator[tuple[int, list[tuple[Pair, str]]]]:
    yield -1, [(pair, "confirmed") for pair in same]
    for strength, rules in enumerate(STRENGTHS):
        yield strength, sorted({(pair, rule) for rule, signatures in rules for pair in _agreeing(facts, signatures)})


def _agreeing(facts: Sequence[Facts], signatures: Signatures) -> Iterator[Pair]:
    """Everybody who has a signature, with the first who has it."""
    first: dict[Signature, int] = {}
    for number, it in enumerate(facts):
        for signature in signatures(it):
            if first.setdefault(signature, number) != number:
                yield number, first[signature]


def _joined_but_apart(
    facts: Sequence[Facts], group: list[int], pairs: Sequence[tuple[Pair, str]], told: Sequence[Pair]
) -> tuple[list[tuple[Pair, str]], list[tuple[Pair, str]], list[int]]:
    """The pairs that hold, those that were cut, and the groups by those that hold.

    Where all pairs of this strength together would make one student of two state ids of one issuer, or of two records
    that a person told apart, none of them holds. Cut is what would have joined two, but not who was told apart anyway.
    """
    all_together = joined(group, [pair for pair, _ in pairs])
    impossible = _impossible(facts, all_together, told)
    held = [(pair, rule) for pair, rule in pairs if all_together[pair[0]] not in impossible]
    told_groups = {frozenset((group[a], group[b])) for a, b in told}
    cut = [
        (pair, rule)
        for pair, rule in pairs
        if all_together[pair[0]] in impossible
        and group[pair[0]] != group[pair[1]]
        and frozenset((group[pair[0]], group[pair[1]])) not in told_groups
    ]
    return held, cut, joined(group, [pair for pair, _ in held])


def _impossible(facts: Sequence[Facts], group: Sequence[int], told: Sequence[Pair]) -> set[int]:
    ids = _state_ids(facts, group)
    return {group[a] for a, b in told if group[a] == group[b]} | {
        one for one, of_issuer in ids.items() if any(len(numbers) > 1 for numbers in of_issuer.values())
    }


def _state_ids(facts: Sequence[Facts], group: Sequence[int]) -> dict[int, dict[str, set[str]]]:
    """Of every group the state ids by issuer."""
    found: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for one, it in zip(group, facts, strict=True):
        if it.one_of:
            found[one][it.one_of[0]].add(it.one_of[1])
    return found


def _with_ids_of_one_child(facts: Sequence[Facts], group: Sequence[int], said: Sequence[Pair]) -> list[Facts]:
    """Where a person said that a child has two state ids, all ids of one issuer in its group count as the same, wherever."""
    facts, said_of = list(facts), {group[number] for pair in said for number in pair}
    for child in said_of:
        own = [it.one_of for one, it in zip(group, facts, strict=True) if one == child and it.one_of]
        for issuer in {issuer for issuer, _ in own}:
            same = {one for one in own if one[0] == issuer}
            facts = [replace(it, one_of=min(same)) if it.one_of in same else it for it in facts]
    return facts


def _ids(
    district: str, facts: Sequence[Facts], group: Sequence[int], links: Sequence[Row], link: Mapping[Key, Row]
) -> tuple[dict[int, str], dict[str, str], frozenset[int]]:
    """The id of every group; ids that gave way to an older one; and the groups that were somebody before.

    The oldest is who was seen first, then the first id. A new student's id comes from the first of its records; one that
    somebody has already (a record that a split took away) is counted on.
    """
    seen: dict[str, Any] = {}
    for row in links:
        moments = [moment for moment in (seen.get(row["student_id"]), row.get("first_seen")) if moment is not None]
        seen[row["student_id"]] = min(moments, default=None)
    members: dict[int, set[str]] = defaultdict(set)
    for one, it in zip(group, facts, strict=True):
        student = link[it.key]["student_id"] if it.key in link else it.student
        if student is not None:
            members[one].add(student)

    def age(student: str) -> tuple[bool, Any, str]:
        moment = seen.get(student)
        return moment is None, moment or 0, student

    ids = {one: min(found, key=age) for one, found in members.items()}
    retired = {student: ids[one] for one, found in members.items() for student in found if student != ids[one]}
    taken = {row["student_id"] for row in links} | {it.student for it in facts if it.student}
    for one in sorted(set(group) - set(ids)):
        key = facts[one].key
        assert key is not None, "a published student is somebody"
        named = (derived_id("student", district, *key, *salt) for salt in _salts())
        ids[one] = next(student for student in named if student not in taken)
    return ids, retired, frozenset(members)


def _salts() -> Iterator[tuple[str, ...]]:
    yield ()
    number = 0
    while True:
        number += 1
        yield (str(number),)


def _assigned(
    facts: Sequence[Facts],
    group: Sequence[int],
    ids: Mapping[int, str],
    *,
    found_before: frozenset[int],
    link: Mapping[Key, Row],
    rules: Mapping[int, tuple[int, str]],
    near: Sequence[Row],
) -> dict[Key, tuple[str, str, float]]:
    """A linked record keeps its rule, the first record of a new student is `new`, any other names the strongest rule."""
    doubted = {(row["integration"], row["sis_id"]) for row in near}
    doubted |= {(row["other_integration"], row["other_sis_id"]) for row in near}
    assigned = {}
    for number, it in enumerate(facts):
        if it.key is None:
            continue
        founds = number == group[number] and group[number] not in found_before
        matched = "new" if founds else rules.get(number, (0, "new"))[1]
        rule = link[it.key]["rule"] if it.key in link else matched
        assigned[it.key] = (ids[group[number]], rule, 0.5 if it.key in doubted else 1.0)
    return assigned


# --- near matches -----------------------------------------------------------------------------------------------------


def _near(facts: Sequence[Facts], group: Sequence[int], ids: Mapping[int, str], told: Sequence[Pair]) -> list[Row]:
    """Two students who may be one, each two once, by the strongest doubt and the first records that show it.

    What is published of a student counts only where no record says how it is now, but for names. A person's word leaves no
    doubt, nor do two state ids of one issuer, but where name and birth date are the same; who is in a better near match is
    not asked about by likeness alone.
    """
    delivered = {group[number] for number, it in enumerate(facts) if it.key}
    present = [number for number, it in enumerate(facts) if it.key or group[number] not in delivered]
    facts = _with_forgotten_names(facts, group, present)
    found: list[tuple[int, Pair, str]] = []
    for strength, (rule, signatures) in enumerate(DOUBTS):
        found += [(strength, pair, rule) for pair in _neighbours(facts, group, present, signatures)]
    systems: dict[int, set[str]] = defaultdict(set)
    for number in present:
        if key := facts[number].key:
            systems[group[number]].add(key[0])
    for pair in _neighbours(facts, group, present, compared):
        rule = alike(facts[pair[0]], facts[pair[1]])
        if rule and (_is_a_slip(pair, facts) or not systems[group[pair[0]]] & systems[group[pair[1]]]):
            found.append((LESSER, pair, rule))

    ids_of_states = _state_ids(facts, group)
    apart = {frozenset((group[a], group[b])) for a, b in told}
    found_two = {frozenset(group[number] for number in pair) for _, pair, _ in found}
    two_ids = {two for two in found_two if _contradict(*(ids_of_states[one] for one in sorted(two)))}
    strongest: dict[frozenset[int], tuple[int, Pair, str]] = {}
    for strength, pair, rule in sorted(found):
        two = frozenset(group[number] for number in pair)
        if two in two_ids and (strength == LESSER or not _are_namesakes(facts[pair[0]], facts[pair[1]])):
            continue
        if two not in apart:
            strongest.setdefault(two, (strength, pair, rule))
    better = {one for two, (at, *_) in strongest.items() if at < LESSER and two not in two_ids for one in two}
    return [
        _near_row(facts, group, ids, pair, rule, two_ids=two in two_ids)
        for two, (strength, pair, rule) in strongest.items()
        if (strength < LESSER or not two & better) and any(facts[number].key for number in pair)
    ]


def _with_forgotten_names(facts: Sequence[Facts], group: Sequence[int], present: Sequence[int]) -> list[Facts]:
    """With the names that are, or were, published of a student and that nobody of the group says any more."""
    once: dict[int, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for one, it in zip(group, facts, strict=True):
        once[one][0].update(it.once_firsts)
        once[one][1].update(it.once_lasts)
    for number in present:
        once[group[number]][0].difference_update(facts[number].firsts)
        once[group[number]][1].difference_update(facts[number].lasts)
    found = []
    for one, it in zip(group, facts, strict=True):
        firsts, lasts = map(frozenset, once[one])
        names = {"firsts": it.firsts | firsts, "lasts": it.lasts | lasts}
        found.append(replace(it, **names, once_firsts=firsts, once_lasts=lasts))
    return found


def _neighbours(
    facts: Sequence[Facts], group: Sequence[int], present: Sequence[int], signatures: Signatures
) -> set[Pair]:
    """Pairs of two groups with a signature in common, of each group its first; in the order of their names everybody
    meets the next few only, so that a large crowd stays work for a day."""
    crowds: dict[Signature, dict[int, int]] = defaultdict(dict)
    for number in present:
        for signature in signatures(facts[number]):
            crowds[signature].setdefault(group[number], number)
    pairs = set()
    for crowd in crowds.values():
        numbers = sorted(crowd.values(), key=lambda number: (*_by_name(facts[number]), number))
        for place, one in enumerate(numbers):
            for other in numbers[place + 1 : place + 1 + NEIGHBOURS]:
                pairs.add((max(one, other), min(one, other)))
    return pairs


def _by_name(it: Facts) -> tuple[str, str, date]:
    return it.first or "", it.last or "", it.birth or date.min


def _is_a_slip(pair: Pair, facts: Sequence[Facts]) -> bool:
    """Somebody whom one system may have twice: the last name but for one letter, or two that changed places."""
    one, other = (facts[number] for number in pair)
    same = one.first == other.first and one.birth is not None and one.birth == other.birth
    return same and OSA.distance(one.last or "", other.last or "") == 1


def _are_namesakes(one: Facts, other: Facts) -> bool:
    mine, theirs = (one.first, one.last, one.birth), (other.first, other.last, other.birth)
    return None not in mine and mine == theirs


def _contradict(one: Mapping[str, set[str]], other: Mapping[str, set[str]]) -> bool:
    return any(len(one[issuer] | other[issuer]) > 1 for issuer in one if issuer in other)


def alike(one: Facts, other: Facts) -> str | None:
    """By what two that no rule joins are so alike that a person is asked."""
    first, last, birth = likeness(one, other)
    names = first >= 0.85 - ROUNDING and last >= 0.85 - ROUNDING and first + last >= 2 * 0.92 - ROUNDING
    if names and birth == 1:
        return "similar_name"
    if names and birth == 0.9:
        return "swapped_day_month"
    if first >= 0.95 and last >= 0.97 and birth == 0.8 and more(one, other):
        return "similar_birth_date"
    return None


def likeness(one: Facts, other: Facts) -> tuple[float, float, float]:
    """How alike first names, last names and birth dates are, from 0 to 1."""
    first = _names_alike(one.first, other.first, shared=bool(one.firsts & other.firsts))
    if nickname(one, other):
        first = max(first, 0.95)
    return first, _names_alike(one.last, other.last, shared=bool(one.lasts & other.lasts)), _births_alike(one, other)


def _names_alike(one: str | None, other: str | None, *, shared: bool) -> float:
    if one is None or other is None:
        return 0.0
    if one == other:
        return 1.0
    return max(float(JaroWinkler.similarity(one, other)), 0.97 if shared else 0.0)


def nickname(one: Facts, other: Facts) -> bool:
    return any(NICKNAMES.get(form, frozenset()) & other.firsts for form in one.firsts)


def _births_alike(one: Facts, other: Facts) -> float:
    a, b = one.birth, other.birth
    if a is None or b is None:
        return 0.5
    if a == b:
        return 1.0
    if (a.year, a.month, a.day) == (b.year, b.day, b.month):
        return 0.9
    return 0.8 if Hamming.distance(f"{a:%Y%m%d}", f"{b:%Y%m%d}") == 1 else 0.0


def more(one: Facts, other: Facts) -> float:
    """What else agrees: an email address or a phone, or half as good, school and grade."""
    if (one.email and one.email == other.email) or one.phones & other.phones:
        return 1.0
    same_class = one.school and one.grade and (one.school, one.grade) == (other.school, other.grade)
    return 0.5 if same_class else 0.0


def evidence(one: Facts, other: Facts) -> list[str]:
    """What agrees, in words and without a value."""
    first, last, birth = likeness(one, other)
    nick = nickname(one, other)
    same_first, same_last = (bool(a) and a == b for a, b in ((one.first, other.first), (one.last, other.last)))
    former_first = one.once_firsts & other.firsts or one.firsts & other.once_firsts
    former_last = one.once_lasts & other.lasts or one.lasts & other.once_lasts
    facts = {
        "ssid": one.ssid and one.ssid == other.ssid,
        "local_id": one.local_id and one.local_id == other.local_id,
        "first_name": same_first,
        "last_name": same_last,
        "birth_date": one.birth and one.birth == other.birth,
        "email": one.email and one.email == other.email,
        "school": one.school and one.school == other.school,
        "grade_level": one.grade and one.grade == other.grade,
        "nickname": nick,
        "similar first_name": first >= 0.85 - ROUNDING and not nick and not former_first and not same_first,
        "similar last_name": last >= 0.85 - ROUNDING and not former_last and not same_last,
        "former name": former_first or former_last,
        "swapped day and month": birth == 0.9,
        "birth_date but for a digit": birth == 0.8,
        "phone": one.phones & other.phones,
    }
    return [words for words, agrees in facts.items() if agrees]


def _near_row(
    facts: Sequence[Facts],
    group: Sequence[int],
    ids: Mapping[int, str],
    pair: Pair,
    rule: str,
    *,
    two_ids: bool = False,
) -> Row:
    one, other = (facts[number] for number in pair)
    agreeing = evidence(one, other)
    score = 0.3 * sum(likeness(one, other)) + 0.1 * more(one, other)
    if {"ssid", "local_id"} & set(agreeing):
        score = (1 + score) / 2
    if two_ids:
        agreeing.append("but two state ids")
        score /= 2
    return {
        **_named(one.key, other.key),
        "student_id": ids[group[pair[0]]],
        "other_student_id": ids[group[pair[1]]],
        "rule": rule,
        "evidence": ", ".join(agreeing),
        "score": score,
    }


def _cut_rows(facts: Sequence[Facts], cut: Sequence[tuple[Pair, str]]) -> list[Row]:
    rows = Counter((facts[pair[0]].key, facts[pair[1]].key, rule) for pair, rule in cut)
    return [{**_named(one, other), "rule": rule} for one, other, rule in rows]


def _named(one: Key | None, other: Key | None) -> dict[str, str | None]:
    integration, sis_id = one or (None, None)
    other_integration, other_sis_id = other or (None, None)
    return {
        "integration": integration,
        "sis_id": sis_id,
        "other_integration": other_integration,
        "other_sis_id": other_sis_id,
    }
