"""
What can be said of the templates without AWS: by SAM, its linter, checkov and rules of our own; and what these catch.
"""

import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import Page
from stack import Stack
from template_faults import APPLICATION, DATABASE, FAULTS, LAYER, LINTER, PROJECT_FILE, Fault
from template_rules import (
    BOUNDS,
    DATABASE_BOUNDS,
    DEPLOYMENTS,
    NESTED,
    PROJECT,
    PROJECT_BOUNDS,
    REFUSED,
    RULES,
    TAKEN,
    Templates,
    why_refused,
)

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)  # a build or a deployment is in the set-up of a test
FILES = (APPLICATION, DATABASE, LAYER, PROJECT_FILE)
Run = Callable[..., subprocess.CompletedProcess[str]]
Examine = Callable[[dict[str, str], set[str]], dict]


def source(file: str) -> str:
    """Return a template's text; that of the project as `sam init` fills it in."""
    text = (ROOT / file).read_text()
    for name, value in json.loads((ROOT / "templates" / "cookiecutter.json").read_text()).items():
        text = text.replace(f"{{{{ cookiecutter.{name} }}}}", value[0] if isinstance(value, list) else str(value))
    return text


@pytest.fixture(scope="module")
def examined(examine: Examine) -> dict:
    """The templates as they are, parsed, expanded and linted."""
    return examine({file: source(file) for file in FILES}, set(FILES))


@pytest.fixture(scope="module")
def templates(examined: dict) -> Templates:
    """The templates as the rules take them."""
    return as_templates(examined, {})


def as_templates(seen: dict, texts: dict[str, str]) -> Templates:
    expanded = (seen[file]["expanded"] for file in FILES)
    return Templates(seen[APPLICATION]["raw"], *expanded, texts={file: source(file) for file in FILES} | texts)


@pytest.mark.parametrize("template", [APPLICATION, LAYER])
def test_passes_sam_validate_lint(run_sam: Run, template: str) -> None:
    """`sam validate --lint` finds nothing in the application's template, nor in the layer's own."""
    result = run_sam("sam", "validate", "--lint", "--template", ROOT / template)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("template", FILES)
def test_linter_finds_nothing_in_the_expanded_template(examined: dict, template: str) -> None:
    """
    cfn-lint finds nothing in what the transform makes of each template, where it sees more than in the SAM template.
    """
    assert examined[template]["problems"] == []


def test_every_key_of_samconfig_is_known(run_sam: Run) -> None:
    """Each section and key of samconfig.toml is a command and an option of the SAM CLI."""
    result = run_sam("python", Path(__file__).with_name("check_samconfig.py"), ROOT / "samconfig.toml")
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_unknown_keys_of_samconfig_are_found(run_sam: Run, tmp_path: Path) -> None:
    """The check names a misspelt option, a misspelt command and keys that stand outside `parameters`."""
    wrong = tmp_path / "samconfig.toml"
    wrong.write_text(
        "version = 0.1\n[default.deploy.parameters]\nresolve_s4 = true\nresolve_s3 = true\n"
        "[default.deplo.parameters]\nresolve_s3 = true\n[default.build]\ncached = true\n"
    )
    result = run_sam("python", Path(__file__).with_name("check_samconfig.py"), wrong)
    assert set(result.stdout.split()) == {"default.deploy.parameters.resolve_s4", "default.deplo", "default.build"}


