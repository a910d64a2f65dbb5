"""The roster's own persistence: integrations, snapshots, bulk load, merged frames and publication. PostgreSQL itself is in db, decisions are in roster."""
