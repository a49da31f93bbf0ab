"""Print each key of a samconfig.toml that this SAM CLI does not know; SAM itself ignores them. Runs in .venv-sam."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from click import Command, Context, Group
from samcli.cli.main import cli


def commands(group: Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Command]]:
    context = Context(group, obj=object())
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, Group):
            yield from commands(command, (*path, name))
        elif command is not None:
            yield "_".join((*path, name)).replace("-", "_"), command


def options(command: Command) -> set[str]:
    names = {parameter.name or "" for parameter in command.params}
    for parameter in command.params:
        names |= {option.lstrip("-").replace("-", "_") for option in (*parameter.opts, *parameter.secondary_opts)}
    return names


def main() -> None:
    known = {name: options(command) for name, command in commands(cli)}
    known["global"] = set().union(*known.values())
    for environment, sections in tomllib.loads(Path(sys.argv[1]).read_text()).items():
        if environment == "version":
            continue
        for section, body in sections.items():
            if set(body) != {"parameters"} or section not in known:
                print(f"{environment}.{section}")
                continue
            for key in set(body["parameters"]) - known[section]:
                print(f"{environment}.{section}.parameters.{key}")


main()