@pytest.mark.parametrize("page", ["attach.md", "functions.md"])
def test_template_in_the_docs_is_valid(examine: Examine, page: str) -> None:
    """The SAM template that a page of the documentation shows passes the transform and the linter."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    # For an application of the repository, the transform asks AWS: test_application_repository.py reads that one.
    [shown] = [block for block in blocks if "AWS::Serverless::Application" not in block]
    assert examine({"shown": shown}, {"shown"})["shown"]["problems"] == []


@pytest.mark.parametrize("name", ["iam", "managed-instances", "dsql"])
def test_template_of_a_page_is_valid(examine: Examine, name: str) -> None:
    """So does that of a page whose other files are run in tests/documentation."""
    assert examine({"shown": Page(name).files["template.yaml"]}, {"shown"})["shown"]["problems"] == []


def test_tenants_come_by_a_verified_token_alone(examine: Examine) -> None:
    """In the stack that docs/functions.md shows no route of handle_tenant_orders goes without its JWT authorizer."""
    [shown] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "functions.md").read_text(), re.DOTALL)
    resources = examine({"shown": shown}, set())["shown"]["expanded"]["Resources"]
    [api] = [one["Properties"]["Body"] for one in resources.values() if one["Type"] == "AWS::ApiGatewayV2::Api"]
    operations = [of for path in api["paths"].values() for method, of in path.items() if method != "options"]
    assert len(operations) == 3
    assert [operation["security"] for operation in operations] == [[{"Tokens": []}]] * 3
    [scheme] = api["components"]["securitySchemes"].values()
    assert scheme["x-amazon-apigateway-authorizer"]["type"] == "jwt"
    assert scheme["x-amazon-apigateway-authorizer"]["jwtConfiguration"]["issuer"] == {"Ref": "Issuer"}


def test_parameters_in_the_docs_exist(templates: Templates) -> None:
    """Every parameter that the documentation gives to `sam deploy` is one of the template."""
    for page in ("deploy.md", "attach.md", "express.md"):
        for command in re.findall(r"--parameter-overrides ((?:\\\n|[^\n])*)", (ROOT / "docs" / page).read_text()):
            assert set(re.findall(r"(\w+)=", command)) <= templates.source["Parameters"].keys(), command


def test_every_deployment_is_tagged() -> None:
    """`sam deploy` puts a tag on everything that it makes, in each environment of both samconfig.toml."""
    for file in (ROOT / "samconfig.toml", ROOT / PROJECT_FILE.replace("template.yaml", "samconfig.toml")):
        for name, of in tomllib.loads(file.read_text()).items():
            assert name == "version" or of["deploy"]["parameters"]["tags"].startswith("application="), f"{file}: {name}"


def test_commands_in_samconfig_would_be_taken(templates: Templates) -> None:
    """The command that samconfig.toml shows for a demo database names what CloudFormation's rules ask for."""
    [shown] = re.findall(r"--parameter-overrides (.*)", (ROOT / "samconfig.toml").read_text())
    values = {"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2"}
    given = dict(pair.split("=") for pair in shown.split())
    templates.deploy_with({name: values.get(name, value) for name, value in given.items()})


def test_cloudformation_makes_no_cluster_of_express_configuration(run_sam: Run) -> None:
    """
    Its schema of a cluster has no such property, as docs/express.md says; once it has, DatabaseMode can have `express`.
    """
    script = (
        "from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER as manager; "
        "print(*manager.get_resource_schema('us-east-1', 'AWS::RDS::DBCluster').schema['properties'])"
    )
    result = run_sam("python", "-c", script)
    assert result.returncode == 0, result.stderr
    names = set(result.stdout.split())
    assert {"ServerlessV2ScalingConfiguration", "EnableIAMDatabaseAuthentication"} <= names
    of_express = re.compile("Express|InternetAccessGateway|VPCNetworking")
    assert [name for name in names if of_express.search(name)] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(templates: Templates, rule: Callable[[Templates], None]) -> None:
    """Each rule of template_rules.py holds of the templates."""
    rule(templates)


# Why each finding of checkov is accepted, by its number and the kind of resource.
ACCEPTED = {
    "CKV_AWS_115 AWS::Lambda::Function": (
        "reserving takes from the account's concurrency, which a new account has not got: "
        "handle_orders and report_sales by OrdersConcurrency, fulfil_orders by its queue's MaximumConcurrency"
    ),
    "CKV_AWS_116 AWS::Lambda::Function": (
        "only the queue's function is given work that could be lost, and the queue has its own dead-letter queue"
    ),
    "CKV_AWS_117 AWS::Lambda::Function": "in a VPC where SubnetIds are given; a database outside (DSQL) needs none",
    "CKV_AWS_118 AWS::RDS::DBInstance": "a demo database: enhanced monitoring costs and is switched on in one line",
    "CKV_AWS_149 AWS::SecretsManager::Secret": "encrypted with the service's key; a key of one's own is a choice",
    "CKV_AWS_157 AWS::RDS::DBInstance": "a demo database: one availability zone will do",
    "CKV_AWS_158 AWS::Logs::LogGroup": "encrypted with the service's key; a key of one's own is a choice that costs",
    "CKV_AWS_173 AWS::Lambda::Function": "no secret is in the variables on AWS; encrypted with the service's key",
    "CKV_AWS_27 AWS::SQS::Queue": "encrypted by SqsManagedSseEnabled, which this check does not know",
}


