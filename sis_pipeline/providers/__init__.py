"""One module per student information system, the plugin contract (base) and discovery (registry). No storage and no Dagster in here."""
