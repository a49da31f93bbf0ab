"""A fleet of Lambda environments against one database, and what comes of it, strategy by strategy."""
