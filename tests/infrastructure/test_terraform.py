"""The Terraform module, and what docs/attach.md shows of it: read by a parser of HCL, and its names held together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hcl2
import pytest

from plungepool import Settings

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "infrastructure" / "terraform"
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in sorted(MODULE.glob("*.tf"))}
TEXT = "\n".join(SOURCES.values())
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8") for page in ("infrastructure/terraform/README.md", "docs/attach.md")
}
EXAMPLES = [
    pytest.param(page, text, id=f"{page}-{number}")
    for page, whole in PAGES.items()
    for number, text in enumerate(re.findall(r"```hcl\n(.*?)```", whole, re.DOTALL))
]


def parse(text: str) -> dict[str, Any]:
    """Parse HCL; the quotes that the parser keeps around names are dropped."""
    return bare(hcl2.loads(text))


def bare(found: Any) -> Any:
    if isinstance(found, dict):
        return {bare(name): bare(value) for name, value in found.items()}
    if isinstance(found, list):
        return [bare(value) for value in found]
    return found[1:-1] if isinstance(found, str) and found[:1] == found[-1:] == '"' else found


def names(kind: str) -> set[str]:
    """The names of the module's blocks of a kind."""
    return {
        name
        for source in SOURCES.values()
        for block in parse(source).get(kind, [])
        for name in block
        if name[:2] != "__"
    }


@pytest.mark.parametrize("name", SOURCES)
def test_each_file_is_hcl(name: str) -> None:
    """A parser reads every file of the module."""
    assert parse(SOURCES[name])


def test_what_is_declared_is_used_and_what_is_used_is_declared() -> None:
    """Variables, locals and resources: no name is missing, and none is left over."""
    assert set(re.findall(r"\bvar\.(\w+)", TEXT)) == names("variable")
    declared = {name for source in SOURCES.values() for block in parse(source).get("locals", []) for name in block}
    assert set(re.findall(r"\blocal\.(\w+)", TEXT)) == {name for name in declared if name[:2] != "__"}
    resources = set(re.findall(r'^(?:resource|data) "(\w+)" "(\w+)"', TEXT, re.MULTILINE))
    used = set(re.findall(r"\b(aws_\w+)\.(\w+)", TEXT))
    assert used == resources


def test_no_attribute_is_read_that_only_some_versions_of_the_provider_have() -> None:
    """Terraform refuses an attribute that is not in the provider's schema, even within try() and can()."""
    read = set(re.findall(r"\bdata\.(aws_\w+\.\w+\.\w+)", TEXT))
    in_every_version_since_5 = {
        "aws_partition.current.partition",
        "aws_caller_identity.current.account_id",
        "aws_iam_policy_document.connect.json",
    }
    assert read <= in_every_version_since_5


def test_no_value_is_given_that_only_some_versions_of_the_provider_take() -> None:
    """The provider refuses a runtime that is newer than itself, and 5.100 does not know python3.14."""
    (layer,) = [
        body
        for source in SOURCES.values()
        for block in parse(source).get("resource", [])
        for kind, named in block.items()
        if kind == "aws_lambda_layer_version"
        for body in named.values()
    ]
    assert "compatible_runtimes" not in layer


def test_everything_is_described_and_in_the_readme() -> None:
    """Each variable and output has a description, and a row."""
    page = PAGES["infrastructure/terraform/README.md"]
    rows = {name for row in re.findall(r"^\| (`[^|]*)\|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert rows == names("variable") | names("output")
    for kind in ("variable", "output"):
        for source in SOURCES.values():
            for block in parse(source).get(kind, []):
                assert all(body["description"] for name, body in block.items() if name[:2] != "__")


def test_environment_is_of_settings_that_there_are() -> None:
    """What the functions are given is known, with the values that the module allows."""
    given = {
        "HOST": "db.example",
        "PORT": "5432",
        "DATABASE": "postgres",
        "ENDPOINT": "proxy",
        "AUTH": "iam",
        "USER": "app",
    }
    told = set(re.findall(r"\bPLUNGEPOOL_(\w+)\s+=", SOURCES["main.tf"])) | {"SECRET_ARN"}
    assert told == given.keys() | {"SECRET_ARN"}
    variables = {f"PLUNGEPOOL_{name}": value for name, value in given.items()} | {"AWS_REGION": "eu-west-1"}
    assert Settings.from_env(variables).user == "app"


@pytest.mark.parametrize(("page", "text"), EXAMPLES)
def test_examples_are_hcl_and_use_what_there_is(page: str, text: str) -> None:
    """What a page shows can be parsed; a module's arguments are its variables, and what is read of it its outputs."""
    found = parse(text)
    for block in found.get("module", []):
        for body in block.values():
            if isinstance(body, dict):
                arguments = {name for name in body if name[:2] != "__"} - {"source"}
                assert arguments <= names("variable")
                assert {"host", "user"} <= arguments
    assert set(re.findall(r"\bmodule\.plungepool\.(\w+)", text)) <= names("output")
    assert set(re.findall(r"\bPLUNGEPOOL_(\w+)", text)) <= {name.upper() for name in Settings.__dataclass_fields__}
