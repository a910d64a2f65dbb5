"""PostgreSQL itself: the engine and the embedded server, table metadata, migrations, the clock, roles and the audit log. What the rows mean is decided elsewhere."""
