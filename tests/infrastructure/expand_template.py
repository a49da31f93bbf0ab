"""Expand a SAM template offline and print it as JSON: expand_template.py TEMPLATE [Parameter=value ...]. Runs in .venv-sam."""

import json
import sys
from pathlib import Path

import boto3
from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

PSEUDO = {
    "AWS::AccountId": "123456789012",
    "AWS::Partition": "aws",
    "AWS::Region": "eu-west-1",
    "AWS::StackName": "plungepool",
}


def main() -> None:
    template = yaml_parse(Path(sys.argv[1]).read_text())
    for resource in template["Resources"].values():
        # The transform takes packaged code only.
        for key in ("CodeUri", "ContentUri", "Location"):
            if isinstance(resource.get("Properties", {}).get(key), str):
                there = (
                    "https://s3.eu-west-1.amazonaws.com/artifacts/key" if key == "Location" else "s3://artifacts/key"
                )
                resource["Properties"][key] = there
    parameters = {
        name: parameter["Default"]
        for name, parameter in template.get("Parameters", {}).items()
        if "Default" in parameter
    }
    parameters |= PSEUDO | dict(argument.split("=", 1) for argument in sys.argv[2:])
    session = boto3.Session(region_name=PSEUDO["AWS::Region"])
    expanded = Translator({}, Parser(), boto_session=session).translate(template, parameters)
    json.dump(expanded, sys.stdout, indent=1, default=str)


main()
