"""sis_pipeline: a self-hosted roster pipeline on Dagster, pandas, pandera and PostgreSQL.
Only the version is said here; Dagster's entry is `definitions`, the command's `cli.main`."""

__version__ = "0.1.0"
