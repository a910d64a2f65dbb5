"""Who is who: which SIS records are one student, one staff member or one school of a district, and their permanent ids.
Values are only compared here; which value survives is decided in `merge`.

A rule is a set of columns that must all agree. Agreement on equal columns is transitive, so a rule needs no pairwise
comparison: every group of equal columns gets edges to its first record, and components of edges are people. Rules are
applied in tiers, strongest first; where a tier would join two different state ids, that tier's edges of that component
are cut and reported instead. Unknown values form no groups, so the unknown neither agrees nor disagrees. A name that two
go by whose full names contradict each other (Juan Carlos, Juan Pablo) agrees with nobody's: see `sure_names`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from sis_pipeline.roster.decisions import (
    CONFIRMED,
    DISTINCT,
    SAME,
    SAME_WITH_TWO_IDS,
    decided_nodes,
    given_as_distinct,
    links_as_decided,
    no_decisions,
    without_kept,
)
from sis_pipeline.roster.ids import derived_id, derived_ids
from sis_pipeline.roster.names import (
    no_former_names,
    with_forgotten_names,
    with_published_names,
    without_published_names,
)
from sis_pipeline.roster.near import PAIR, TWO_IDS, WORDS, judged, neighbours, similar, similar_staff, told_apart
from sis_pipeline.roster.normalise import email_key, exact_key, first_word_key, name_key, phone_key
from sis_pipeline.roster.presence import RECORD
from sis_pipeline.roster.recycled import ANOTHER_STAFF, ANOTHER_STUDENT, OWN, find_recycled

Nodes = np.ndarray[Any, np.dtype[np.int64]]

SAID = [
    *RECORD, "student_id", "first_name", "preferred_first_name", "last_name", "preferred_last_name", "birth_date", "ssid",
    "ssid_issuer",
]  # fmt: skip
"""Columns of student_sources: who a record said that it is, and who it was."""
NEW = "new"
NEAR_CONFIDENCE = 0.5
RECYCLED = "recycled_id"
"""The rule of a near match of a record whose id seems to be given to somebody else, and of whom it was before."""
NEAR_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(
        (*RECORD, "other_integration", "other_sis_id", "person_id", "other_person_id", "rule", "evidence"), pl.String
    ),
    "score": pl.Float64,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """Records that agree on all `columns` (a list column agrees where any of its variants does) are one person."""

    name: str
    tier: int
    columns: tuple[str, ...]


_NAME_AND_BIRTH = ("first", "last", "birth_date")

# The first name is in every rule: the same birth date and last name with contradicting first names are twins, and
# twins are never matched, whatever else agrees. Of two of {birth date, first name, last name} that leaves these.
STUDENT_RULES = (
    Rule("ssid", 0, ("ssid", "birth_date", "firsts")),
    Rule("ssid", 0, ("ssid", "firsts", "lasts")),
    Rule("local_id", 1, ("local_id", "birth_date", "firsts")),
    Rule("local_id", 1, ("local_id", "firsts", "lasts")),
    Rule("name_birth_school_grade", 2, (*_NAME_AND_BIRTH, "school_id", "grade_level")),
    Rule("name_birth_email", 2, (*_NAME_AND_BIRTH, "email")),
    Rule("name_birth_phone", 2, (*_NAME_AND_BIRTH, "phones")),
)
STUDENT_NEAR_RULES = (
    Rule("ssid", 0, ("ssid",)),
    Rule("local_id", 1, ("local_id",)),
    Rule("name_birth", 2, _NAME_AND_BIRTH),
)
STAFF_RULES = (
    Rule("state_staff_id", 0, ("ssid", "lasts")),
    Rule("email", 1, ("email", "lasts")),
    Rule("local_id", 1, ("local_id", "lasts")),
)
# Two systems number their staff apart from each other, and offices share a mailbox: of those a first name must agree.
STAFF_NEAR_RULES = (
    Rule("state_staff_id", 0, ("ssid",)),
    Rule("email", 1, ("email", "firsts")),
    Rule("local_id", 1, ("local_id", "firsts")),
    Rule("name_school", 2, ("first", "last", "school_id")),
)
_SIMILAR_TIER = 3
"""Of near matches that no rule of agreeing columns finds."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How records of one kind of people are told to be one person, or perhaps one. `similar`: finds more near matches, see
    near.similar. `words`: what evidence calls a fact. `told_apart`: whoever one system has twice is two people, and
    nobody is asked. `is_another`: see `recycled`."""

    name: str
    rules: tuple[Rule, ...]
    near_rules: tuple[Rule, ...]
    similar: Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]
    words: Mapping[str, str]
    told_apart: bool
    is_another: pl.Expr


STUDENTS = Kind(
    "student", STUDENT_RULES, STUDENT_NEAR_RULES, similar, WORDS, told_apart=False, is_another=ANOTHER_STUDENT
)
STAFF = Kind(
    "staff",
    STAFF_RULES,
    STAFF_NEAR_RULES,
    similar_staff,
    {**WORDS, "ssid": "state_staff_id"},
    told_apart=True,
    is_another=ANOTHER_STAFF,
)


@dataclass(frozen=True)
class Resolution:
    """Who is who.

    `assignment`: integration, sis_id, person_id, rule, confidence; one row per record, recycled ones left out.
    `near_matches`: integration, sis_id, other_integration, other_sis_id, person_id, other_person_id, rule, evidence
    (names of agreeing facts, comma separated), score (0 to 1); integration and sis_id are null for a person without a
    record here.
    `cut_chains`: integration, sis_id, other_integration, other_sis_id, rule.
    `recycled`: integration, sis_id of records that are set aside: their id seems to be given to somebody else.
    `questions`: of these those that wait for a person, as near matches: person_id is who the record would be, other_person_id
    who had it. `passed_on`: records that a person gave to somebody else, and that still had been the other's.
    `retired`: person id -> the person id it was merged into.
    `known`: integration, sis_id, person_id of every record that is somebody's, also of those that are not here.
    """

    assignment: pl.DataFrame
    near_matches: pl.DataFrame
    cut_chains: pl.DataFrame
    recycled: pl.DataFrame
    questions: pl.DataFrame
    passed_on: pl.DataFrame
    retired: Mapping[str, str]
    known: pl.DataFrame

    @property
    def meant(self) -> pl.DataFrame:
        """As `known`, but for records set aside, which mean nobody."""
        return self.known.join(self.recycled, on=RECORD, how="anti", maintain_order="left")

    @property
    def spared(self) -> pl.DataFrame:
        """Who had the records that are set aside: integration, person_id."""
        return self.known.join(self.recycled, on=RECORD, how="semi").select("integration", "person_id")

    @property
    def doubted(self) -> list[str]:
        """Who may be somebody else."""
        return [*self.near_matches["person_id"], *self.near_matches["other_person_id"]]


def repointed(frame: pl.DataFrame, retired: Mapping[str, str], column: str = "student_id") -> pl.DataFrame:
    return frame.with_columns(pl.col(column).replace(dict(retired))) if retired else frame


_NO_EDGES = pl.DataFrame(schema={"node": pl.Int64, "hub": pl.Int64, "rule": pl.String, "tier": pl.Int32})
_NO_NEAR_MATCHES = pl.DataFrame(schema=NEAR_SCHEMA)
_NO_CHAINS = _NO_NEAR_MATCHES[[*RECORD, "other_integration", "other_sis_id", "rule"]]
_NO_RECORDS = _NO_NEAR_MATCHES[[*RECORD, "person_id"]]
NOBODY = Resolution(
    assignment=pl.DataFrame(
        schema={**dict.fromkeys((*RECORD, "person_id", "rule"), pl.String), "confidence": pl.Float64}
    ),
    near_matches=_NO_NEAR_MATCHES,
    cut_chains=_NO_CHAINS,
    recycled=_NO_RECORDS[RECORD],
    questions=_NO_NEAR_MATCHES,
    passed_on=_NO_RECORDS[RECORD],
    retired={},
    known=_NO_RECORDS,
)
"""Of a district that has no such people."""


def resolve_students(
    district: str,
    records: pl.DataFrame,
    links: pl.DataFrame,
    students: pl.DataFrame | None = None,
    decisions: pl.DataFrame | None = None,
    *,
    before: pl.DataFrame | None = None,
    former: pl.DataFrame | None = None,
) -> Resolution:
    """Which student each record is.

    `records`: `integration`, the columns of the students entity and `school_id`, one row per (integration, sis_id).
    `links`: the district's student_links, all years, with `first_seen` where known. `students`: the district's
    published students; they take part in matching, so that a student who changes systems stays the same student.
    `decisions`: what people decided (`decisions.DECISIONS`): pairs decided `distinct` are never joined and never near
    matches, not even by a link; pairs decided `same` are joined unless that would join two different state ids of one
    issuer, or a pair decided distinct; pairs decided `same_with_two_state_ids` are joined in spite of those. `before`: what
    records said when they were published, as SAID. `former`: what the students were called before, as names.FORMER_NAMES:
    such a last name counts beside an id, and any makes a near match.

    An existing link holds, unless two of name, birth date and state id are others than the student's, and than the record's
    own `before`: then the id was given to another child and the record is `recycled`. A link also holds while two systems'
    state ids differ for a time after a correction in one of them; every other way to join two different state ids of
    one issuer is cut. Those of whom name and birth date agree are near matches.
    """
    known = _known_people(students, "student_id")
    facts = student_facts(records, known, former)
    decided = no_decisions() if decisions is None else decisions
    return _Resolver(STUDENTS, facts, _link_frame(links, "student_id"), decided, before).run(district)


def resolve_staff(
    district: str,
    records: pl.DataFrame,
    links: pl.DataFrame,
    staff: pl.DataFrame | None = None,
    decisions: pl.DataFrame | None = None,
) -> Resolution:
    """Which staff member each record is: the same email, state id or local id with an agreeing last name, else new.

    Shapes and decisions as in `resolve_students`, with `staff_id` for the person; state ids have no issuer, and two
    different ones are never joined. A link holds unless both names, and what is known of email and state id, are others than
    the staff member's: such a record is `recycled`. Near matches: an id and the first name agree, or the names at one school.
    """
    known = _known_people(staff, "staff_id")
    if records.is_empty() and known.is_empty() and links.is_empty():
        return NOBODY
    facts = _staff_facts(records, known)
    decided = no_decisions() if decisions is None else decisions
    return _Resolver(STAFF, facts, _link_frame(links, "staff_id"), decided).run(district)


def resolve_schools(district: str, schools: pl.DataFrame) -> pl.DataFrame:
    """The permanent id of every school record: integration, sis_id, school_id.

    From the school number the district gave, else the state's id, else the record itself; schools of several
    integrations with one number are one school. An organisation that is not a school is never one with a school.
    """
    named = schools.select(
        *RECORD,
        kind="kind",
        basis=pl.when(pl.col("school_number").is_not_null())
        .then(pl.lit("number"))
        .when(pl.col("state_school_id").is_not_null())
        .then(pl.lit("state_id"))
        .otherwise(pl.concat_str(pl.lit("record:"), "integration")),
        value=pl.coalesce("school_number", "state_school_id", "sis_id"),
    )
    ids = derived_ids(named.select("kind", "basis", "value").iter_rows(), "school", district)
    return named.select(*RECORD, pl.Series("school_id", ids, dtype=pl.String))


def numbered_school(district: str, number: str) -> str:
    """The permanent id that a school of a number has, or will have once it is delivered; see `resolve_schools`."""
    return derived_id("school", district, "school", "number", number)


def components(size: int, left: Nodes, right: Nodes) -> Nodes:
    """Connected components: for every node the smallest node it is joined to. Linear work in a few rounds."""
    label = np.arange(size, dtype=np.int64)
    while True:
        a, b = label[left], label[right]
        if np.array_equal(a, b):
            return label
        np.minimum.at(label, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(label, shorter := label[label]):
            label = shorter


def _known_people(people: pl.DataFrame | None, person: str) -> pl.DataFrame:
    if people is None:
        return pl.DataFrame(schema={"person_id": pl.String})
    return people.rename({person: "person_id"})


def _link_frame(links: pl.DataFrame, person: str) -> pl.DataFrame:
    first_seen = pl.col("first_seen") if "first_seen" in links.columns else pl.lit(None, pl.Datetime("us", "UTC"))
    confidence = pl.col("confidence") if "confidence" in links.columns else pl.lit(1.0)
    return links.select(
        *RECORD, pl.col(person).alias("person_id"), "rule", confidence=confidence, first_seen=first_seen
    )


def _stacked(records: pl.DataFrame, known: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Records, then known people without a record's id, sorted so that nothing depends on the order of the input."""
    wanted = [*RECORD, "person_id", *columns]

    def shaped(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.select(pl.col(name) if name in frame.columns else pl.lit(None).alias(name) for name in wanted)

    stacked = pl.concat([shaped(records), shaped(known)], how="vertical_relaxed")
    return (
        stacked.sort(*RECORD, "person_id", nulls_last=True)
        .with_row_index("node")
        .with_columns(pl.col("node").cast(pl.Int64), pl.col(*RECORD, "person_id").cast(pl.String))
    )


def student_facts(records: pl.DataFrame, known: pl.DataFrame, former: pl.DataFrame | None = None) -> pl.DataFrame:
    """`former`: as in `resolve_students`."""
    stacked = _stacked(
        records,
        known,
        [
            "ssid", "ssid_issuer", "local_id", "local_id_issuer", "first_name", "preferred_first_name", "last_name",
            "preferred_last_name", "birth_date", "email", "phone", "mobile_phone", "school_id", "grade_level",
        ],
    )  # fmt: skip
    named = _with_keys(stacked, ["first_name", "preferred_first_name"], _first_names)
    named = _with_keys(named, ["last_name", "preferred_last_name"], _last_names)
    named = _with_keys(named, ["phone", "mobile_phone"], _phones)
    facts = named.select(
        "node",
        *RECORD,
        "person_id",
        "first",
        "last",
        "firsts",
        "lasts",
        "phones",
        birth_date="birth_date",
        ssid=_issued("ssid"),
        ssid_issuer=_issuer("ssid"),
        local_id=_issued("local_id"),
        email=email_key(pl.col("email")),
        school_id="school_id",
        grade_level="grade_level",
    )
    once = no_former_names() if former is None else former
    once = once.with_columns(preferred_first_name=pl.lit(None, pl.String))
    once = _with_keys(once, ["first_name", "preferred_first_name"], _first_names)
    once = _with_keys(once, ["last_name"], _last_names)
    return with_published_names(facts, once.select("firsts", "lasts", person_id="student_id"))


def _staff_facts(records: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """In the columns of a student's facts: a state id is a state id."""
    text = [
        "state_staff_id",
        "local_id",
        "first_name",
        "preferred_first_name",
        "last_name",
        "email",
        "phone",
        "school_id",
    ]
    stacked = _stacked(records, known, text).with_columns(pl.col(text).cast(pl.String))
    named = _with_keys(stacked, ["first_name", "preferred_first_name"], _first_names)
    named = _with_keys(named, ["last_name"], _last_names)
    named = _with_keys(named, ["phone"], _phones)
    facts = named.select(
        "node",
        *RECORD,
        "person_id",
        "first",
        "last",
        "firsts",
        "lasts",
        "phones",
        birth_date=pl.lit(None, pl.Date),
        ssid=exact_key(pl.col("state_staff_id")),
        ssid_issuer=pl.lit(""),
        local_id=exact_key(pl.col("local_id")),
        email=email_key(pl.col("email")),
        school_id="school_id",
        grade_level=pl.lit(None, pl.String),
    )
    return without_published_names(facts)


def _with_keys(stacked: pl.DataFrame, columns: list[str], keys: Callable[..., dict[str, pl.Expr]]) -> pl.DataFrame:
    """Adds keys of names and phones, worked out once for each distinct one: a district has far fewer than records."""
    distinct = stacked.select(columns).unique()
    known = distinct.with_columns(**keys(*(pl.col(name) for name in columns)))
    return stacked.join(known, on=columns, how="left", nulls_equal=True, maintain_order="left")


def _variants(*keys: pl.Expr) -> pl.Expr:
    return pl.concat_list(*keys).list.drop_nulls().list.unique(maintain_order=True)


def _first_names(legal: pl.Expr, preferred: pl.Expr) -> dict[str, pl.Expr]:
    """The legal name (`first`), and its variants: its first word, the preferred name."""
    return {"first": name_key(legal), "firsts": _variants(name_key(legal), first_word_key(legal), name_key(preferred))}


def _last_names(legal: pl.Expr, *others: pl.Expr) -> dict[str, pl.Expr]:
    """The legal name (`last`), and its variants: Garcia-Lopez is also Garcia and Lopez, and the preferred name."""
    keys = []
    for name in (legal, *others):
        text = name.str.strip_chars()
        keys += [
            name_key(text),
            name_key(text.str.extract(r"^([^\s-]{2,})[\s-]", 1)),
            name_key(text.str.extract(r"[\s-]([^\s-]{2,})$", 1)),
        ]
    return {"last": name_key(legal), "lasts": _variants(*keys)}


def sure_names(facts: pl.DataFrame, rules: Sequence[Rule]) -> pl.DataFrame:
    """The facts for the rules, without the lesser names (a first word, half of a double name, a preferred name) that may be
    another's: two go by it who share the id of a rule, or birth date and a last name, and have other full names.

    Juan may be Juan Carlos or Juan Pablo, who may be twins: the name joins none of them, not even by way of a third record.
    Juan C. and Juan Carlos do not contradict each other.
    """
    variants = {"firsts": "first", "lasts": "last"}
    found = [(name, (rule.columns[0],)) for rule in rules for name in rule.columns if name in variants]
    groups = dict.fromkeys([*found, ("firsts", ("birth_date", "lasts"))])
    for name, full in variants.items():
        parts = [_of_several(facts, full, name, keys) for of, keys in groups if of == name]
        doubtful = pl.concat(parts).group_by("node").agg(pl.col("name").alias("doubtful"))
        if doubtful.height:
            sure = pl.col(name).list.set_difference(pl.col("doubtful").fill_null([]))
            facts = facts.join(doubtful, on="node", how="left", maintain_order="left").with_columns(sure.alias(name))
            facts = facts.drop("doubtful")
    return facts


def _of_several(facts: pl.DataFrame, full: str, variants: str, keys: Sequence[str]) -> pl.DataFrame:
    """Lesser names that are those of contradicting full names among who agree on the keys: node, name."""
    lesser = facts.filter(pl.col(variants).list.len() > 1).select("node", *keys, full=full, name=variants)
    lesser = lesser.explode("name").filter(pl.col("name") != pl.col("full"))
    for key in keys:
        if isinstance(lesser.schema[key], pl.List):
            lesser = lesser.explode(key)
    group = [*keys, "name"]
    lesser = lesser.drop_nulls().filter(pl.len().over(group) > 1)
    longest = pl.col("full").sort_by(pl.col("full").str.len_chars()).last()
    contradict = (~longest.str.starts_with(pl.col("full"))).any().over(group)
    return lesser.filter(contradict).select("node", "name")


def _phones(*phones: pl.Expr) -> dict[str, pl.Expr]:
    return {"phones": _variants(*(phone_key(phone) for phone in phones))}


def _issuer(kind: str) -> pl.Expr:
    """Who issued an id. Where a record does not say: the one issuer that the district's other records name, if one."""
    issuer = exact_key(pl.col(f"{kind}_issuer"))
    only = pl.when(issuer.drop_nulls().n_unique() == 1).then(issuer.drop_nulls().first())
    return pl.coalesce(issuer, only, pl.lit(""))


def _issued(kind: str) -> pl.Expr:
    """An id together with its issuer: the same number from two issuers is two different things."""
    return pl.concat_str(_issuer(kind), pl.lit("\x1f"), exact_key(pl.col(kind)))


class _Resolver:
    """One resolution, step by step; `labels` is the component of every node so far."""

    def __init__(
        self,
        kind: Kind,
        facts: pl.DataFrame,
        links: pl.DataFrame,
        decisions: pl.DataFrame,
        before: pl.DataFrame | None = None,
    ) -> None:
        own = None if before is None else (lambda records: _own_facts(before, records))
        told = find_recycled(facts, links, kind.is_another, own)
        told = without_kept(told, decisions)
        decisions = given_as_distinct(decisions, links, told)
        links = links_as_decided(links, decisions)
        held = told.join(links, on=[*RECORD, "person_id"], how="semi")
        self.kind, self.links = kind, links
        self.recycled, self.passed_on = held.select(RECORD), told.join(held, on=RECORD, how="anti").select(RECORD)
        self.asked = _still_theirs(held, before)
        self.everything = facts
        self.facts = _renumbered_without(facts, self.recycled)
        self.decided = decided_nodes(self.facts, links, decisions)
        self.labels: Nodes = np.arange(self.facts.height, dtype=np.int64)

    def run(self, district: str) -> Resolution:
        known = self._join_links()
        self.state_ids = self._state_ids()
        matched, cut = self._join_rules()
        people, retired = self._people(known, district)
        near = self._near_matches(people)
        assignment = self._assignment(known, matched, people, near)
        return Resolution(
            assignment=assignment,
            near_matches=near,
            cut_chains=self._cut_chains(cut),
            recycled=self.recycled.sort(pl.all()),
            questions=self._questions(district),
            passed_on=self.passed_on.sort(pl.all()),
            retired=retired,
            known=self._known(assignment, retired),
        )

    def _questions(self, district: str) -> pl.DataFrame:
        """Whether the records that are set aside are somebody new, or whom they were all along."""
        if self.asked.is_empty():
            return _NO_NEAR_MATCHES
        records = self.everything.select(*RECORD, "node").drop_nulls("sis_id")
        people = self.everything.filter(pl.col("sis_id").is_null()).select("person_id", hub="node")
        asked = self.asked.sort(pl.all()).join(records, on=RECORD, maintain_order="left")
        asked = asked.join(people, on="person_id", maintain_order="left")
        fresh = pl.Series(self._fresh_ids(asked, district), dtype=pl.String)
        nobody = [pl.lit(None, pl.String).alias(name) for name in ("other_integration", "other_sis_id")]
        pairs = asked.with_columns(*nobody, other_person_id="person_id", person_id=fresh, rule=pl.lit(RECYCLED))
        return judged(self.everything, pairs, self.kind.words).select(*NEAR_SCHEMA)

    def _cut_chains(self, cut: pl.DataFrame) -> pl.DataFrame:
        return self._named_pairs(cut).select(_NO_CHAINS.columns).unique().sort(pl.all()) if cut.height else _NO_CHAINS

    def _known(self, assignment: pl.DataFrame, retired: Mapping[str, str]) -> pl.DataFrame:
        columns = [*RECORD, "person_id"]
        linked = self.links.select(columns).with_columns(pl.col("person_id").replace(dict(retired)))
        return pl.concat([assignment.select(columns), linked]).unique(RECORD, keep="first", maintain_order=True)

    def _join_links(self) -> pl.DataFrame:
        """Nodes with the existing person they are linked to: node, person_id, rule, confidence, first_seen."""
        records = self.facts.filter(pl.col("sis_id").is_not_null()).select("node", *RECORD)
        linked = records.join(self.links, on=RECORD, how="inner")
        people = self.facts.filter(pl.col("sis_id").is_null()).select("node", "person_id")
        seen = self.links.group_by("person_id").agg(pl.col("first_seen").min())
        columns = ["node", "person_id", "rule", "confidence"]
        known = pl.concat([linked.select(columns), people.select(columns[:2])], how="diagonal_relaxed").join(
            seen, on="person_id", how="left"
        )
        self._join(known.with_columns(hub=pl.col("node").min().over("person_id")))
        return known

    def _state_ids(self) -> pl.DataFrame:
        """The issuer and state id of every node; of those that one child has by a person's word, one stands for all."""
        ids = self.facts.select("ssid_issuer", "ssid")
        joined = self.decided.filter(pl.col("verdict") == SAME_WITH_TWO_IDS)
        if joined.is_empty():
            return ids
        one, other = (self.labels[joined[side].to_numpy()] for side in ("node", "hub"))
        children = components(len(self.labels), one, other)[self.labels]
        among = np.isin(children, children[joined["node"].to_numpy()])
        held = ids.with_columns(child=pl.Series(children)).filter(pl.Series(among)).drop_nulls("ssid")
        held = held.with_columns(place=pl.col("ssid").rank("dense").cast(pl.Int64) - 1)
        firsts = held.select(pl.col("place").min().over("child", "ssid_issuer")).to_series()
        known = held.unique("place").sort("place")["ssid"]
        same = components(len(known), held["place"].to_numpy(), firsts.to_numpy())
        return ids.with_columns(pl.col("ssid").replace(known, known.gather(same)))

    def _join(self, edges: pl.DataFrame) -> None:
        left = self.labels[edges["node"].to_numpy()]
        right = self.labels[edges["hub"].to_numpy()]
        self.labels = components(len(self.labels), left, right)[self.labels]

    def _join_rules(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Apply decisions, then the rules tier by tier; the edges that hold and those that were cut: node, hub, rule, tier."""
        held, cut = [_NO_EDGES], [_NO_EDGES]
        for edges in self._tiers():
            if edges.is_empty():
                continue
            before = self.labels
            self._join(edges)
            torn = self._contradicting(np.unique(self.labels[edges["node"].to_numpy()]))
            if len(torn):
                is_torn = np.isin(self.labels[edges["node"].to_numpy()], torn)
                left, right = before[edges["node"].to_numpy()], before[edges["hub"].to_numpy()]
                reported = is_torn & (left != right) & ~self._are_apart(left, right, before)
                cut.append(edges.filter(pl.Series(reported)))
                edges = edges.filter(pl.Series(~is_torn))  # noqa: PLW2901 the ones that hold
                self.labels = before
                self._join(edges)
            held.append(edges)
        return pl.concat(held), pl.concat(cut)

    def _tiers(self) -> Iterator[pl.DataFrame]:
        forced = self.decided.filter(pl.col("verdict").is_in([SAME, SAME_WITH_TWO_IDS])).select(
            "node", "hub", rule=pl.lit(CONFIRMED)
        )
        yield forced.with_columns(tier=pl.lit(-1, pl.Int32))
        # a first name of before joins nobody: it may have been a twin's, written into the wrong record
        facts = self.facts.with_columns(pl.col("lasts").list.set_union("once_lasts"))
        facts = sure_names(facts, self.kind.rules)
        for tier in sorted({rule.tier for rule in self.kind.rules}):
            labelled = facts.with_columns(label=pl.Series(self.labels))
            yield pl.concat([_edges(labelled, rule) for rule in self.kind.rules if rule.tier == tier])

    def _contradicting(self, among: Nodes) -> Nodes:
        """Of these components, those that hold two different state ids of one issuer, or two people that a person told
        apart; of others, perhaps."""
        left, right = self._apart(self.labels)
        joined: Nodes = left[left == right]
        asked = pl.Series(np.isin(self.labels, among))
        known = self.state_ids.with_columns(label=pl.Series(self.labels)).filter(asked).drop_nulls("ssid")
        counts = known.group_by("label", "ssid_issuer").agg(pl.col("ssid").n_unique())
        two_ids: Nodes = counts.filter(pl.col("ssid") > 1)["label"].unique().to_numpy()
        torn: Nodes = np.unique(np.concatenate([joined, two_ids]))
        return torn

    def _apart(self, labels: Nodes) -> tuple[Nodes, Nodes]:
        """The components on each side of the pairs that a person told apart."""
        pairs = self.decided.filter(pl.col("verdict") == DISTINCT)
        return labels[pairs["node"].to_numpy()], labels[pairs["hub"].to_numpy()]

    def _are_apart(self, left: Nodes, right: Nodes, labels: Nodes) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of the pairs of components a person told apart."""

        def named(one: Nodes, other: Nodes) -> Nodes:
            return np.minimum(one, other) * len(labels) + np.maximum(one, other)

        return np.isin(named(left, right), named(*self._apart(labels)))

    def _people(self, known: pl.DataFrame, district: str) -> tuple[pl.DataFrame, dict[str, str]]:
        """The person of every component (label, person_id) and the people that were merged into another."""
        claims = (
            known.select("person_id", "first_seen", label=pl.Series(self.labels).gather(known["node"]))
            .unique(["label", "person_id"])
            .sort("label", "first_seen", "person_id", nulls_last=True)
            .with_columns(keeper=pl.col("person_id").first().over("label"))
        )
        merged = claims.filter(pl.col("person_id") != pl.col("keeper"))
        kept = claims.select("label", person_id="keeper").unique()
        firsts = self.facts.select(*RECORD, label=pl.Series(self.labels)).unique(
            "label", keep="first", maintain_order=True
        )
        fresh = firsts.join(kept, on="label", how="anti", maintain_order="left")
        ids = self._fresh_ids(fresh, district)
        people = pl.concat([kept, fresh.select("label", person_id=pl.Series(ids, dtype=pl.String))])
        return people, dict(merged.select("person_id", "keeper").iter_rows())

    def _fresh_ids(self, fresh: pl.DataFrame, district: str) -> list[str]:
        if fresh.is_empty():
            return []
        what, records = self.kind.name, fresh.select(*RECORD).rows()
        ids = derived_ids(records, what, district)
        taken = self._taken(ids)
        for place in (number for number, person_id in enumerate(ids) if person_id in taken):
            salt = 1
            while self._taken([person_id := derived_id(what, district, *records[place], str(salt))]):
                salt += 1
            ids[place] = person_id
        return ids

    def _taken(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that somebody has."""
        asked = pl.Series(ids, dtype=pl.String).implode()
        people = (self.links["person_id"], self.facts["person_id"])
        return {one for found in people for one in found.filter(found.is_in(asked)).drop_nulls()}

    def _near_matches(self, people: pl.DataFrame) -> pl.DataFrame:
        """Neighbours in a group that agrees on part of a rule, or is alike, but are two people: one pair per two people."""
        labelled = self.facts.with_columns(label=pl.Series(self.labels))
        # what is published of somebody counts only where no record says how it is now
        delivered = labelled.filter(pl.col("sis_id").is_not_null())["label"].unique()
        here = pl.col("sis_id").is_not_null() | ~pl.col("label").is_in(delivered.implode())
        labelled = with_forgotten_names(labelled, here)
        present = labelled.filter(here)
        parts = [
            neighbours(present, rule.columns).with_columns(rule=pl.lit(rule.name), tier=pl.lit(rule.tier))
            for rule in self.kind.near_rules
        ]
        parts.append(self.kind.similar(labelled, present).with_columns(tier=pl.lit(_SIMILAR_TIER)))
        pairs = pl.concat(part.select(*PAIR, "rule", "tier") for part in parts)
        if pairs.is_empty():
            return _NO_NEAR_MATCHES
        pairs = self._believable(pairs)
        if self.kind.told_apart:
            pairs = pairs.join(
                told_apart(labelled, pairs), on=["label", "other_label"], how="anti", maintain_order="left"
            )
        apart = self._are_apart(pairs["label"].to_numpy(), pairs["other_label"].to_numpy(), self.labels)
        pairs = (
            pairs.filter(pl.Series(~apart))
            .with_columns(
                two=pl.concat_list(pl.min_horizontal("label", "other_label"), pl.max_horizontal("label", "other_label"))
            )
            .sort("tier", "node", "hub")
            .unique("two", keep="first", maintain_order=True)
        )
        # who has a better near match is not asked about again for a lesser one
        better = pairs.filter((pl.col("tier") < _SIMILAR_TIER) & ~pl.col("two_ids"))
        doubted = pl.concat([better["label"], better["other_label"]]).implode()
        lesser = (pl.col("tier") == _SIMILAR_TIER) & pl.any_horizontal(pl.col("label", "other_label").is_in(doubted))
        pairs = pairs.filter(~lesser)
        # two people of whom neither has a record here are not this merge's business
        named = self._named_pairs(pairs, "label", "other_label", "two_ids").filter(
            pl.col("sis_id").is_not_null() | pl.col("other_sis_id").is_not_null()
        )
        return (
            _less_likely(judged(labelled, named, self.kind.words))
            .join(people, on="label")
            .join(people.rename({"label": "other_label", "person_id": "other_person_id"}), on="other_label")
            .select(*NEAR_SCHEMA)
            .sort(pl.all())
        )

    def _believable(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """The pairs with `two_ids`: whether the two have different state ids of one issuer. Those are two people and no doubt,
        but where name and birth date agree: one child may have been given two."""
        ids = self.state_ids.with_columns(label=pl.Series(self.labels)).drop_nulls("ssid").unique()
        apart = (
            pairs.select("label", "other_label")
            .join(ids, on="label")
            .join(ids.rename({"label": "other_label", "ssid": "other_ssid"}), on=["other_label", "ssid_issuer"])
            .filter(pl.col("ssid") != pl.col("other_ssid"))
            .select("label", "other_label", two_ids=pl.lit(value=True))
            .unique()
        )
        pairs = pairs.join(apart, on=["label", "other_label"], how="left", maintain_order="left")
        one, other = (self.facts[pairs[side]].select(_NAME_AND_BIRTH) for side in ("node", "hub"))
        agree = [(one[name] == other[name]).fill_null(value=False) for name in _NAME_AND_BIRTH]
        alike = pl.DataFrame(agree).select(pl.all_horizontal(pl.all())).to_series() & (pairs["tier"] < _SIMILAR_TIER)
        return pairs.with_columns(pl.col("two_ids").fill_null(value=False)).filter(~pl.col("two_ids") | alike)

    def _named_pairs(self, pairs: pl.DataFrame, *also: str) -> pl.DataFrame:
        names = self.facts.select("node", *RECORD)
        others = names.rename({"node": "hub", "integration": "other_integration", "sis_id": "other_sis_id"})
        return (
            pairs.join(names, on="node")
            .join(others, on="hub")
            .select("node", "hub", *also, *RECORD, "other_integration", "other_sis_id", "rule")
        )

    def _assignment(
        self, known: pl.DataFrame, matched: pl.DataFrame, people: pl.DataFrame, near: pl.DataFrame
    ) -> pl.DataFrame:
        """The person of every record, with the rule of its link, else of its strongest edge, else `new`."""
        ends = pl.concat(
            [matched.select("node", "rule", "tier"), matched.select("rule", "tier", node="hub")], how="diagonal"
        )
        strongest = ends.sort("tier", "rule").unique("node", keep="first").select("node", matched_rule="rule")
        linked = known.drop_nulls("rule").select("node", link_rule="rule")
        doubtful = pl.concat(
            [near.select(*RECORD), near.select(integration="other_integration", sis_id="other_sis_id")]
        ).drop_nulls().unique().with_columns(doubtful=pl.lit(value=True))  # fmt: skip
        founders = people.join(
            known.select(label=pl.Series(self.labels).gather(known["node"])).unique(), on="label", how="anti"
        )
        is_founder = (pl.col("node") == pl.col("label")) & pl.col("label").is_in(founders["label"].implode())
        return (
            self.facts.select("node", *RECORD, label=pl.Series(self.labels))
            .filter(pl.col("sis_id").is_not_null())
            .join(people, on="label", how="left")
            .join(linked, on="node", how="left")
            .join(strongest, on="node", how="left")
            .join(doubtful, on=RECORD, how="left")
            .select(
                *RECORD,
                "person_id",
                rule=pl.coalesce(
                    "link_rule", pl.when(is_founder).then(pl.lit(NEW)).otherwise(pl.col("matched_rule")), pl.lit(NEW)
                ),
                confidence=pl.when(pl.col("doubtful").is_null()).then(1.0).otherwise(NEAR_CONFIDENCE),
            )
            .sort(*RECORD)
        )


def _less_likely(pairs: pl.DataFrame) -> pl.DataFrame:
    """The pairs, judged: of those with two state ids the score is half, and the evidence says so."""
    evidence = pl.concat_str("evidence", pl.lit(TWO_IDS), separator=", ")
    return pairs.with_columns(
        evidence=pl.when("two_ids").then(evidence).otherwise("evidence"),
        score=pl.when("two_ids").then((pl.col("score") / 2).round(3)).otherwise("score"),
    )


def _renumbered_without(facts: pl.DataFrame, recycled: pl.DataFrame) -> pl.DataFrame:
    """A recycled record is nobody's, and must not lend its facts to anybody."""
    if recycled.is_empty():
        return facts
    rest = facts.join(recycled, on=RECORD, how="anti", maintain_order="left").drop("node")
    return rest.with_row_index("node").with_columns(pl.col("node").cast(pl.Int64))


def _own_facts(before: pl.DataFrame, records: pl.DataFrame) -> pl.DataFrame:
    """What these records said of themselves before, as recycled.OWN; the state id without its issuer."""
    own = before.join(records, on=RECORD, how="semi")
    own = _with_keys(own, ["first_name", "preferred_first_name"], _first_names)
    own = _with_keys(own, ["last_name", "preferred_last_name"], _last_names)
    return own.with_columns(ssid=exact_key(pl.col("ssid"))).select(*RECORD, "student_id", *OWN)


def _still_theirs(recycled: pl.DataFrame, before: pl.DataFrame | None) -> pl.DataFrame:
    """Of the records set aside those that were published of whom they are linked to: in an earlier school year than the one
    in which a person gave the id to somebody else it is still the other's, and nobody is asked."""
    if before is None:
        return recycled
    was = before.select(*RECORD, "student_id").drop_nulls()
    others = recycled.join(was, on=RECORD).filter(pl.col("student_id") != pl.col("person_id"))
    return recycled.join(others, on=RECORD, how="anti")


def _edges(facts: pl.DataFrame, rule: Rule) -> pl.DataFrame:
    """Edges from every record to the first record that agrees with it on all columns of the rule, where that could join two
    components: `facts` have their `label`. Who is not linked or joined by a stronger rule is a component alone."""
    columns = list(rule.columns)
    agreeing = facts.select("node", "label", *columns).drop_nulls()
    if agreeing.is_empty():
        return _NO_EDGES
    plain = [name for name in columns if facts.schema[name] != pl.List(pl.String)]
    # most records share their plain columns with nobody else: leave them before variants multiply them
    several = (pl.col("label").min() != pl.col("label").max()).over("hash")
    agreeing = agreeing.with_columns(hash=agreeing.select(plain).hash_rows()).filter(several).drop("label", "hash")
    if agreeing.is_empty():
        return _NO_EDGES
    for name in columns:
        if name not in plain:
            agreeing = agreeing.explode(name)
    return (
        agreeing.drop_nulls()
        .with_columns(hub=pl.col("node").min().over(columns))
        .filter(pl.col("node") != pl.col("hub"))
        .select("node", "hub", rule=pl.lit(rule.name), tier=pl.lit(rule.tier, pl.Int32))
        .unique()
    )
