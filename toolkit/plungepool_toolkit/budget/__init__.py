"""
Who may open how many connections to which database, and whether it holds: from a template, before it is deployed.

source.py reads a file, stacks.py expands it with its values, functions.py says how many environments there may be,
databases.py what they connect to, verdict.py what follows; documents.py writes it down. Nothing here asks AWS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plungepool_toolkit.budget.functions import Function, functions, unreserved
from plungepool_toolkit.budget.stacks import load
from plungepool_toolkit.budget.uses import read_databases
from plungepool_toolkit.budget.verdict import Verdict, agree, judge

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from plungepool_toolkit.budget.inputs import Inputs, Need

_LOAD = ("rate", "handler-ms", "database-ms", "pinned-percent")


@dataclass(frozen=True, slots=True)
class Budget:
    """What one template comes to. Where `needs` is not empty, something must be said first, and there is no verdict."""

    template: Path
    functions: list[Function]
    verdicts: list[Verdict]
    not_counted: dict[str, str]
    needs: list[Need]

    @property
    def holds(self) -> str:
        """`yes`, `tight` or `no`, of all databases together; `unknown` where something must be said first."""
        if self.needs:
            return "unknown"
        answers = [verdict.holds for verdict in self.verdicts]
        return next((answer for answer in ("no", "tight") if answer in answers), "yes")


def examine(template: Path, overrides: Mapping[str, str], inputs: Inputs) -> Budget:
    """
    Read a template and say what its functions may open, against what each database offers.

    Args: overrides: values of its parameters. inputs: what the template does not hold; what is missing is added there.
    Raises: source.TemplateError for what is no template; inputs.InputError for an input that means nothing here.
    """
    root = load(template, overrides)
    found = functions(root, inputs)
    reading = read_databases(root, found, inputs)
    inputs.refuse_unused([*reading.databases], [function.name for function in found])
    for stack in root.all():
        for name, why in stack.not_read.items():
            reading.not_counted["/".join((*stack.path, name))] = why
    counted = {use.function.name for database in reading.databases.values() for use in database.uses}
    left = 0
    if without := [each.name for each in found if each.at_once is None and not each.unknown and each.name in counted]:
        if inputs.account_concurrency is None:
            why = f'{", ".join(without)}: only the account\'s quota "Concurrent executions" limits them'
            inputs.ask("--account-concurrency N", why)
        else:
            left = unreserved(found, inputs.account_concurrency)
    verdicts = []
    if not inputs.needs:
        for database in reading.databases.values():
            said = {key: inputs.number_of_database(database.name, key) for key in _LOAD}
            verdicts.append(judge(database, left, {key: value for key, value in said.items() if value is not None}))
    agree(verdicts)
    return Budget(template, found, verdicts, reading.not_counted, sorted(inputs.needs))
