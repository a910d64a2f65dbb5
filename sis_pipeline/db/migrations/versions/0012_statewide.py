"""One child in several districts: linked by ssid, with the way from one to another. Conflicts that went
stale. Whose value of an attribute is published, with who is next, in SQL. And near matches of staff."""

import json

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

UUID = sa.UUID(as_uuid=False)
STAMP = postgresql.TIMESTAMP(timezone=True)
CLOCK = sa.text("sis.clock()")

PENDING_TRANSFERS = """
create view sis.pending_transfers as
select e.district, e.student_id, e.school_id, e.school_year, e.exit_date, e.exit_code
from sis.enrollments e
join sis.students s on s.district = e.district and s.student_id = e.student_id
where (select m.enabled from sis.statewide_matching m order by m.version desc limit 1)
  and s.ssid is not null
  and e.status in ('withdrawn', 'transferred')
  and e.exit_date >= sis.clock()::date - 14
  and not exists (
    select from sis.enrollments o
    where o.district = e.district and o.student_id = e.student_id and o.school_year >= e.school_year
      and (o.status in ('pre_registered', 'active') or o.exit_date > e.exit_date))
  and not exists (
    select from sis.statewide_transfers t
    where t.kind = 'transfer' and t.district = e.district and t.student_id = e.student_id
      and t.school_id = e.school_id and t.exit_date = e.exit_date)
"""
ABOUT = "Who left a district in the last 14 days and has not entered another one yet."

SIDE_WORDS = {"": "one side", "other_": "the other side"}
COMMENTS = {
    "table sis.near_matches": (
        "Pairs of students who may be one, waiting for a person.",
        "Pairs of students, or of staff, who may be one, waiting for a person.",
    ),
    **{
        f"column sis.{table}.{side}{name}": (f"{words}: {before}", f"{words}: {after}")
        for table in ("near_matches", "identity_decisions")
        for side, words in SIDE_WORDS.items()
        for name, before, after in (
            (
                "sis_id",
                "the id of its record; null for a student without a record in that school year",
                "the id of its record; null for somebody without a record in that school year",
            ),
            ("student_id", "the student it was then", "the student, or staff member, it was then"),
        )
    },
    "table sis.conflicts": (
        "Attributes on which the systems disagree, what was chosen and by which rule.",
        "Attributes on which the systems disagree, what was chosen and by which rule; and, stale, on which they did until `changed_at`.",
    ),
    "column sis.conflicts.status": (
        "open, auto, resolved or stale",
        "whether nobody has chosen, a rule, or a person; stale where nothing conflicts any more",
    ),
}
"""What is commented -> what was said before, and what is from now on."""

LEAD = {
    "ssid": ["ssid"],
    "local_id": ["local_id"],
    "home_address": ["home_street", "home_city", "home_state", "home_postal_code"],
    "mailing_address": ["mailing_street", "mailing_city", "mailing_state", "mailing_postal_code"],
}
SINGLE = (
    "first_name", "middle_name", "last_name", "name_suffix",
    "preferred_first_name", "preferred_middle_name", "preferred_last_name",
    "pronouns", "birth_date", "sex", "username", "email", "phone", "mobile_phone",
    "hispanic_or_latino", "american_indian_or_alaska_native", "asian", "black_or_african_american",
    "native_hawaiian_or_other_pacific_islander", "white",
    "graduation_year", "district_entry_date", "directory_opt_out", "address_confidential",
)  # fmt: skip
ATTRIBUTES = json.dumps({**LEAD, **{name: [name] for name in SINGLE}})
"""Attribute of a person -> the columns of which one has a value where it is supplied."""

