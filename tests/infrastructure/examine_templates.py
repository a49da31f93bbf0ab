"""
Parse templates, expand them as SAM's transform does, offline, and lint those that are asked for. Runs in .venv-sam.

Reads {name: {"text": YAML, "lint": true or false}} from standard input; prints {name: {"raw": the template,
"expanded": the same after the transform, "problems": what the transform and the linter said first}}.
"""

import copy
import json
import sys
import tempfile
from pathlib import Path

import boto3
import yaml
from cfnlint.api import ManualArgs, lint_file
from samcli import yamlhelper
from samtranslator.parser.parser import Parser
from samtranslator.public.exceptions import InvalidDocumentException
from samtranslator.translator.translator import Translator

REGION = "eu-west-1"
# Not of use in an expanded template: the transform writes Sub without variables, and has resolved parameters itself.
IGNORED_WHEN_EXPANDED = ["W1020", "W2001"]


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """What SAM makes of PyYAML's loader, of the one that is written in C: a template a second is read otherwise."""


Loader.add_constructor(yamlhelper.TIMESTAMP_TAG, yaml.constructor.SafeConstructor.construct_yaml_str)
Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, yamlhelper._dict_constructor)
Loader.add_multi_constructor("!", yamlhelper.intrinsics_multi_constructor)


def expand(template: dict) -> dict:
    """Return the template after the transform, as CloudFormation would see it; it may be changed by that."""
    if template.get("Transform") != "AWS::Serverless-2016-10-31":
        return template
    for resource in template["Resources"].values():
        # The transform takes packaged code only.
        for key in ("CodeUri", "ContentUri", "Location"):
            if isinstance(resource.get("Properties", {}).get(key), str):
                there = (
                    "https://s3.eu-west-1.amazonaws.com/artifacts/key" if key == "Location" else "s3://artifacts/key"
                )
                resource["Properties"][key] = there
    # Only what the transform itself resolves; conditions stay in the template.
    values = {
        name: parameter["Default"]
        for name, parameter in template.get("Parameters", {}).items()
        if "Default" in parameter
    }
    values |= {"AWS::Region": REGION, "AWS::Partition": "aws"}
    return Translator({}, Parser(), boto_session=boto3.Session(region_name=REGION)).translate(template, values)


def lint(text: str, ignored: list[str]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.yaml"
        path.write_text(text)
        matches = lint_file(path, config=ManualArgs(regions=[REGION], ignore_checks=ignored))
    return [f"{match.rule.id} {match.message}" for match in matches]


def examine(text: str, linted: bool) -> dict:
    raw = yaml.load(text, Loader)
    # Of each template that is linted, SAM's own reading is the same.
    assert not linted or raw == yamlhelper.yaml_parse(text)
    problems = lint(text, []) if linted else []
    try:
        expanded = expand(copy.deepcopy(raw))
    except InvalidDocumentException as error:
        return {"raw": raw, "expanded": None, "problems": [*problems, error.message, *map(str, error.causes)]}
    # Where the template as written has a problem already, a second look would only take its time.
    if linted and expanded != raw and not problems:
        problems += lint(json.dumps(expanded, default=str), IGNORED_WHEN_EXPANDED)
    return {"raw": raw, "expanded": expanded, "problems": problems}


def main() -> None:
    asked = json.load(sys.stdin)
    json.dump(
        {name: examine(text=of["text"], linted=of["lint"]) for name, of in asked.items()}, sys.stdout, default=str
    )


main()
