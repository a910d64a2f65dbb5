"""The domain: pure functions on frames that decide what a roster says. No I/O, no clock and no Dagster in here."""
