"""The first schema: clock, roster tables and the pipeline's own tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

CLOCK = """
create function sis.clock() returns timestamptz language sql volatile parallel safe as $$
  select clock_timestamp() + coalesce(nullif(current_setting('sis.clock_offset', true), '')::interval, interval '0')
$$
"""


def upgrade() -> None:
    op.execute(CLOCK)
    op.create_table(
        "academic_sessions",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("session_id", sa.UUID(as_uuid=False), nullable=False, comment="the session's id"),
        sa.Column("title", sa.Text(), nullable=False, comment="session title"),
        sa.Column("kind", sa.Text(), nullable=False, comment="what kind of session this is"),
        sa.Column("start_date", sa.Date(), nullable=False, comment="first day"),
        sa.Column("end_date", sa.Date(), nullable=False, comment="first day after the session (exclusive)"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="the school year it belongs to, as 2025-2026"),
        sa.Column("school_id", sa.UUID(as_uuid=False), nullable=True, comment="the school"),
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration this session comes from"),
        sa.Column("sis_id", sa.Text(), nullable=False, comment="the session's id in that SIS"),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row was last written",
        ),
        sa.PrimaryKeyConstraint("district", "session_id", name=op.f("pk_academic_sessions")),
        schema="sis",
        comment="Academic sessions of every integration of a district.",
    )
    op.create_table(
        "api_calls",
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration"),
        sa.Column("call_id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="running number"),
        sa.Column(
            "at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the call ended",
        ),
        sa.Column("snapshot_id", sa.UUID(as_uuid=False), nullable=True, comment="the snapshot it was made for"),
        sa.Column("method", sa.Text(), nullable=False, comment="HTTP method"),
        sa.Column("template", sa.Text(), nullable=False, comment="path without ids or parameters"),
        sa.Column("status", sa.Integer(), nullable=True, comment="HTTP status; null where none came"),
        sa.Column("error_class", sa.Text(), nullable=True, comment="class of the error, null for success"),
        sa.Column("milliseconds", sa.Double(), nullable=False, comment="time taken"),
        sa.Column("bytes", sa.BigInteger(), nullable=False, comment="decoded bytes of the body"),
        sa.Column("attempt", sa.Integer(), nullable=False, comment="1 for the first"),
        sa.PrimaryKeyConstraint("call_id", name=op.f("pk_api_calls")),
        schema="sis",
        comment="Every call to a SIS, without parameters.",
    )
    op.create_index("ix_api_calls_integration", "api_calls", ["integration", "at"], unique=False, schema="sis")
    op.create_table(
        "audit_log",
        sa.Column("district", sa.Text(), nullable=False, comment="the district, or * for the whole installation"),
        sa.Column("entry", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="running number"),
        sa.Column(
            "at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when it happened",
        ),
        sa.Column("actor", sa.Text(), nullable=False, comment="who did it"),
        sa.Column("action", sa.Text(), nullable=False, comment="what was done"),
        sa.Column("subject", sa.Text(), nullable=False, comment="to what: an integration, an operation, a hold"),
        sa.Column(
            "details",
            postgresql.JSONB(),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="counts and ids; no values",
        ),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_audit_log")),
        schema="sis",
        comment="Who did what, append-only.",
    )
    op.create_index("ix_audit_log_district", "audit_log", ["district", "at"], unique=False, schema="sis")
    op.create_table(
        "conflicts",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year, as 2025-2026"),
        sa.Column("attribute", sa.Text(), nullable=False, comment="the attribute"),
        sa.Column(
            "candidates",
            postgresql.JSONB(),
            nullable=False,
            comment="the values and the records that hold them: [{integration, sis_id, value, modified_at}]",
        ),
        sa.Column("chosen", sa.Text(), nullable=True, comment="the published value, as text"),
        sa.Column("chosen_from", sa.Text(), nullable=True, comment="integration/sis_id of the chosen value"),
        sa.Column("rule", sa.Text(), nullable=False, comment="the rule that chose"),
        sa.Column("status", sa.Text(), nullable=False, comment="open, auto, resolved or stale"),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row was last written",
        ),
        sa.PrimaryKeyConstraint("district", "student_id", "school_year", "attribute", name=op.f("pk_conflicts")),
        schema="sis",
        comment="Attributes on which the systems disagree, what was chosen and by which rule.",
    )
    op.create_table(
        "courses",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("course_id", sa.UUID(as_uuid=False), nullable=False, comment="the course's id"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year, as 2025-2026"),
        sa.Column("title", sa.Text(), nullable=False, comment="course title"),
        sa.Column("course_code", sa.Text(), nullable=True, comment="course number or code"),
        sa.Column("grade_levels", postgresql.JSONB(), nullable=True, comment="grade levels, CEDS codes"),
        sa.Column("subjects", postgresql.JSONB(), nullable=True, comment="subjects"),
        sa.Column("subject_codes", postgresql.JSONB(), nullable=True, comment="subject codes (SCED)"),
        sa.Column("school_id", sa.UUID(as_uuid=False), nullable=True, comment="the school"),
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration this course comes from"),
        sa.Column("sis_id", sa.Text(), nullable=False, comment="the course's id in that SIS"),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row was last written",
        ),
        sa.PrimaryKeyConstraint("district", "course_id", "school_year", name=op.f("pk_courses")),
        schema="sis",
        comment="Courses of every integration of a district in a school year.",
    )
    op.create_table(
        "encryption_keys",
        sa.Column("key_id", sa.Text(), nullable=False, comment="short hash of the key"),
        sa.Column(
            "canary", sa.LargeBinary(), nullable=False, comment="a known text sealed with the key, read at every start"
        ),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the key was first used",
        ),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_encryption_keys")),
        schema="sis",
        comment="Which keys seal the tokens, with a canary each.",
    )
    op.create_table(
        "enrollment_changes",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column(
            "change_id",
            sa.UUID(as_uuid=False),
            nullable=False,
            comment="the event's id; the same event seen on the same day always has the same one",
        ),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year, as 2025-2026"),
        sa.Column("kind", sa.Text(), nullable=False, comment="what happened"),
        sa.Column("effective_date", sa.Date(), nullable=True, comment="the day it takes effect"),
        sa.Column("school_id", sa.UUID(as_uuid=False), nullable=True, comment="the school (the new one of a transfer)"),
        sa.Column("section_id", sa.UUID(as_uuid=False), nullable=True, comment="the section, for section events"),
        sa.Column("before", postgresql.JSONB(), nullable=True, comment="what held before"),
        sa.Column("after", postgresql.JSONB(), nullable=True, comment="what holds now"),
        sa.Column(
            "evidence",
            sa.Text(),
            nullable=False,
            comment="what shows it: first_load, new_record, explicit_exit, absence, tombstone, field_change",
        ),
        sa.Column("integration", sa.Text(), nullable=True, comment="the integration that showed it"),
        sa.Column(
            "operation_id", sa.UUID(as_uuid=False), nullable=False, comment="the sync operation that detected it"
        ),
        sa.Column(
            "detected_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the event was detected",
        ),
        sa.PrimaryKeyConstraint("district", "change_id", name=op.f("pk_enrollment_changes")),
        schema="sis",
        comment="The ledger: who enrolled, left, transferred or changed. Append-only.",
    )
    op.create_index(
        "ix_enrollment_changes_detected_at",
        "enrollment_changes",
        ["district", "detected_at"],
        unique=False,
        schema="sis",
    )
    op.create_index(
        "ix_enrollment_changes_student_id", "enrollment_changes", ["student_id"], unique=False, schema="sis"
    )
    op.create_table(
        "enrollments",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student"),
        sa.Column("school_id", sa.UUID(as_uuid=False), nullable=False, comment="the school"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year, as 2025-2026"),
        sa.Column("entry_date", sa.Date(), nullable=False, comment="first day enrolled"),
        sa.Column("entry_date_source", sa.Text(), nullable=False, comment="where the entry date comes from"),
        sa.Column("entry_code", sa.Text(), nullable=True, comment="entry code, as the SIS writes it"),
        sa.Column(
            "exit_date",
            sa.Date(),
            nullable=True,
            comment="first day no longer enrolled (exclusive); null while enrolled",
        ),
        sa.Column("exit_code", sa.Text(), nullable=True, comment="exit code, as the SIS writes it"),
        sa.Column("grade_level", sa.Text(), nullable=True, comment="grade level, CEDS code"),
        sa.Column("fte", sa.Double(), nullable=True, comment="full-time equivalency, 0 to 1"),
        sa.Column("enrollment_type", sa.Text(), nullable=False, comment="primary, or secondary for a co-enrollment"),
        sa.Column("status", sa.Text(), nullable=False, comment="status of the enrollment"),
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration this enrollment comes from"),
        sa.Column("sis_id", sa.Text(), nullable=False, comment="the enrollment's id in that SIS"),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row was last written",
        ),
        sa.PrimaryKeyConstraint(
            "district", "student_id", "school_id", "school_year", "entry_date", name=op.f("pk_enrollments")
        ),
        schema="sis",
        comment="School enrollments: one student at one school in one school year from one entry date.",
    )
    op.create_index(
        "ix_enrollments_school_year", "enrollments", ["district", "school_year"], unique=False, schema="sis"
    )
    op.create_table(
        "holds",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("hold_id", sa.UUID(as_uuid=False), nullable=False, comment="the hold"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year"),
        sa.Column("fingerprint", sa.Text(), nullable=False, comment="hash of the removals it holds"),
        sa.Column("reason", sa.Text(), nullable=False, comment="which limit was exceeded, in words"),
        sa.Column("removals", postgresql.JSONB(), nullable=False, comment="per kind and school: how many"),
        sa.Column("rows", postgresql.JSONB(), nullable=False, comment="the ids of what is held"),
        sa.Column(
            "status",
            sa.Text(),
            server_default=sa.text("'open'"),
            nullable=False,
            comment="open, released, discarded, applied",
        ),
        sa.Column("decided_by", sa.Text(), nullable=True, comment="who decided"),
        sa.Column("decided_reason", sa.Text(), nullable=True, comment="why"),
        sa.Column("operation_id", sa.UUID(as_uuid=False), nullable=False, comment="the operation that raised it"),
        sa.Column(
            "opened_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when it was raised",
        ),
        sa.Column("decided_at", postgresql.TIMESTAMP(timezone=True), nullable=True, comment="when it was decided"),
        sa.CheckConstraint("status in ('open','released','discarded','applied')", name=op.f("ck_holds_status")),
        sa.PrimaryKeyConstraint("hold_id", name=op.f("pk_holds")),
        sa.UniqueConstraint(
            "district", "school_year", "fingerprint", name=op.f("uq_holds_district_school_year_fingerprint")
        ),
        schema="sis",
        comment="Removals that wait for a person.",
    )
    op.create_table(
        "integrations",
        sa.Column("key", sa.Text(), nullable=False, comment="the integration's slug, unique across providers"),
        sa.Column("provider", sa.Text(), nullable=False, comment="registered provider name"),
        sa.Column(
            "district",
            sa.Text(),
            nullable=False,
            comment="the district its organisations belong to unless mapped otherwise",
        ),
        sa.Column(
            "organisations",
            postgresql.JSONB(),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="organisation sis_id -> district, for consortia and shared centres",
        ),
        sa.Column(
            "settings",
            postgresql.JSONB(),
            nullable=False,
            comment="the provider's validated settings; never a secret",
        ),
        sa.Column(
            "priority",
            sa.Integer(),
            server_default=sa.text("100"),
            nullable=False,
            comment="survivorship order, lower first",
        ),
        sa.Column(
            "status",
            sa.Text(),
            server_default=sa.text("'healthy'"),
            nullable=False,
            comment="healthy, degraded, needs_reauth, failing, paused",
        ),
        sa.Column("status_reason", sa.Text(), nullable=True, comment="why, in words"),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when it was added",
        ),
        sa.Column(
            "updated_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when its settings last changed",
        ),
        sa.CheckConstraint("key ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name=op.f("ck_integrations_key")),
        sa.CheckConstraint(
            "status in ('healthy','degraded','needs_reauth','failing','paused')", name=op.f("ck_integrations_status")
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_integrations")),
        schema="sis",
        comment="Connections to student information systems.",
    )
    op.create_table(
        "oauth_tokens",
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration"),
        sa.Column("kind", sa.Text(), nullable=False, comment="client_secret, access or refresh"),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False, comment="MultiFernet ciphertext, bound to this row"),
        sa.Column("key_id", sa.Text(), nullable=False, comment="which encryption key sealed it"),
        sa.Column("version", sa.Integer(), nullable=False, comment="raised by every write"),
        sa.Column(
            "expires_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="on the database clock; null where it does not expire",
        ),
        sa.Column(
            "lifetime_seconds", sa.Integer(), nullable=True, comment="lifetime the server gave, for the refresh window"
        ),
        sa.Column(
            "status",
            sa.Text(),
            server_default=sa.text("'active'"),
            nullable=False,
            comment="active, refreshing, needs_reauth, revocation_pending, revoked",
        ),
        sa.Column(
            "updated_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when it was last written",
        ),
        sa.PrimaryKeyConstraint("integration", "kind", name=op.f("pk_oauth_tokens")),
        schema="sis",
        comment="Secrets and tokens, encrypted.",
    )
    op.create_table(
        "quarantine",
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration"),
        sa.Column(
            "snapshot_id",
            sa.UUID(as_uuid=False),
            nullable=False,
            comment="the snapshot; the whole row is kept beside it",
        ),
        sa.Column("entity", sa.Text(), nullable=False, comment="entity"),
        sa.Column("row", sa.Integer(), nullable=False, comment="row number in the entity's standard frame"),
        sa.Column("column", sa.Text(), nullable=False, comment="offending column"),
        sa.Column("reason", sa.Text(), nullable=False, comment="what is wrong, without the value"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year"),
        sa.Column("sis_id", sa.Text(), nullable=True, comment="the record's id in its SIS"),
        sa.PrimaryKeyConstraint(
            "integration", "snapshot_id", "entity", "row", "column", "reason", name=op.f("pk_quarantine")
        ),
        schema="sis",
        comment="Rows set aside with their reason: counted, kept, never merged.",
    )
    op.create_table(
        "rate_limits",
        sa.Column("limit_key", sa.Text(), nullable=False, comment="provider, origin and client, or the rate group"),
        sa.Column(
            "next_free",
            postgresql.TIMESTAMP(timezone=True),
            nullable=False,
            comment="when the next call may start, on the database clock",
        ),
        sa.Column(
            "granted", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="calls granted so far"
        ),
        sa.PrimaryKeyConstraint("limit_key", name=op.f("pk_rate_limits")),
        schema="sis",
        comment="When each source may be called next, shared by all processes.",
    )
    op.create_table(
        "schools",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("school_id", sa.UUID(as_uuid=False), nullable=False, comment="the school's permanent id"),
        sa.Column("name", sa.Text(), nullable=False, comment="school name"),
        sa.Column(
            "school_number",
            sa.Text(),
            nullable=True,
            comment="the number the district gave the school; equal numbers in one district are one school",
        ),
        sa.Column("state_school_id", sa.Text(), nullable=True, comment="the id the state gave the school"),
        sa.Column("nces_id", sa.Text(), nullable=True, comment="the federal (NCES) school id"),
        sa.Column("kind", sa.Text(), nullable=False, comment="what kind of organisation this is"),
        sa.Column("low_grade", sa.Text(), nullable=True, comment="lowest grade level taught"),
        sa.Column("high_grade", sa.Text(), nullable=True, comment="highest grade level taught"),
        sa.Column("street", sa.Text(), nullable=True, comment="street address"),
        sa.Column("city", sa.Text(), nullable=True, comment="city"),
        sa.Column("state", sa.Text(), nullable=True, comment="state or province"),
        sa.Column("postal_code", sa.Text(), nullable=True, comment="postal code, as text"),
        sa.Column("phone", sa.Text(), nullable=True, comment="main phone"),
        sa.Column("principal_name", sa.Text(), nullable=True, comment="principal's name"),
        sa.Column("principal_email", sa.Text(), nullable=True, comment="principal's email"),
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration this school comes from"),
        sa.Column("sis_id", sa.Text(), nullable=False, comment="the school's id in that SIS"),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row was last written",
        ),
        sa.PrimaryKeyConstraint("district", "school_id", name=op.f("pk_schools")),
        schema="sis",
        comment="Schools of a district, one row whatever the number of systems.",
    )
    op.create_table(
        "section_enrollments",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("section_id", sa.UUID(as_uuid=False), nullable=False, comment="the section"),
        sa.Column("person_id", sa.UUID(as_uuid=False), nullable=False, comment="the student or staff member"),
        sa.Column("role", sa.Text(), nullable=False, comment="student, teacher or another role"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year, as 2025-2026"),
        sa.Column("is_primary", sa.Boolean(), nullable=True, comment="true for the teacher of record"),
        sa.Column("begin_date", sa.Date(), nullable=True, comment="first day in the section"),
        sa.Column("end_date", sa.Date(), nullable=True, comment="first day no longer in the section (exclusive)"),
        sa.Column(
            "integration", sa.Text(), nullable=False, comment="the integration this section enrollment comes from"
        ),
        sa.Column("sis_id", sa.Text(), nullable=False, comment="the section enrollment's id in that SIS"),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row was last written",
        ),
        sa.PrimaryKeyConstraint(
            "district", "section_id", "person_id", "role", "school_year", name=op.f("pk_section_enrollments")
        ),
        schema="sis",
        comment="Who sits in, or teaches, a section.",
    )
    op.create_index(
        "ix_section_enrollments_person_id", "section_enrollments", ["person_id"], unique=False, schema="sis"
    )
    op.create_index(
        "ix_section_enrollments_school_year",
        "section_enrollments",
        ["district", "school_year"],
        unique=False,
        schema="sis",
    )
    op.create_table(
        "sections",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("section_id", sa.UUID(as_uuid=False), nullable=False, comment="the section's id"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year, as 2025-2026"),
        sa.Column("title", sa.Text(), nullable=True, comment="section title"),
        sa.Column("section_code", sa.Text(), nullable=True, comment="section number or class code"),
        sa.Column("kind", sa.Text(), nullable=False, comment="homeroom or scheduled"),
        sa.Column("location", sa.Text(), nullable=True, comment="room"),
        sa.Column("periods", postgresql.JSONB(), nullable=True, comment="periods"),
        sa.Column("grade_levels", postgresql.JSONB(), nullable=True, comment="grade levels, CEDS codes"),
        sa.Column("subjects", postgresql.JSONB(), nullable=True, comment="subjects"),
        sa.Column("school_id", sa.UUID(as_uuid=False), nullable=False, comment="the school"),
        sa.Column("course_id", sa.UUID(as_uuid=False), nullable=True, comment="the course"),
        sa.Column("teacher_id", sa.UUID(as_uuid=False), nullable=True, comment="the teacher of record"),
        sa.Column("start_date", sa.Date(), nullable=True, comment="first day of its first session"),
        sa.Column("end_date", sa.Date(), nullable=True, comment="first day after its last session (exclusive)"),
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration this section comes from"),
        sa.Column("sis_id", sa.Text(), nullable=False, comment="the section's id in that SIS"),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row was last written",
        ),
        sa.PrimaryKeyConstraint("district", "section_id", "school_year", name=op.f("pk_sections")),
        schema="sis",
        comment="Sections of every integration of a district in a school year.",
    )
    op.create_table(
        "snapshots",
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year"),
        sa.Column("snapshot_id", sa.UUID(as_uuid=False), nullable=False, comment="the snapshot"),
        sa.Column("provider", sa.Text(), nullable=False, comment="provider name"),
        sa.Column("path", sa.Text(), nullable=False, comment="its folder below SIS_DATA_DIR"),
        sa.Column(
            "completeness",
            sa.Text(),
            nullable=True,
            comment="what the reading proved: complete, partial, delta; null while reading",
        ),
        sa.Column(
            "verdict",
            sa.Text(),
            server_default=sa.text("'pending'"),
            nullable=False,
            comment="pending, complete, partial, delta, or rejected; only complete, partial and delta are merged",
        ),
        sa.Column(
            "evidence",
            postgresql.JSONB(),
            nullable=True,
            comment="per resource: pages, rows, totals, how the end was proven",
        ),
        sa.Column("content_hash", sa.Text(), nullable=True, comment="hash of all pages, in order"),
        sa.Column(
            "roster_hash", sa.Text(), nullable=True, comment="hash of the standard frames; equal hashes need no merge"
        ),
        sa.Column("rows", postgresql.JSONB(), nullable=True, comment="good rows per entity"),
        sa.Column("quarantined", postgresql.JSONB(), nullable=True, comment="quarantined rows per entity"),
        sa.Column("api_calls", sa.Integer(), nullable=True, comment="calls made, token calls included"),
        sa.Column("bytes", sa.BigInteger(), nullable=True, comment="decoded bytes read"),
        sa.Column("seconds", sa.Double(), nullable=True, comment="seconds the reading took"),
        sa.Column("run_id", sa.Text(), nullable=True, comment="Dagster run"),
        sa.Column(
            "started_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the reading started",
        ),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True, comment="when the reading ended"),
        sa.CheckConstraint(
            "verdict in ('pending','complete','partial','delta','rejected')", name=op.f("ck_snapshots_verdict")
        ),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("pk_snapshots")),
        schema="sis",
        comment="What was read from each integration, and what it proves.",
    )
    op.create_index(
        "ix_snapshots_latest", "snapshots", ["integration", "school_year", "started_at"], unique=False, schema="sis"
    )
    op.create_table(
        "staff",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("staff_id", sa.UUID(as_uuid=False), nullable=False, comment="the staff member's permanent id"),
        sa.Column("state_staff_id", sa.Text(), nullable=True, comment="id issued by the state"),
        sa.Column("local_id", sa.Text(), nullable=True, comment="local staff or teacher number"),
        sa.Column("first_name", sa.Text(), nullable=False, comment="first name"),
        sa.Column("middle_name", sa.Text(), nullable=True, comment="middle name"),
        sa.Column("last_name", sa.Text(), nullable=False, comment="last name"),
        sa.Column("preferred_first_name", sa.Text(), nullable=True, comment="preferred first name"),
        sa.Column("username", sa.Text(), nullable=True, comment="user name in the SIS"),
        sa.Column("email", sa.Text(), nullable=True, comment="email"),
        sa.Column("phone", sa.Text(), nullable=True, comment="phone"),
        sa.Column("role", sa.Text(), nullable=False, comment="main role"),
        sa.Column("school_id", sa.UUID(as_uuid=False), nullable=True, comment="main school"),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row was last written",
        ),
        sa.PrimaryKeyConstraint("district", "staff_id", name=op.f("pk_staff")),
        schema="sis",
        comment="One record per staff member of a district.",
    )
    op.create_table(
        "staff_links",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration"),
        sa.Column("sis_id", sa.Text(), nullable=False, comment="the staff record's id in that SIS"),
        sa.Column("staff_id", sa.UUID(as_uuid=False), nullable=False, comment="the staff member"),
        sa.Column("rule", sa.Text(), nullable=False, comment="the rule that matched the record"),
        sa.Column("active", sa.Boolean(), nullable=False, comment="false when the record is no longer delivered"),
        sa.Column(
            "first_seen",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the record was first delivered",
        ),
        sa.Column(
            "last_seen",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row last changed or was last confirmed by a changed delivery",
        ),
        sa.PrimaryKeyConstraint("district", "integration", "sis_id", name=op.f("pk_staff_links")),
        schema="sis",
        comment="Which SIS records are which staff member, and why.",
    )
    op.create_table(
        "student_links",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration"),
        sa.Column("sis_id", sa.Text(), nullable=False, comment="the student record's id in that SIS"),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student"),
        sa.Column("rule", sa.Text(), nullable=False, comment="the rule that matched the record, `new` for the first"),
        sa.Column("confidence", sa.Double(), nullable=False, comment="1 for exact rules, below 1 for near matches"),
        sa.Column("active", sa.Boolean(), nullable=False, comment="false when the record is no longer delivered"),
        sa.Column(
            "first_seen",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the record was first delivered",
        ),
        sa.Column(
            "last_seen",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row last changed or was last confirmed by a changed delivery",
        ),
        sa.PrimaryKeyConstraint("district", "integration", "sis_id", name=op.f("pk_student_links")),
        schema="sis",
        comment="Which SIS records are which student, and why.",
    )
    op.create_index("ix_student_links_student_id", "student_links", ["student_id"], unique=False, schema="sis")
    op.create_table(
        "student_sources",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration"),
        sa.Column("sis_id", sa.Text(), nullable=False, comment="the student record's id in that SIS"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year, as 2025-2026"),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student"),
        sa.Column("ssid", sa.Text(), nullable=True, comment="state student id"),
        sa.Column("ssid_issuer", sa.Text(), nullable=True, comment="the state that issued the ssid"),
        sa.Column("local_id", sa.Text(), nullable=True, comment="local student number"),
        sa.Column("local_id_issuer", sa.Text(), nullable=True, comment="the district that issued the local id"),
        sa.Column("first_name", sa.Text(), nullable=True, comment="legal first name"),
        sa.Column("middle_name", sa.Text(), nullable=True, comment="legal middle name"),
        sa.Column("last_name", sa.Text(), nullable=True, comment="legal last name"),
        sa.Column("name_suffix", sa.Text(), nullable=True, comment="Jr., III and the like"),
        sa.Column(
            "preferred_first_name",
            sa.Text(),
            nullable=True,
            comment="preferred first name; never overwrites the legal one",
        ),
        sa.Column("preferred_middle_name", sa.Text(), nullable=True, comment="preferred middle name"),
        sa.Column("preferred_last_name", sa.Text(), nullable=True, comment="preferred last name"),
        sa.Column("pronouns", sa.Text(), nullable=True, comment="pronouns, as the SIS has them"),
        sa.Column("birth_date", sa.Date(), nullable=True, comment="birth date"),
        sa.Column("sex", sa.Text(), nullable=True, comment="sex as recorded"),
        sa.Column("username", sa.Text(), nullable=True, comment="user name in the SIS"),
        sa.Column("email", sa.Text(), nullable=True, comment="student's email"),
        sa.Column("phone", sa.Text(), nullable=True, comment="main phone"),
        sa.Column("mobile_phone", sa.Text(), nullable=True, comment="phone that takes text messages"),
        sa.Column("home_street", sa.Text(), nullable=True, comment="home address: street lines"),
        sa.Column("home_city", sa.Text(), nullable=True, comment="home address: city"),
        sa.Column("home_state", sa.Text(), nullable=True, comment="home address: state or province"),
        sa.Column("home_postal_code", sa.Text(), nullable=True, comment="home address: postal code, as text"),
        sa.Column("mailing_street", sa.Text(), nullable=True, comment="mailing address: street lines"),
        sa.Column("mailing_city", sa.Text(), nullable=True, comment="mailing address: city"),
        sa.Column("mailing_state", sa.Text(), nullable=True, comment="mailing address: state or province"),
        sa.Column("mailing_postal_code", sa.Text(), nullable=True, comment="mailing address: postal code, as text"),
        sa.Column("hispanic_or_latino", sa.Boolean(), nullable=True, comment="federal ethnicity flag"),
        sa.Column("american_indian_or_alaska_native", sa.Boolean(), nullable=True, comment="federal race flag"),
        sa.Column("asian", sa.Boolean(), nullable=True, comment="federal race flag"),
        sa.Column("black_or_african_american", sa.Boolean(), nullable=True, comment="federal race flag"),
        sa.Column(
            "native_hawaiian_or_other_pacific_islander", sa.Boolean(), nullable=True, comment="federal race flag"
        ),
        sa.Column("white", sa.Boolean(), nullable=True, comment="federal race flag"),
        sa.Column("graduation_year", sa.Integer(), nullable=True, comment="projected year of graduation"),
        sa.Column("district_entry_date", sa.Date(), nullable=True, comment="first entry to the district"),
        sa.Column(
            "directory_opt_out", sa.Boolean(), nullable=True, comment="true if the family refused directory information"
        ),
        sa.Column("address_confidential", sa.Boolean(), nullable=True, comment="true if the address is protected"),
        sa.Column("grade_level", sa.Text(), nullable=True, comment="grade level, CEDS code"),
        sa.Column("grade_level_source", sa.Text(), nullable=True, comment="grade level as the SIS writes it"),
        sa.Column("school_sis_id", sa.Text(), nullable=True, comment="the student's (primary) school in the year"),
        sa.Column("homeroom", sa.Text(), nullable=True, comment="homeroom"),
        sa.Column("enrollment_status", sa.Text(), nullable=True, comment="status in the year"),
        sa.Column("fte", sa.Double(), nullable=True, comment="full-time equivalency, 0 to 1"),
        sa.Column(
            "modified_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="when the SIS says the record last changed, UTC",
        ),
        sa.Column(
            "snapshot_id", sa.UUID(as_uuid=False), nullable=False, comment="the snapshot that first held these values"
        ),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row was last written",
        ),
        sa.PrimaryKeyConstraint("district", "integration", "sis_id", "school_year", name=op.f("pk_student_sources")),
        schema="sis",
        comment="The latest value of every attribute per contributing SIS record.",
    )
    op.create_index("ix_student_sources_student_id", "student_sources", ["student_id"], unique=False, schema="sis")
    op.create_table(
        "student_years",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year, as 2025-2026"),
        sa.Column("grade_level", sa.Text(), nullable=True, comment="grade level, CEDS code"),
        sa.Column("grade_level_source", sa.Text(), nullable=True, comment="grade level as the SIS writes it"),
        sa.Column("homeroom", sa.Text(), nullable=True, comment="homeroom"),
        sa.Column("enrollment_status", sa.Text(), nullable=True, comment="status in the year"),
        sa.Column("fte", sa.Double(), nullable=True, comment="full-time equivalency, 0 to 1"),
        sa.Column("school_id", sa.UUID(as_uuid=False), nullable=True, comment="the school of the primary enrollment"),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row was last written",
        ),
        sa.PrimaryKeyConstraint("district", "student_id", "school_year", name=op.f("pk_student_years")),
        schema="sis",
        comment="What holds for a student in one school year.",
    )
    op.create_index(
        "ix_student_years_school_year", "student_years", ["district", "school_year"], unique=False, schema="sis"
    )
    op.create_table(
        "students",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student's permanent id"),
        sa.Column("ssid", sa.Text(), nullable=True, comment="state student id"),
        sa.Column("ssid_issuer", sa.Text(), nullable=True, comment="the state that issued the ssid"),
        sa.Column("local_id", sa.Text(), nullable=True, comment="local student number"),
        sa.Column("local_id_issuer", sa.Text(), nullable=True, comment="the district that issued the local id"),
        sa.Column("first_name", sa.Text(), nullable=False, comment="legal first name"),
        sa.Column("middle_name", sa.Text(), nullable=True, comment="legal middle name"),
        sa.Column("last_name", sa.Text(), nullable=False, comment="legal last name"),
        sa.Column("name_suffix", sa.Text(), nullable=True, comment="Jr., III and the like"),
        sa.Column(
            "preferred_first_name",
            sa.Text(),
            nullable=True,
            comment="preferred first name; never overwrites the legal one",
        ),
        sa.Column("preferred_middle_name", sa.Text(), nullable=True, comment="preferred middle name"),
        sa.Column("preferred_last_name", sa.Text(), nullable=True, comment="preferred last name"),
        sa.Column("pronouns", sa.Text(), nullable=True, comment="pronouns, as the SIS has them"),
        sa.Column("birth_date", sa.Date(), nullable=True, comment="birth date"),
        sa.Column("sex", sa.Text(), nullable=True, comment="sex as recorded"),
        sa.Column("username", sa.Text(), nullable=True, comment="user name in the SIS"),
        sa.Column("email", sa.Text(), nullable=True, comment="student's email"),
        sa.Column("phone", sa.Text(), nullable=True, comment="main phone"),
        sa.Column("mobile_phone", sa.Text(), nullable=True, comment="phone that takes text messages"),
        sa.Column("home_street", sa.Text(), nullable=True, comment="home address: street lines"),
        sa.Column("home_city", sa.Text(), nullable=True, comment="home address: city"),
        sa.Column("home_state", sa.Text(), nullable=True, comment="home address: state or province"),
        sa.Column("home_postal_code", sa.Text(), nullable=True, comment="home address: postal code, as text"),
        sa.Column("mailing_street", sa.Text(), nullable=True, comment="mailing address: street lines"),
        sa.Column("mailing_city", sa.Text(), nullable=True, comment="mailing address: city"),
        sa.Column("mailing_state", sa.Text(), nullable=True, comment="mailing address: state or province"),
        sa.Column("mailing_postal_code", sa.Text(), nullable=True, comment="mailing address: postal code, as text"),
        sa.Column("hispanic_or_latino", sa.Boolean(), nullable=True, comment="federal ethnicity flag"),
        sa.Column("american_indian_or_alaska_native", sa.Boolean(), nullable=True, comment="federal race flag"),
        sa.Column("asian", sa.Boolean(), nullable=True, comment="federal race flag"),
        sa.Column("black_or_african_american", sa.Boolean(), nullable=True, comment="federal race flag"),
        sa.Column(
            "native_hawaiian_or_other_pacific_islander", sa.Boolean(), nullable=True, comment="federal race flag"
        ),
        sa.Column("white", sa.Boolean(), nullable=True, comment="federal race flag"),
        sa.Column("graduation_year", sa.Integer(), nullable=True, comment="projected year of graduation"),
        sa.Column("district_entry_date", sa.Date(), nullable=True, comment="first entry to the district"),
        sa.Column(
            "directory_opt_out", sa.Boolean(), nullable=True, comment="true if the family refused directory information"
        ),
        sa.Column("address_confidential", sa.Boolean(), nullable=True, comment="true if the address is protected"),
        sa.Column(
            "latest_school_year",
            sa.Text(),
            nullable=False,
            comment="the latest school year with a record; it owns the person's attributes",
        ),
        sa.Column(
            "near_match",
            sa.Boolean(),
            nullable=False,
            comment="true while a possible same person waits for review; no account is made",
        ),
        sa.Column(
            "origins",
            postgresql.JSONB(),
            nullable=False,
            comment='where each value comes from: {"*": "integration/sis_id", attribute: "integration/sis_id rule"}',
        ),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the row was last written",
        ),
        sa.PrimaryKeyConstraint("district", "student_id", name=op.f("pk_students")),
        schema="sis",
        comment="One trusted record per student of a district: the person, whatever the year.",
    )
    op.create_index("ix_students_local_id", "students", ["district", "local_id"], unique=False, schema="sis")
    op.create_index("ix_students_ssid", "students", ["district", "ssid"], unique=False, schema="sis")
    op.create_table(
        "sync_operations",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year"),
        sa.Column("operation_id", sa.UUID(as_uuid=False), nullable=False, comment="the operation"),
        sa.Column("epoch", sa.Integer(), nullable=False, comment="fencing number, rising per district and school year"),
        sa.Column("base_epoch", sa.Integer(), nullable=False, comment="the published epoch the merge started from"),
        sa.Column("status", sa.Text(), nullable=False, comment="merging, merged, published, superseded, failed"),
        sa.Column(
            "published_before",
            postgresql.JSONB(),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="school year -> published epoch of the district, as the merge found them",
        ),
        sa.Column("fingerprint", sa.Text(), nullable=False, comment="hash of the snapshots it was made from"),
        sa.Column(
            "inputs",
            postgresql.JSONB(),
            nullable=False,
            comment="per integration: snapshot, verdict, age",
        ),
        sa.Column(
            "summary",
            postgresql.JSONB(),
            nullable=True,
            comment="students, matched, conflicts, changes by kind, applied, held",
        ),
        sa.Column("path", sa.Text(), nullable=True, comment="folder of the merged frames below SIS_DATA_DIR"),
        sa.Column("run_id", sa.Text(), nullable=True, comment="Dagster run"),
        sa.Column(
            "started_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when it started",
        ),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True, comment="when it was published"),
        sa.CheckConstraint(
            "status in ('merging','merged','published','superseded','failed')", name=op.f("ck_sync_operations_status")
        ),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("pk_sync_operations")),
        sa.UniqueConstraint(
            "district", "school_year", "epoch", name=op.f("uq_sync_operations_district_school_year_epoch")
        ),
        schema="sis",
        comment="Every merge of a district and school year, and what it did.",
    )


def downgrade() -> None:
    op.drop_table("sync_operations", schema="sis")
    op.drop_index("ix_students_ssid", table_name="students", schema="sis")
    op.drop_index("ix_students_local_id", table_name="students", schema="sis")
    op.drop_table("students", schema="sis")
    op.drop_index("ix_student_years_school_year", table_name="student_years", schema="sis")
    op.drop_table("student_years", schema="sis")
    op.drop_index("ix_student_sources_student_id", table_name="student_sources", schema="sis")
    op.drop_table("student_sources", schema="sis")
    op.drop_index("ix_student_links_student_id", table_name="student_links", schema="sis")
    op.drop_table("student_links", schema="sis")
    op.drop_table("staff_links", schema="sis")
    op.drop_table("staff", schema="sis")
    op.drop_index("ix_snapshots_latest", table_name="snapshots", schema="sis")
    op.drop_table("snapshots", schema="sis")
    op.drop_table("sections", schema="sis")
    op.drop_index("ix_section_enrollments_school_year", table_name="section_enrollments", schema="sis")
    op.drop_index("ix_section_enrollments_person_id", table_name="section_enrollments", schema="sis")
    op.drop_table("section_enrollments", schema="sis")
    op.drop_table("schools", schema="sis")
    op.drop_table("rate_limits", schema="sis")
    op.drop_table("quarantine", schema="sis")
    op.drop_table("oauth_tokens", schema="sis")
    op.drop_table("integrations", schema="sis")
    op.drop_table("holds", schema="sis")
    op.drop_index("ix_enrollments_school_year", table_name="enrollments", schema="sis")
    op.drop_table("enrollments", schema="sis")
    op.drop_index("ix_enrollment_changes_student_id", table_name="enrollment_changes", schema="sis")
    op.drop_index("ix_enrollment_changes_detected_at", table_name="enrollment_changes", schema="sis")
    op.drop_table("enrollment_changes", schema="sis")
    op.drop_table("encryption_keys", schema="sis")
    op.drop_table("courses", schema="sis")
    op.drop_table("conflicts", schema="sis")
    op.drop_index("ix_audit_log_district", table_name="audit_log", schema="sis")
    op.drop_table("audit_log", schema="sis")
    op.drop_index("ix_api_calls_integration", table_name="api_calls", schema="sis")
    op.drop_table("api_calls", schema="sis")
    op.drop_table("academic_sessions", schema="sis")
    op.execute("drop function sis.clock()")
