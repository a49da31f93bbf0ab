"""The `plungepool` command. Each subcommand is a function of the module that owns what it does."""

from __future__ import annotations

import typer

from plungepool_toolkit.commands.proxy import proxy
from plungepool_toolkit.demo import demo
from plungepool_toolkit.doctor import doctor
from plungepool_toolkit.sam_local import sam_local
from plungepool_toolkit.verify_aws import verify_aws

application = typer.Typer(
    name="plungepool",
    help="A cloud on one machine for PostgreSQL from AWS Lambda.",
    no_args_is_help=True,
    add_completion=False,
    # Typer's own tracebacks print local variables, among which may be passwords.
    pretty_exceptions_enable=False,
)
application.command()(demo)
application.command()(doctor)
application.command()(proxy)
application.command()(sam_local)
application.command()(verify_aws)


def main() -> None:
    """Run the command line; the process's exit code is the command's."""
    application()