@pytest.fixture(scope="module")
def findings(templates: Templates, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Where checkov fails, by check and kind, over every deployment: it looks only at what the parameters switch on."""
    folder = tmp_path_factory.mktemp("checkov")
    checkov = ROOT / ".venv-checkov" / "bin" / "checkov"
    if not checkov.exists():
        command = [ROOT / "toolkit" / "set-up", "venv", ".venv-checkov", "requirements/checkov.txt"]
        subprocess.run(command, check=True)
    for name in DEPLOYMENTS:
        stack = templates.deploy(name)
        for label, one in (("application", stack), *(("database", nested) for nested in stack.nested.values())):
            resources = {
                key: {"Type": of["Type"], "Properties": one.properties(key)} for key, of in one.resources.items()
            }
            file = folder / f"{re.sub('[^a-z]+', '-', name.lower())}.{label}.json"
            file.write_text(json.dumps({"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources}))
    command = [
        checkov,
        "--directory",
        folder,
        "--framework",
        "cloudformation",
        "--skip-download",
        "--compact",
        "-o",
        "json",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    report = json.loads(result.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 100
    found: dict[str, set[str]] = {}
    for failed in report["results"]["failed_checks"]:
        kind = failed["resource"].rpartition(".")[0]
        found.setdefault(f"{failed['check_id']} {kind}", set()).add(f"{failed['file_path']} {failed['resource']}")
    return found


def test_checkov_finds_nothing_that_is_not_accepted(findings: dict[str, set[str]]) -> None:
    """Under every deployment each finding of checkov is one that ACCEPTED gives a reason for."""
    assert {check: where for check, where in findings.items() if check not in ACCEPTED} == {}


def test_no_exception_is_stale(findings: dict[str, set[str]]) -> None:
    """Each exception is still needed."""
    assert findings.keys() == ACCEPTED.keys()


@pytest.fixture(scope="module")
def faulty(examine: Examine) -> dict:
    """The templates with each fault in turn, by the fault's name."""
    faults = {fault.name: fault.apply(source(fault.file)) for fault in FAULTS}
    return examine(faults, {fault.name for fault in FAULTS if fault.rule is LINTER})


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_seeded_fault_is_caught(examined: dict, faulty: dict, fault: Fault) -> None:
    """Each of the seeded faults is caught by what is named: SAM's transform or cfn-lint, else a rule of our own."""
    seen = faulty[fault.name]
    if fault.rule is LINTER:
        assert seen["problems"]
        return
    changed = as_templates({**examined, fault.file: seen}, {fault.file: fault.apply(source(fault.file))})
    with pytest.raises((AssertionError, LookupError, ValueError)):
        fault.rule(changed)


def test_faults_are_counted() -> None:
    """
    No fault hides another of the same name, the docs say how many there are, and every rule has one that it must catch.
    """
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert re.findall(r"plants\s(\d+) mistakes", (ROOT / "docs" / "deploy.md").read_text()) == [str(len(FAULTS))]
    assert {rule.__name__ for rule in RULES} - {fault.rule.__name__ for fault in FAULTS if fault.rule} == set()


def test_another_evaluator_refuses_the_same(templates: Templates) -> None:
    """ministack, which measured on AWS how rules are judged, takes and refuses the parameters that stack.py does."""
    by_name = {"application": templates.application, "database": templates.database, "project": templates.project}
    cases = [("application", parameters) for parameters in [*TAKEN.values(), *(of for of, _ in REFUSED.values())]]
    valid = {"application": DEPLOYMENTS["existing, password"], "database": NESTED, "project": PROJECT}
    for name, bounds in (("application", BOUNDS), ("database", DATABASE_BOUNDS), ("project", PROJECT_BOUNDS)):
        for parameter, values in bounds.items():
            if "AWS::" not in by_name[name]["Parameters"][parameter]["Type"]:  # AWS looks these up, ministack does not
                cases += [(name, valid[name] | {parameter: value}) for value in (*values[0], *values[1])]
    python = ROOT / ".venv-ministack" / "bin" / "python"
    if not python.exists():
        command = [ROOT / "toolkit" / "set-up", "venv", ".venv-ministack", "requirements/ministack.txt"]
        subprocess.run(command, check=True)
    asked = json.dumps({"templates": by_name, "cases": cases}, default=str)
    script = Path(__file__).with_name("judge_parameters.py")
    result = subprocess.run([python, script], input=asked, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr
    ours = [why_refused(Stack, by_name[name], parameters) for name, parameters in cases]
    both = zip(cases, ours, json.loads(result.stdout), strict=True)
    assert [of for of in both if (of[1] is None) != (of[2] is None)] == []