# Who is published says `origins`; who is next is who would be published if that one said nothing, see roster.merge.
PROVENANCE = f"""
create function sis.provenance(of_district text, of_student uuid)
returns table (
  attribute text, integration text, sis_id text, modified_at timestamptz, read_at timestamptz, rule text,
  runner_up_integration text, runner_up_sis_id text, runner_up_modified_at timestamptz
) language sql stable as $$
with person as (
  select s.origins, s.latest_school_year, to_jsonb(s) as said from sis.students s
  where s.district = of_district and s.student_id = of_student
), policy as (
  select p.policies from sis.survivorship_policies p where p.district = of_district order by p.version desc limit 1
), edit as (
  select distinct on (e.attribute) e.* from sis.student_edits e
  where e.district = of_district and (e.student_id = of_student or e.student_id in (
    select a.alias_id from sis.student_aliases a where a.student_id = of_student and a.restored_at is null))
  order by e.attribute, e.edit desc
), voice as (
  select r.integration, r.sis_id, r.modified_at, n.started_at as read_at, i.priority, null as edited,
         to_jsonb(r) as said, r.integration || '/' || r.sis_id as label
  from person p
  join sis.student_sources r
    on r.district = of_district and r.student_id = of_student and r.school_year = p.latest_school_year
  left join sis.integrations i on i.key = r.integration
  left join sis.snapshots n on n.snapshot_id = r.snapshot_id
  union all
  select 'local edit', e.edited_by, e.edited_at, e.edited_at, null, e.attribute, e.value,
         'local edit/' || e.edited_by || ' ' || to_char(e.edited_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
  from edit e where e.settled_at is null
), published as (
  select a.key as name, a.value as lead, a.key in ('directory_opt_out', 'address_confidential') as is_protection,
         case when p.origins ? a.key then regexp_replace(p.origins ->> a.key, ' [^ ]*$', '')
              else p.origins ->> '*' end as source,
         coalesce(c.rule, substring(p.origins ->> a.key from '[^ ]*$')) as rule,
         coalesce((select policies ->> a.key from policy), (select policies ->> 'default' from policy), 'sis_wins') as policy
  from person p
  cross join jsonb_each('{ATTRIBUTES}'::jsonb) a
  left join sis.conflicts c
    on c.district = of_district and c.student_id = of_student and c.school_year = p.latest_school_year
    and c.attribute = a.key and c.status <> 'stale'
  where p.origins ? a.key or exists (
    select from jsonb_array_elements_text(a.value) l where p.said ->> l is not null)
), candidate as (
  select p.name, p.source, v.*,
         row_number() over (
           partition by p.name
           order by v.label = p.source desc,
             case when p.is_protection then (v.said ->> p.name)::boolean is not true end,
             case when p.policy in ('local_wins', 'manual') and not p.is_protection then v.edited is null end,
             case when p.policy = 'newest_wins' then v.modified_at end desc nulls last,
             v.edited is not null, v.priority nulls last, v.integration collate "C", v.modified_at desc nulls last,
             v.sis_id collate "C"
         ) - case when bool_or(v.label = p.source) over (partition by p.name) then 1 else 0 end as place
  from published p
  join voice v on v.edited = p.name or v.edited is null and exists (
    select from jsonb_array_elements_text(p.lead) l where v.said ->> l is not null)
)
select p.name, split_part(p.source, '/', 1), coalesce(w.sis_id, substring(p.source from position('/' in p.source) + 1)),
       w.modified_at, w.read_at, coalesce(p.rule, case when p.is_protection then 'any_true' else p.policy end),
       n.integration, n.sis_id, n.modified_at
from published p
left join candidate w on w.name = p.name and w.label = p.source
left join candidate n on n.name = p.name and n.place = 1 and n.label <> p.source
order by p.name
$$
"""
ABOUT_PROVENANCE = (
    "Of every attribute that is published of a student: whose value it is, since when, by which rule, and whose it would be "
    "if that one said nothing."
)


def upgrade() -> None:
    op.execute(PROVENANCE)
    op.execute(f"comment on function sis.provenance is '{ABOUT_PROVENANCE}'")
    for what, (_, about) in COMMENTS.items():
        op.execute(f"comment on {what} is '{about}'")
    op.create_table(
        "statewide_matching",
        sa.Column("version", sa.Integer(), nullable=False, comment="rising from 1; the newest holds"),
        sa.Column(
            "enabled", sa.Boolean(), nullable=False, comment="whether students of several districts are compared"
        ),
        sa.Column("set_by", sa.Text(), nullable=False, comment="who set it"),
        sa.Column("reason", sa.Text(), nullable=False, comment="why"),
        sa.Column("set_at", STAMP, server_default=CLOCK, nullable=False, comment="when it was set"),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_statewide_matching")),
        schema="sis",
        comment="Whether this installation looks for one child in several districts; without a row it does not.",
    )
    _links()
    _transfers()
    _staff()
    op.execute(PENDING_TRANSFERS)
    op.execute(f"comment on view sis.pending_transfers is '{ABOUT}'")


