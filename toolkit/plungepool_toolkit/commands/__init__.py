"""The commands of `plungepool`, one module each: arguments in, a report out."""
