"""A cloud on one machine for Plungepool's users: PostgreSQL, Lambda environments, the `plungepool` command."""
