"""The command line: each word is a module of its own, which is imported when the word is typed."""

from __future__ import annotations

from typing import Any

from plungepool_toolkit.command import COMMANDS

MODULE = ("-m", "plungepool_toolkit")


def test_help_says_what_each_command_does(machine: Any) -> None:
    """`plungepool --help` lists every command with a sentence, in order."""
    result = machine.run(*MODULE, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.strip("│ ").split(maxsplit=1) for line in result.stdout.partition("Commands")[2].splitlines()]
    assert [row[0] for row in rows if row and row[0] in COMMANDS and len(row[1]) > 30] == [*COMMANDS]


def test_only_what_is_typed_is_imported(machine: Any) -> None:
    """A command costs the imports of none of its neighbours: boto3, the SAM CLI's and PostgreSQL's are their affair."""
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from plungepool_toolkit.command import application\n"
        "result = CliRunner().invoke(application, ['doctor', '--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "print(*[name.split('.')[2] for name in sys.modules if name.startswith('plungepool_toolkit.commands.')])\n"
    )
    result = machine.run("-c", program)
    assert set(result.stdout.split()) == {"doctor"}, result.stderr


def test_a_slip_is_answered_by_the_nearest_word(machine: Any) -> None:
    """A word that is no command is refused, with the one that was meant."""
    result = machine.run(*MODULE, "doctr")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Did you mean 'doctor'?" in result.stderr
