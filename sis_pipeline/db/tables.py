"""Every table of the schema `sis` as SQLAlchemy metadata. The roster tables are derived from roster.model; only what
the pipeline keeps about its own work (integrations, tokens, snapshots, operations …) is declared here."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Date,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy import Column as SqlColumn
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, UUID
from sqlalchemy.types import TypeEngine

from sis_pipeline.roster import model

SCHEMA = "sis"
NOW = text("sis.clock()")

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    },
)

SQL_TYPES: dict[model.Kind, TypeEngine[Any]] = {
    "text": Text(),
    "date": Date(),
    "timestamp": TIMESTAMP(timezone=True),
    "int": Integer(),
    "float": Double(),
    "bool": Boolean(),
    "list": JSONB(),
    "json": JSONB(),
    "uuid": UUID(as_uuid=False),
}


def _roster_table(table: model.Table, *extra: SqlColumn[Any] | Index | UniqueConstraint) -> Table:
    columns = [
        SqlColumn(
            column.name,
            SQL_TYPES[column.kind],
            primary_key=column.key,
            nullable=not (column.required or column.key),
            comment=column.about,
        )
        for column in table
    ]
    return Table(table.name, metadata, *columns, *extra, comment=table.about)


def _seen() -> tuple[SqlColumn[Any], SqlColumn[Any]]:
    stamp = TIMESTAMP(timezone=True)
    return (
        SqlColumn(
            "first_seen", stamp, nullable=False, server_default=NOW, comment="when the record was first delivered"
        ),
        SqlColumn(
            "last_seen",
            stamp,
            nullable=False,
            server_default=NOW,
            comment="when the row last changed or was last confirmed by a changed delivery",
        ),
    )


def _stamp(name: str = "changed_at", about: str = "when the row was last written") -> SqlColumn[Any]:
    return SqlColumn(name, TIMESTAMP(timezone=True), nullable=False, server_default=NOW, comment=about)


STAMPED = {"schools", "academic_sessions", "courses", "staff", "sections", "students", "student_years",
           "student_sources", "conflicts", "enrollments", "section_enrollments"}  # fmt: skip

roster_tables: dict[str, Table] = {}
for _name, _table in model.MERGED.items():
    _extra: list[SqlColumn[Any] | Index] = []
    if _name in STAMPED:
        _extra.append(_stamp())
    if _name.endswith("_links"):
        _extra.extend(_seen())
    if _name == "enrollment_changes":
        _extra.append(_stamp("detected_at", "when the event was detected"))
    roster_tables[_name] = _roster_table(_table, *_extra)

Index("ix_students_ssid", roster_tables["students"].c.district, roster_tables["students"].c.ssid)
Index("ix_students_local_id", roster_tables["students"].c.district, roster_tables["students"].c.local_id)
Index(
    "ix_student_years_school_year",
    roster_tables["student_years"].c.district,
    roster_tables["student_years"].c.school_year,
)
Index("ix_student_links_student_id", roster_tables["student_links"].c.student_id)
Index("ix_student_sources_student_id", roster_tables["student_sources"].c.student_id)
Index("ix_enrollments_school_year", roster_tables["enrollments"].c.district, roster_tables["enrollments"].c.school_year)
Index("ix_section_enrollments_person_id", roster_tables["section_enrollments"].c.person_id)
Index(
    "ix_section_enrollments_school_year",
    roster_tables["section_enrollments"].c.district,
    roster_tables["section_enrollments"].c.school_year,
)
Index("ix_enrollment_changes_student_id", roster_tables["enrollment_changes"].c.student_id)
Index(
    "ix_enrollment_changes_detected_at",
    roster_tables["enrollment_changes"].c.district,
    roster_tables["enrollment_changes"].c.detected_at,
)

KEY_PATTERN = "^[a-z0-9][a-z0-9-]{0,62}$"
"""Integration keys: partition keys, folder names and run tags, so nothing that could traverse or separate."""

integrations = Table(
    "integrations",
    metadata,
    SqlColumn("key", Text, primary_key=True, comment="the integration's slug, unique across providers"),
    SqlColumn("provider", Text, nullable=False, comment="registered provider name"),
    SqlColumn(
        "district", Text, nullable=False, comment="the district its organisations belong to unless mapped otherwise"
    ),
    SqlColumn(
        "organisations",
        JSONB,
        nullable=False,
        server_default=text("'{}'"),
        comment="organisation sis_id -> district, for consortia and shared centres",
    ),
    SqlColumn("settings", JSONB, nullable=False, comment="the provider's validated settings; never a secret"),
    SqlColumn(
        "priority", Integer, nullable=False, server_default=text("100"), comment="survivorship order, lower first"
    ),
    SqlColumn(
        "status",
        Text,
        nullable=False,
        server_default=text("'healthy'"),
        comment="healthy, degraded, needs_reauth, failing, paused",
    ),
    SqlColumn("status_reason", Text, comment="why, in words"),
    SqlColumn("status_since", TIMESTAMP(timezone=True), comment="when it got that status"),
    SqlColumn(
        "failures",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="syncs that failed since the last good one",
    ),
    SqlColumn("last_success_at", TIMESTAMP(timezone=True), comment="when a sync last came to its end"),
    SqlColumn("source_identity", Text, comment="whose data answered first, as the system names it; others are refused"),
    _stamp("created_at", "when it was added"),
    _stamp("updated_at", "when its settings last changed"),
    CheckConstraint(f"key ~ '{KEY_PATTERN}'", name="key"),
    CheckConstraint("status in ('healthy','degraded','needs_reauth','failing','paused')", name="status"),
    comment="Connections to student information systems.",
)

oauth_tokens = Table(
    "oauth_tokens",
    metadata,
    SqlColumn("integration", Text, primary_key=True, comment="the integration"),
    SqlColumn("kind", Text, primary_key=True, comment="client_secret, access or refresh"),
    SqlColumn("ciphertext", LargeBinary, nullable=False, comment="MultiFernet ciphertext, bound to this row"),
    SqlColumn("key_id", Text, nullable=False, comment="which encryption key sealed it"),
    SqlColumn("version", Integer, nullable=False, comment="raised by every write"),
    SqlColumn("expires_at", TIMESTAMP(timezone=True), comment="on the database clock; null where it does not expire"),
    SqlColumn("lifetime_seconds", Integer, comment="lifetime the server gave, for the refresh window"),
    SqlColumn(
        "status",
        Text,
        nullable=False,
        server_default=text("'active'"),
        comment="active, refreshing, needs_reauth, revocation_pending, revoked",
    ),
    SqlColumn("lease_holder", Text, comment="host, process and start of who is refreshing it"),
    SqlColumn("lease_until", TIMESTAMP(timezone=True), comment="until when the refreshing may take"),
    SqlColumn("failures", Integer, nullable=False, server_default=text("0"), comment="failed token calls in a row"),
    SqlColumn("last_error", Text, comment="why the last one failed, without values"),
    SqlColumn("last_refreshed_at", TIMESTAMP(timezone=True), comment="when the source last gave a token"),
    SqlColumn("scope", Text, comment="what the source granted, where it says so"),
    _stamp("updated_at", "when it was last written"),
    CheckConstraint("status in ('active','refreshing','needs_reauth','revocation_pending','revoked')", name="status"),
    comment="Secrets and tokens, encrypted.",
)

snapshots = Table(
    "snapshots",
    metadata,
    SqlColumn("integration", Text, nullable=False, comment="the integration"),
    SqlColumn("school_year", Text, nullable=False, comment="school year"),
    SqlColumn("snapshot_id", UUID(as_uuid=False), primary_key=True, comment="the snapshot"),
    SqlColumn("provider", Text, nullable=False, comment="provider name"),
    SqlColumn("path", Text, nullable=False, comment="its folder below SIS_DATA_DIR"),
    SqlColumn("completeness", Text, comment="what the reading proved: complete, partial, delta; null while reading"),
    SqlColumn(
        "verdict",
        Text,
        nullable=False,
        server_default=text("'pending'"),
        comment="pending, complete, partial, delta, or rejected; only complete, partial and delta are merged",
    ),
    SqlColumn("evidence", JSONB, comment="per resource: pages, rows, totals, how the end was proven"),
    SqlColumn("content_hash", Text, comment="hash of all pages, in order"),
    SqlColumn("roster_hash", Text, comment="hash of the standard frames; equal hashes need no merge"),
    SqlColumn("rows", JSONB, comment="good rows per entity"),
    SqlColumn("quarantined", JSONB, comment="quarantined rows per entity"),
    SqlColumn("api_calls", Integer, comment="calls made, token calls included"),
    SqlColumn("bytes", BigInteger, comment="decoded bytes read"),
    SqlColumn("seconds", Double, comment="seconds the reading took"),
    SqlColumn("run_id", Text, comment="Dagster run"),
    SqlColumn("base_snapshot_id", UUID(as_uuid=False), comment="of a delta: the snapshot whose records it changes"),
    SqlColumn("since", TIMESTAMP(timezone=True), comment="of a delta: from when on changes were asked for"),
    SqlColumn("watermark", TIMESTAMP(timezone=True), comment="the source's own time when the reading began"),
    SqlColumn("drift", JSONB, comment="of a full reading after deltas: per entity, what the deltas had missed"),
    SqlColumn("settings_hash", Text, comment="hash of the settings it is read with; others start a new reading"),
    SqlColumn(
        "resumed", Integer, nullable=False, server_default=text("0"), comment="times the reading went on after a kill"
    ),
    _stamp("started_at", "when the reading started"),
    SqlColumn("finished_at", TIMESTAMP(timezone=True), comment="when the reading ended"),
    SqlColumn("raw_expired_at", TIMESTAMP(timezone=True), comment="when its pages were given up as too old"),
    SqlColumn("roster_expired_at", TIMESTAMP(timezone=True), comment="when its standard frames were given up"),
    SqlColumn("quarantine_expired_at", TIMESTAMP(timezone=True), comment="when its rejected rows were given up"),
    CheckConstraint("verdict in ('pending','complete','partial','delta','rejected')", name="verdict"),
    Index("ix_snapshots_latest", "integration", "school_year", "started_at"),
    Index("ix_snapshots_under_way", "integration", postgresql_where=text("finished_at is null")),
    comment="What was read from each integration, and what it proves.",
)

snapshot_pages = Table(
    "snapshot_pages",
    metadata,
    SqlColumn("integration", Text, nullable=False, comment="the integration"),
    SqlColumn("snapshot_id", UUID(as_uuid=False), primary_key=True, comment="the snapshot that is being read"),
    SqlColumn("resource", Text, primary_key=True, comment="the collection"),
    SqlColumn("number", Integer, primary_key=True, comment="page number, from 1"),
    SqlColumn("file", Text, nullable=False, comment="its file below the snapshot's folder"),
    SqlColumn("records", Integer, nullable=False, comment="records on it"),
    SqlColumn("bytes", BigInteger, nullable=False, comment="size of the body as it was sent"),
    SqlColumn("sha256", Text, nullable=False, comment="hash of the body as it was sent"),
    SqlColumn("about", JSONB, nullable=False, comment="what the mapping needs beside the records"),
    SqlColumn("request", Text, nullable=False, comment="hash of the request it answers"),
    SqlColumn("headers", JSONB, nullable=False, comment="the answer's paging headers"),
    SqlColumn("total", Integer, comment="the source's own count when it was read"),
    SqlColumn("token_version", Integer, comment="version of the access token it was read with"),
    _stamp("read_at", "when it was kept"),
    comment="Pages of readings under way: where a killed reading goes on. Emptied when the reading ends.",
)

quarantine = Table(
    "quarantine",
    metadata,
    SqlColumn("integration", Text, primary_key=True, comment="the integration"),
    SqlColumn(
        "snapshot_id", UUID(as_uuid=False), primary_key=True, comment="the snapshot; the whole row is kept beside it"
    ),
    SqlColumn("entity", Text, primary_key=True, comment="entity"),
    SqlColumn("row", Integer, primary_key=True, comment="row number in the entity's standard frame"),
    SqlColumn("column", Text, primary_key=True, comment="offending column"),
    SqlColumn("reason", Text, primary_key=True, comment="what is wrong, without the value"),
    SqlColumn("school_year", Text, nullable=False, comment="school year"),
    SqlColumn("sis_id", Text, comment="the record's id in its SIS"),
    comment="Rows set aside with their reason: counted, kept, never merged.",
)

api_calls = Table(
    "api_calls",
    metadata,
    SqlColumn("integration", Text, nullable=False, comment="the integration"),
    SqlColumn("call_id", BigInteger, Identity(), primary_key=True, comment="running number"),
    _stamp("at", "when the call ended"),
    SqlColumn("snapshot_id", UUID(as_uuid=False), comment="the snapshot it was made for"),
    SqlColumn("method", Text, nullable=False, comment="HTTP method"),
    SqlColumn("template", Text, nullable=False, comment="path without ids or parameters"),
    SqlColumn("status", Integer, comment="HTTP status; null where none came"),
    SqlColumn("error_class", Text, comment="class of the error, null for success"),
    SqlColumn("milliseconds", Double, nullable=False, comment="time taken"),
    SqlColumn("bytes", BigInteger, nullable=False, comment="decoded bytes of the body"),
    SqlColumn("attempt", Integer, nullable=False, comment="1 for the first"),
    SqlColumn("request_id", Text, comment="the id the request carried, as in the logs"),
    Index("ix_api_calls_integration", "integration", "at"),
    Index("ix_api_calls_at", "at", postgresql_using="brin"),  # for the purge: rows come in the order of time
    comment="Every call to a SIS, without parameters.",
)

sync_operations = Table(
    "sync_operations",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("school_year", Text, nullable=False, comment="school year"),
    SqlColumn("operation_id", UUID(as_uuid=False), primary_key=True, comment="the operation"),
    SqlColumn("epoch", Integer, nullable=False, comment="fencing number, rising per district and school year"),
    SqlColumn("base_epoch", Integer, nullable=False, comment="the published epoch the merge started from"),
    SqlColumn("status", Text, nullable=False, comment="merging, merged, published, superseded, failed"),
    SqlColumn(
        "published_before",
        JSONB,
        nullable=False,
        server_default=text("'{}'"),
        comment="school year -> published epoch of the district, as the merge found them",
    ),
    SqlColumn("fingerprint", Text, nullable=False, comment="hash of the snapshots it was made from"),
    SqlColumn("inputs", JSONB, nullable=False, comment="per integration: snapshot, verdict, age"),
    SqlColumn("summary", JSONB, comment="students, matched, conflicts, changes by kind, applied, held"),
    SqlColumn("path", Text, comment="folder of the merged frames below SIS_DATA_DIR"),
    SqlColumn("run_id", Text, comment="Dagster run"),
    _stamp("started_at", "when it started"),
    SqlColumn("finished_at", TIMESTAMP(timezone=True), comment="when it was published"),
    SqlColumn("undoes", UUID(as_uuid=False), comment="the operation that this one undoes"),
    SqlColumn(
        "withheld",
        JSONB,
        nullable=False,
        server_default=text("'{}'"),
        comment="integration -> fingerprints of snapshots that were undone and are not merged again as they are",
    ),
    SqlColumn("frames_expired_at", TIMESTAMP(timezone=True), comment="when its frames were given up as too old"),
    SqlColumn("details_expired_at", TIMESTAMP(timezone=True), comment="when inputs and most of the summary were"),
    UniqueConstraint("district", "school_year", "epoch"),
    CheckConstraint("status in ('merging','merged','published','superseded','failed')", name="status"),
    comment="Every merge of a district and school year, and what it did.",
)

holds = Table(
    "holds",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("hold_id", UUID(as_uuid=False), primary_key=True, comment="the hold"),
    SqlColumn("school_year", Text, nullable=False, comment="school year"),
    SqlColumn("fingerprint", Text, nullable=False, comment="hash of the removals it holds"),
    SqlColumn("reason", Text, nullable=False, comment="which limit was exceeded, in words"),
    SqlColumn("removals", JSONB, nullable=False, comment="per kind and school: how many"),
    SqlColumn("rows", JSONB, nullable=False, comment="the ids of what is held"),
    SqlColumn(
        "status", Text, nullable=False, server_default=text("'open'"), comment="open, released, discarded, applied"
    ),
    SqlColumn("decided_by", Text, comment="who decided"),
    SqlColumn("decided_reason", Text, comment="why"),
    SqlColumn("operation_id", UUID(as_uuid=False), nullable=False, comment="the operation that raised it"),
    _stamp("opened_at", "when it was raised"),
    SqlColumn("decided_at", TIMESTAMP(timezone=True), comment="when it was decided"),
    UniqueConstraint("district", "school_year", "fingerprint"),
    CheckConstraint("status in ('open','released','discarded','applied')", name="status"),
    comment="Removals that wait for a person.",
)


def _pair(*, nullable_student: bool) -> list[SqlColumn[Any]]:
    """The two sides of a near match or a decision: records, or people who have none here; and of what kind both are."""
    kind = SqlColumn(
        "entity", Text(), nullable=False, server_default=text("'student'"), comment="student or staff: who the two are"
    )
    return [
        kind,
        *_sides(nullable_student=nullable_student),
    ]


def _sides(*, nullable_student: bool) -> list[SqlColumn[Any]]:
    return [
        SqlColumn(f"{side}{name}", kind, nullable=nullable, comment=f"{words} {about}")
        for side, words in (("", "one side:"), ("other_", "the other side:"))
        for name, kind, nullable, about in (
            ("integration", Text(), True, "the integration of its record"),
            ("sis_id", Text(), True, "the id of its record; null for somebody without a record in that school year"),
            ("student_id", UUID(as_uuid=False), nullable_student, "the student, or staff member, it was then"),
        )
    ]


near_matches = Table(
    "near_matches",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("near_match_id", UUID(as_uuid=False), primary_key=True, comment="the pair; the same two always have it"),
    SqlColumn("school_year", Text, nullable=False, comment="the latest school year whose merge found it"),
    *_pair(nullable_student=False),
    SqlColumn("rule", Text, nullable=False, comment="the rule that made it a doubt"),
    SqlColumn("evidence", Text, nullable=False, comment="names of what agrees or is alike; no values"),
    SqlColumn("score", Double, nullable=False, comment="how alike they are, from 0 to 1"),
    SqlColumn("status", Text, nullable=False, server_default=text("'open'"), comment="open, decided, gone"),
    SqlColumn("operation_id", UUID(as_uuid=False), nullable=False, comment="the operation that found it"),
    _stamp("opened_at", "since when it waits"),
    SqlColumn("closed_at", TIMESTAMP(timezone=True), comment="when it was decided, or no longer found"),
    CheckConstraint("status in ('open','decided','gone')", name="status"),
    CheckConstraint("entity in ('student','staff')", name="entity"),
    Index("ix_near_matches_queue", "district", "score", postgresql_where=text("status = 'open'")),
    comment="Pairs of students, or of staff, who may be one, waiting for a person.",
)

identity_decisions = Table(
    "identity_decisions",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("decision_id", UUID(as_uuid=False), primary_key=True, comment="the decision"),
    SqlColumn(
        "verdict",
        Text,
        nullable=False,
        comment="same, same_with_two_state_ids (one student who has two of one issuer) or distinct",
    ),
    *_pair(nullable_student=True),
    SqlColumn("near_match_id", UUID(as_uuid=False), comment="the near match it answers; null for a split"),
    SqlColumn("decided_by", Text, nullable=False, comment="who decided"),
    SqlColumn("reason", Text, nullable=False, comment="why"),
    _stamp("decided_at", "when it was decided"),
    SqlColumn(
        "superseded_by", UUID(as_uuid=False), comment="the later decision about the same two; null while it stands"
    ),
    CheckConstraint("verdict in ('same','same_with_two_state_ids','distinct')", name="verdict"),
    CheckConstraint("entity in ('student','staff')", name="entity"),
    Index("ix_identity_decisions_standing", "district", postgresql_where=text("superseded_by is null")),
    comment="What people decided about who is who; remembered for ever, inputs of every merge.",
)

student_aliases = Table(
    "student_aliases",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("alias_id", UUID(as_uuid=False), primary_key=True, comment="the student id that was merged away"),
    SqlColumn("student_id", UUID(as_uuid=False), nullable=False, comment="the student it is now"),
    SqlColumn("records", JSONB, nullable=False, comment="[integration, sis_id] of the records it had"),
    SqlColumn("operation_id", UUID(as_uuid=False), nullable=False, comment="the operation that merged it"),
    _stamp("merged_at", "when it was merged"),
    SqlColumn(
        "restored_at", TIMESTAMP(timezone=True), comment="when a split brought it back; null while it is an alias"
    ),
    Index("ix_student_aliases_student_id", "student_id"),
    comment="Ids of students that were found to be another one.",
)

student_alias_history = Table(
    "student_alias_history",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("entry", BigInteger, Identity(), primary_key=True, comment="running number"),
    SqlColumn("alias_id", UUID(as_uuid=False), nullable=False, comment="the student id that was merged away"),
    SqlColumn("student_id", UUID(as_uuid=False), nullable=False, comment="the student it was meanwhile"),
    SqlColumn("since", TIMESTAMP(timezone=True), nullable=False, comment="since when"),
    SqlColumn(
        "until",
        TIMESTAMP(timezone=True),
        comment="until it was another one, or split off; null while it is that student",
    ),
    Index("ix_student_alias_history_alias_id", "alias_id"),
    Index("ix_student_alias_history_student_id", "student_id"),
    comment="Which student an id meant when; kept by a trigger on student_aliases.",
)

statewide_matching = Table(
    "statewide_matching",
    metadata,
    SqlColumn("version", Integer, primary_key=True, comment="rising from 1; the newest holds"),
    SqlColumn("enabled", Boolean, nullable=False, comment="whether students of several districts are compared"),
    SqlColumn("set_by", Text, nullable=False, comment="who set it"),
    SqlColumn("reason", Text, nullable=False, comment="why"),
    _stamp("set_at", "when it was set"),
    comment="Whether this installation looks for one child in several districts; without a row it does not.",
)

statewide_links = Table(
    "statewide_links",
    metadata,
    SqlColumn("district", Text, primary_key=True, comment="one district, the first of the two by name"),
    SqlColumn("student_id", UUID(as_uuid=False), primary_key=True, comment="the student there"),
    SqlColumn("other_district", Text, primary_key=True, comment="the other district"),
    SqlColumn("other_student_id", UUID(as_uuid=False), primary_key=True, comment="the student there"),
    SqlColumn("decision", Text, nullable=False, comment="match, or near_match where only the ssid agrees"),
    SqlColumn("evidence", Text, nullable=False, comment="names of what agrees; no values"),
    _stamp("found_at", "when it was found"),
    CheckConstraint("decision in ('match','near_match')", name="decision"),
    Index("ix_statewide_links_other_student_id", "other_student_id"),
    comment="Students of two districts with one ssid; follows what both have published.",
)

statewide_transfers = Table(
    "statewide_transfers",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district that was left, or entered first"),
    SqlColumn(
        "transfer_id",
        UUID(as_uuid=False),
        primary_key=True,
        comment="the pair; the same two enrollments always have it",
    ),
    SqlColumn("kind", Text, nullable=False, comment="transfer, or concurrent: the primary enrollment runs in both"),
    SqlColumn("student_id", UUID(as_uuid=False), nullable=False, comment="the student there"),
    SqlColumn("school_id", UUID(as_uuid=False), nullable=False, comment="the school there"),
    SqlColumn("school_year", Text, nullable=False, comment="school year of the enrollment there"),
    SqlColumn("exit_date", Date, comment="first day no longer enrolled there"),
    SqlColumn("other_district", Text, nullable=False, comment="the district that was entered"),
    SqlColumn("other_student_id", UUID(as_uuid=False), nullable=False, comment="the student there"),
    SqlColumn("other_school_id", UUID(as_uuid=False), nullable=False, comment="the school there"),
    SqlColumn("other_school_year", Text, nullable=False, comment="school year of the enrollment there"),
    SqlColumn("entry_date", Date, nullable=False, comment="first day there"),
    _stamp("found_at", "when it was found"),
    CheckConstraint("kind in ('transfer','concurrent')", name="kind"),
    Index("ix_statewide_transfers_student_id", "student_id"),
    Index("ix_statewide_transfers_other_student_id", "other_student_id"),
    comment="Who went from one district to another, and who is in two at once; follows what both have published.",
)

guard_settings = Table(
    "guard_settings",
    metadata,
    SqlColumn("district", Text, primary_key=True, comment="the district"),
    SqlColumn("version", Integer, primary_key=True, comment="rising from 1; the newest holds"),
    SqlColumn(
        "settings", JSONB, nullable=False, comment="district: name -> value; schools: school_id -> name -> value"
    ),
    SqlColumn("set_by", Text, nullable=False, comment="who set it"),
    SqlColumn("reason", Text, nullable=False, comment="why"),
    _stamp("set_at", "when it was set"),
    comment="A district's own thresholds of the guard; what is not set is as by default.",
)

survivorship_policies = Table(
    "survivorship_policies",
    metadata,
    SqlColumn("district", Text, primary_key=True, comment="the district"),
    SqlColumn("version", Integer, primary_key=True, comment="rising from 1; the newest holds"),
    SqlColumn("policies", JSONB, nullable=False, comment="attribute, or default -> policy"),
    SqlColumn("set_by", Text, nullable=False, comment="who set it"),
    SqlColumn("reason", Text, nullable=False, comment="why"),
    _stamp("set_at", "when it was set"),
    comment="Whose value of an attribute a district publishes; what is not set is as by default.",
)

account_rules = Table(
    "account_rules",
    metadata,
    SqlColumn("district", Text, primary_key=True, comment="the district"),
    SqlColumn("version", Integer, primary_key=True, comment="rising from 1; the newest holds"),
    SqlColumn("rules", JSONB, nullable=False, comment="setting, as student.username -> value"),
    SqlColumn("set_by", Text, nullable=False, comment="who set it"),
    SqlColumn("reason", Text, nullable=False, comment="why"),
    _stamp("set_at", "when it was set"),
    SqlColumn("followed_on", Date, comment="the last day on which the accounts were brought to what the roster says"),
    comment="How a district makes accounts; a district without a row has none.",
)

accounts = _roster_table(
    model.ACCOUNTS,
    _stamp("created_at", "when the account was made"),
    _stamp(),
    UniqueConstraint("district", "username"),
    Index("ix_accounts_person_id", "person_id"),
)

spent_usernames = Table(
    "spent_usernames",
    metadata,
    SqlColumn("district", Text, primary_key=True, comment="the district"),
    SqlColumn("mark", Integer, primary_key=True, comment="a number that one in 65,536 user names has"),
    comment="Marks of the user names of people who were erased: nobody else gets such a name.",
)

student_edits = Table(
    "student_edits",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn(
        "edit", BigInteger, Identity(), primary_key=True, comment="running number; the newest of an attribute counts"
    ),
    SqlColumn("student_id", UUID(as_uuid=False), nullable=False, comment="the student, by the id it had then"),
    SqlColumn("attribute", Text, nullable=False, comment="the attribute or block"),
    SqlColumn("base", JSONB, nullable=False, comment="column -> value before the edit"),
    SqlColumn("value", JSONB, nullable=False, comment="column -> value that was written"),
    SqlColumn("edited_by", Text, nullable=False, comment="the database user who wrote it"),
    _stamp("edited_at", "when it was written"),
    SqlColumn("settled_at", TIMESTAMP(timezone=True), comment="when the systems said the same; null while it counts"),
    Index("ix_student_edits_student_id", "district", "student_id", "attribute"),
    comment="What people wrote into students beside the pipeline; noted by a trigger, remembered whatever is published.",
)

student_names = Table(
    "student_names",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("entry", BigInteger, Identity(), primary_key=True, comment="running number"),
    SqlColumn("student_id", UUID(as_uuid=False), nullable=False, comment="the student, by the id it had then"),
    SqlColumn("first_name", Text, nullable=False, comment="legal first name that was published"),
    SqlColumn("last_name", Text, nullable=False, comment="legal last name that was published"),
    SqlColumn("until", TIMESTAMP(timezone=True), nullable=False, comment="when another name was published instead"),
    SqlColumn(
        "operation_id",
        UUID(as_uuid=False),
        comment="the operation that changed the name; null for an edit by SQL",
    ),
    Index("ix_student_names_student_id", "district", "student_id"),
    comment="What students were called before, noted by a trigger on students; by these names they are found again.",
)

table_writes = Table(
    "table_writes",
    metadata,
    SqlColumn("entry", BigInteger, Identity(), primary_key=True, comment="running number"),
    SqlColumn("table_name", Text, nullable=False, comment="the table"),
    SqlColumn("written_by", Text, nullable=False, comment="the database user who wrote"),
    _stamp("written_at", "when"),
    comment="Statements that wrote to a school year's tables beside the pipeline, noted by triggers; after one, merges "
    "read the tables themselves.",
)

conflict_decisions = Table(
    "conflict_decisions",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn(
        "decision",
        BigInteger,
        Identity(),
        primary_key=True,
        comment="running number; the newest of an attribute counts",
    ),
    SqlColumn("student_id", UUID(as_uuid=False), nullable=False, comment="the student, by the id it had then"),
    SqlColumn("attribute", Text, nullable=False, comment="the attribute or block"),
    SqlColumn("integration", Text, comment="whose value it is; null where a decision was taken back"),
    SqlColumn("sis_id", Text, comment="the record that holds it"),
    SqlColumn("seen", JSONB, nullable=False, comment="[integration, sis_id, value] of all; it holds until one changes"),
    SqlColumn("decided_by", Text, nullable=False, comment="who decided"),
    SqlColumn("reason", Text, nullable=False, comment="why"),
    _stamp("decided_at", "when it was decided"),
    Index("ix_conflict_decisions_student_id", "district", "student_id", "attribute"),
    comment="Which of several values people chose, append-only.",
)

withdrawals = Table(
    "withdrawals",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("withdrawal_id", UUID(as_uuid=False), primary_key=True, comment="the withdrawal"),
    SqlColumn("school_id", UUID(as_uuid=False), nullable=False, comment="the school"),
    SqlColumn("school_year", Text, nullable=False, comment="school year"),
    SqlColumn("effective_date", Date, nullable=False, comment="first day no longer enrolled"),
    SqlColumn("exit_code", Text, comment="exit code that the enrollments get"),
    SqlColumn("withdrawn_by", Text, nullable=False, comment="who withdrew them"),
    SqlColumn("reason", Text, nullable=False, comment="why"),
    _stamp("withdrawn_at", "when that was said"),
    SqlColumn("taken_back_by", Text, comment="who took it back; null while it stands"),
    SqlColumn("taken_back_at", TIMESTAMP(timezone=True), comment="when it was taken back"),
    Index("ix_withdrawals_standing", "district", "school_year", postgresql_where=text("taken_back_at is null")),
    comment="Bulk withdrawals: all who were enrolled at a school, ended by a person on a day.",
)

withdrawn_enrollments = Table(
    "withdrawn_enrollments",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("withdrawal_id", UUID(as_uuid=False), primary_key=True, comment="the withdrawal"),
    SqlColumn("student_id", UUID(as_uuid=False), primary_key=True, comment="the student, by the id it had then"),
    SqlColumn("entry_date", Date, primary_key=True, comment="first day of the enrollment, as it was then"),
    Index("ix_withdrawn_enrollments_student_id", "student_id"),
    comment="The enrollments of each withdrawal; inputs of every merge while it stands.",
)

school_declarations = Table(
    "school_declarations",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("declaration", BigInteger, Identity(), primary_key=True, comment="running number; a later one prevails"),
    SqlColumn("school_id", UUID(as_uuid=False), nullable=False, comment="the school"),
    SqlColumn("kind", Text, nullable=False, comment="close or open"),
    SqlColumn("effective", Date, nullable=False, comment="from which day on"),
    SqlColumn("declared_by", Text, nullable=False, comment="who declared it"),
    SqlColumn("reason", Text, nullable=False, comment="why"),
    _stamp("declared_at", "when it was declared"),
    CheckConstraint("kind in ('close','open')", name="kind"),
    Index("ix_school_declarations_district", "district"),
    comment="Schools that a person declared closed or new: their removals are expected.",
)

audit_log = Table(
    "audit_log",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district, or * for the whole installation"),
    SqlColumn("entry", BigInteger, Identity(), primary_key=True, comment="running number"),
    _stamp("at", "when it happened"),
    SqlColumn("actor", Text, nullable=False, comment="who did it"),
    SqlColumn("action", Text, nullable=False, comment="what was done"),
    SqlColumn("subject", Text, nullable=False, comment="to what: an integration, an operation, a hold"),
    SqlColumn("details", JSONB, nullable=False, server_default=text("'{}'"), comment="counts and ids; no values"),
    Index("ix_audit_log_chain", "district", "entry"),
    comment="Who did what, append-only.",
)

audit_links = Table(
    "audit_links",
    metadata,
    SqlColumn("district", Text, primary_key=True, comment="the district whose chain it is"),
    SqlColumn("link", BigInteger, primary_key=True, comment="position in the chain, from 1"),
    SqlColumn("entries", JSONB, nullable=False, comment="[entry, SHA-256 of the entry] of every row of the operation"),
    SqlColumn("previous", Text, nullable=False, comment="hash of the link before, empty for the first"),
    SqlColumn("hash", Text, nullable=False, comment="SHA-256 over district, link, previous hash and entries"),
    comment="The audit log's hash chains, one per district, with one link per operation.",
)

circuit_breakers = Table(
    "circuit_breakers",
    metadata,
    SqlColumn("breaker_key", Text, primary_key=True, comment="provider, origin and tenant path"),
    SqlColumn("state", Text, nullable=False, server_default=text("'closed'"), comment="closed, open, half_open"),
    SqlColumn("epoch", BigInteger, nullable=False, server_default=text("0"), comment="raised by every change of state"),
    SqlColumn("failures", Integer, nullable=False, server_default=text("0"), comment="failures in a row"),
    SqlColumn("window_start", TIMESTAMP(timezone=True), comment="when the counting of the last minute began"),
    SqlColumn("window_calls", Integer, nullable=False, server_default=text("0"), comment="calls in that minute"),
    SqlColumn("window_failures", Integer, nullable=False, server_default=text("0"), comment="failures in that minute"),
    SqlColumn("opened_at", TIMESTAMP(timezone=True), comment="when it opened"),
    SqlColumn("open_until", TIMESTAMP(timezone=True), comment="when one probe may be made"),
    SqlColumn("open_seconds", Double, comment="how long it stays open this time"),
    SqlColumn("probe_holder", Text, comment="host, process and start of who probes"),
    SqlColumn("probe_until", TIMESTAMP(timezone=True), comment="until when the probe may take"),
    SqlColumn("last_error", Text, comment="the failure that counted last, without values"),
    _stamp("changed_at", "when it was last written"),
    CheckConstraint("state in ('closed','open','half_open')", name="state"),
    comment="Which sources are left alone for a while, shared by all processes.",
)

rate_limits = Table(
    "rate_limits",
    metadata,
    SqlColumn("limit_key", Text, primary_key=True, comment="provider, origin and client, or the rate group"),
    SqlColumn(
        "next_free",
        TIMESTAMP(timezone=True),
        nullable=False,
        comment="when the next call may start, on the database clock",
    ),
    SqlColumn("granted", BigInteger, nullable=False, server_default=text("0"), comment="calls granted so far"),
    SqlColumn("per_minute", Double, comment="the rate last asked for"),
    SqlColumn("pushed_until", TIMESTAMP(timezone=True), comment="until when the source asked everybody to wait"),
    comment="When each source may be called next, shared by all processes.",
)

encryption_keys = Table(
    "encryption_keys",
    metadata,
    SqlColumn("key_id", Text, primary_key=True, comment="short hash of the key"),
    SqlColumn("canary", LargeBinary, nullable=False, comment="a known text sealed with the key, read at every start"),
    _stamp("created_at", "when the key was first used"),
    comment="Which keys seal the tokens, with a canary each.",
)

erasures = Table(
    "erasures",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("erasure_id", UUID(as_uuid=False), primary_key=True, comment="the erasure"),
    SqlColumn("student_id", UUID(as_uuid=False), nullable=False, comment="the student that was erased"),
    SqlColumn(
        "student_ids", JSONB, nullable=False, comment="every id the student had; emptied when the erasure is done"
    ),
    SqlColumn(
        "records",
        JSONB,
        nullable=False,
        comment="[integration, sis_id] to be erased from files; emptied when the erasure is done",
    ),
    SqlColumn("erased_by", Text, nullable=False, comment="who erased"),
    SqlColumn("reason", Text, nullable=False, comment="why"),
    _stamp("begun_at", "when the tables were emptied of the student"),
    SqlColumn("finished_at", TIMESTAMP(timezone=True), comment="when the files were, too"),
    Index("ix_erasures_district", "district", "begun_at"),
    comment="Students that were erased: who asked and when, and nothing of the student but the id we had given.",
)

disclosures = Table(
    "disclosures",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("disclosure", BigInteger, Identity(), primary_key=True, comment="running number"),
    _stamp("disclosed_at", "when it left"),
    SqlColumn("school_year", Text, nullable=False, comment="of which school year the roster is"),
    SqlColumn("epoch", Integer, nullable=False, comment="the published epoch it was taken from"),
    SqlColumn("form", Text, nullable=False, comment="format and version"),
    SqlColumn("destination", Text, nullable=False, comment="where it was written to"),
    SqlColumn("recipient", Text, comment="who receives it, as was said"),
    SqlColumn("reason", Text, comment="why, as was said"),
    SqlColumn("actor", Text, nullable=False, comment="who did it"),
    SqlColumn("series", UUID(as_uuid=False), nullable=False, comment="the same for every time it goes there"),
    SqlColumn("fields", JSONB, nullable=False, comment="file -> columns that hold anything"),
    SqlColumn("rows", JSONB, nullable=False, comment="rows by file"),
    SqlColumn("students", Integer, nullable=False, comment="how many students are in it"),
    Index("ix_disclosures_district", "district", "disclosed_at"),
    Index("ix_disclosures_series", "series"),
    comment="What left this installation: who received which kinds of fields when and why. No values.",
)

disclosed_students = Table(
    "disclosed_students",
    metadata,
    SqlColumn("district", Text, nullable=False, comment="the district"),
    SqlColumn("series", UUID(as_uuid=False), primary_key=True, comment="the series of disclosures"),
    SqlColumn("student_id", UUID(as_uuid=False), primary_key=True, comment="the student, by the id it had then"),
    SqlColumn("since", BigInteger, primary_key=True, comment="the first disclosure the student is in"),
    SqlColumn("until", BigInteger, comment="the first one after that without; null while there is none"),
    Index("ix_disclosed_students_student_id", "student_id"),
    comment="Who was in which disclosures: all of the series from `since` on and before `until`.",
)

erased_records = Table(
    "erased_records",
    metadata,
    SqlColumn("integration", Text, primary_key=True, comment="the integration that may deliver it"),
    SqlColumn("mark", Text, primary_key=True, comment="keyed hash of the record's id; the key is in the vault"),
    SqlColumn("erasure_id", UUID(as_uuid=False), nullable=False, comment="the erasure"),
    _stamp("kept_out_since", "since when it is kept out"),
    Index("ix_erased_records_erasure_id", "erasure_id"),
    comment="Records of erased students: what a system delivers of them is set aside, until a person lifts it.",
)
