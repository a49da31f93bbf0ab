"""Which exchanges with the database a test makes, from which line, and how many it may make. See docs/testing.md."""
