"""Refuse names that would make a project whose own tests or deployment fail; cookiecutter then leaves no folder."""

import re
import sys

PROJECT_NAME = {{cookiecutter.project_name | tojson}}  # noqa: F821
DATABASE_USER = {{cookiecutter.database_user | tojson}}  # noqa: F821


def problems(project_name, database_user):
    """Yield what is wrong with the names, and what to do."""
    # A CloudFormation stack's name; with "-plungepool" behind it a layer's, which has at most 64 characters.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,52}", project_name):
        fitting = re.sub(r"[^a-z0-9]+", "-", project_name.lower()).strip("-0123456789")[:53].strip("-")
        yield (
            f"project_name {project_name!r} cannot be the name of a stack: letters, digits and hyphens, "
            f"a letter first, at most 53; for example {fitting or 'orders'!r}"
        )
    # Lower case, since psql folds what is not quoted.
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", database_user):
        fitting = re.sub(r"[^a-z0-9]+", "_", database_user.lower()).strip("_0123456789")[:63]
        yield (
            f"database_user {database_user!r} cannot be the name of the role: lower-case letters, digits and "
            f"underscores, no digit first, at most 63; for example {fitting or 'app'!r}"
        )
    elif database_user.startswith("pg_") or database_user in ("public", "none"):
        yield f"database_user {database_user!r} is reserved by PostgreSQL: choose another, for example 'app'"
    # RDS has rdsadmin, rds_iam, rds_replication, rdsproxyadmin, and more with each version.
    elif database_user == "postgres" or database_user.startswith("rds"):
        yield (
            f"database_user {database_user!r} is a role of the server's own: give the function one of its own, for "
            "example 'app'"
        )


found = list(problems(PROJECT_NAME, DATABASE_USER))
if found:
    sys.exit("No project was made:\n  " + "\n  ".join(found))
