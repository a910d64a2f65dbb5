"""The Dagster shell: partitions, assets, checks, sensors, schedules, jobs and resources, all thin. What a roster is, how it is read, kept and merged is decided in roster, providers and store."""
