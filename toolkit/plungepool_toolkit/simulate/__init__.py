"""A fleet in virtual time, by the package's own law."""
