"""sis_pipeline: a self-hosted roster pipeline on Dagster, pandas, pandera and PostgreSQL."""

__version__ = "0.1.0"