def _links() -> None:
    op.create_table(
        "statewide_links",
        sa.Column("district", sa.Text(), nullable=False, comment="one district, the first of the two by name"),
        sa.Column("student_id", UUID, nullable=False, comment="the student there"),
        sa.Column("other_district", sa.Text(), nullable=False, comment="the other district"),
        sa.Column("other_student_id", UUID, nullable=False, comment="the student there"),
        sa.Column("decision", sa.Text(), nullable=False, comment="match, or near_match where only the ssid agrees"),
        sa.Column("evidence", sa.Text(), nullable=False, comment="names of what agrees; no values"),
        sa.Column("found_at", STAMP, server_default=CLOCK, nullable=False, comment="when it was found"),
        sa.CheckConstraint("decision in ('match','near_match')", name=op.f("ck_statewide_links_decision")),
        sa.PrimaryKeyConstraint(
            "district", "student_id", "other_district", "other_student_id", name=op.f("pk_statewide_links")
        ),
        schema="sis",
        comment="Students of two districts with one ssid; follows what both have published.",
    )
    op.create_index("ix_statewide_links_other_student_id", "statewide_links", ["other_student_id"], schema="sis")


def _transfers() -> None:
    op.create_table(
        "statewide_transfers",
        sa.Column("district", sa.Text(), nullable=False, comment="the district that was left, or entered first"),
        sa.Column("transfer_id", UUID, nullable=False, comment="the pair; the same two enrollments always have it"),
        sa.Column(
            "kind", sa.Text(), nullable=False, comment="transfer, or concurrent: the primary enrollment runs in both"
        ),
        sa.Column("student_id", UUID, nullable=False, comment="the student there"),
        sa.Column("school_id", UUID, nullable=False, comment="the school there"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year of the enrollment there"),
        sa.Column("exit_date", sa.Date(), nullable=True, comment="first day no longer enrolled there"),
        sa.Column("other_district", sa.Text(), nullable=False, comment="the district that was entered"),
        sa.Column("other_student_id", UUID, nullable=False, comment="the student there"),
        sa.Column("other_school_id", UUID, nullable=False, comment="the school there"),
        sa.Column("other_school_year", sa.Text(), nullable=False, comment="school year of the enrollment there"),
        sa.Column("entry_date", sa.Date(), nullable=False, comment="first day there"),
        sa.Column("found_at", STAMP, server_default=CLOCK, nullable=False, comment="when it was found"),
        sa.CheckConstraint("kind in ('transfer','concurrent')", name=op.f("ck_statewide_transfers_kind")),
        sa.PrimaryKeyConstraint("transfer_id", name=op.f("pk_statewide_transfers")),
        schema="sis",
        comment="Who went from one district to another, and who is in two at once; follows what both have published.",
    )
    for column in ("student_id", "other_student_id"):
        op.create_index(f"ix_statewide_transfers_{column}", "statewide_transfers", [column], schema="sis")


def _staff() -> None:
    for table in ("near_matches", "identity_decisions"):
        kind = sa.Column(
            "entity",
            sa.Text(),
            server_default=sa.text("'student'"),
            nullable=False,
            comment="student or staff: who the two are",
        )
        op.add_column(table, kind, schema="sis")
        op.create_check_constraint(op.f(f"ck_{table}_entity"), table, "entity in ('student','staff')", schema="sis")
    waits = "true while a possible same person waits for review; no account is made"
    flag: sa.Column[bool] = sa.Column(
        "near_match", sa.Boolean(), server_default=sa.false(), nullable=False, comment=waits
    )
    op.add_column("staff", flag, schema="sis")
    op.alter_column("staff", "near_match", server_default=None, schema="sis")


def downgrade() -> None:
    op.drop_column("staff", "near_match", schema="sis")
    for table in ("near_matches", "identity_decisions"):
        op.execute(f"delete from sis.{table} where entity = 'staff'")
        op.drop_column(table, "entity", schema="sis")
    op.execute("drop function sis.provenance")
    for what, (before, _) in COMMENTS.items():
        op.execute(f"comment on {what} is '{before}'")
    op.execute("drop view sis.pending_transfers")
    for table in ("statewide_transfers", "statewide_links", "statewide_matching"):
        op.drop_table(table, schema="sis")
