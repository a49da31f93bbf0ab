"""
Say what ministack's CloudFormation answers to parameters. Runs in .venv-ministack.

Reads {"templates": {name: template}, "cases": [[name, {parameter: value}], …]} from standard input; prints for each
case why it is refused, or null. It uses private names of ministack, which requirements/ministack.txt pins.
"""

import json
import sys

from ministack.services.cloudformation import engine


def refusal(template: dict, parameters: dict[str, str]) -> str | None:
    try:
        resolved = engine._resolve_parameters(template, [{"Key": key, "Value": of} for key, of in parameters.items()])
        engine._check_rules_section(template)
        engine._evaluate_rules(template, resolved, {})
    except ValueError as error:
        return str(error)
    return None


def main() -> None:
    asked = json.load(sys.stdin)
    json.dump([refusal(asked["templates"][name], parameters) for name, parameters in asked["cases"]], sys.stdout)


main()
