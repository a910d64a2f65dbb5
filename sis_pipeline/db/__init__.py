"""PostgreSQL itself: the engine and the embedded server, table metadata, migrations, the clock and the audit append. What the rows mean is decided elsewhere."""
