"""What can be said of the templates without AWS: by SAM, its linter, checkov and rules of our own; and what these catch."""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from template_rules import DEPLOYMENTS, RULES, Templates

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)  # a build or a deployment is in the set-up of a test
APPLICATION, DATABASE, LAYER = "template.yaml", "infrastructure/database.yaml", "layers/plungepool/template.yaml"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def examined(examine: Callable[[dict[str, str], set[str]], dict]) -> dict:
    """The templates as they are, parsed, expanded and linted."""
    texts = {name: (ROOT / name).read_text() for name in (APPLICATION, DATABASE, LAYER)}
    return examine(texts, set(texts))


@pytest.fixture(scope="module")
def templates(examined: dict) -> Templates:
    """The templates as the rules take them."""
    return as_templates(examined[APPLICATION], examined[DATABASE])


def as_templates(application: dict, database: dict) -> Templates:
    return Templates(application["raw"], application["expanded"], database["expanded"])


@pytest.mark.parametrize("template", [APPLICATION, LAYER])
def test_passes_sam_validate_lint(run_sam: Run, template: str) -> None:
    """`sam validate --lint` finds nothing in the application's template, nor in the layer's own."""
    result = run_sam("sam", "validate", "--lint", "--template", ROOT / template)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("template", [APPLICATION, DATABASE, LAYER])
def test_linter_finds_nothing_in_the_expanded_template(examined: dict, template: str) -> None:
    """cfn-lint finds nothing in what the transform makes of each template, where it sees more than in the SAM template."""
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


def test_template_in_the_docs_is_valid(examine: Callable[[dict[str, str], set[str]], dict]) -> None:
    """The SAM template that docs/attach.md shows passes the transform and the linter."""
    [shown] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "attach.md").read_text(), re.DOTALL)
    assert examine({"shown": shown}, {"shown"})["shown"]["problems"] == []


def test_parameters_in_the_docs_exist(templates: Templates) -> None:
    """Every parameter that docs/deploy.md and docs/attach.md give to `sam deploy` is one of the template."""
    for page in ("deploy.md", "attach.md"):
        for command in re.findall(r"--parameter-overrides ((?:\\\n|[^\n])*)", (ROOT / "docs" / page).read_text()):
            assert set(re.findall(r"(\w+)=", command)) <= templates.source["Parameters"].keys(), command


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(templates: Templates, rule: Callable[[Templates], None]) -> None:
    """Each rule of template_rules.py holds of the templates."""
    rule(templates)


# Why each finding of checkov is accepted, by its number and the kind of resource.
ACCEPTED = {
    "CKV_AWS_115 AWS::Lambda::Function": "reserving takes from the account's concurrency, which a new account has not got: "
    "handle_orders and report_sales by OrdersConcurrency, fulfil_orders by its queue's MaximumConcurrency",
    "CKV_AWS_116 AWS::Lambda::Function": "only the queue's function is given work that could be lost, and the queue has its "
    "own dead-letter queue",
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


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A mistake as people make it: in `file`, `old` becomes `new`. `linted` where SAM or cfn-lint is to see it."""

    name: str
    old: str
    new: str
    file: str = APPLICATION
    linted: bool = False


FAULTS = [
    Fault(name="attribute that no resource has", old="!GetAtt Orders.Arn", new="!GetAtt Orders.Arm", linted=True),
    Fault(name="runtime that is none", old="Runtime: python3.13", new="Runtime: python3.19", linted=True),
    Fault(name="time-out over Lambda's limit", old="Timeout: 60", new="Timeout: 1000", linted=True),
    Fault(name="SnapStart before Python 3.12", old="Runtime: python3.13", new="Runtime: python3.11", linted=True),
    Fault(name="log level of another library", old="LogLevel: !Ref LogLevel", new="LogLevel: WARNING", linted=True),
    Fault(name="misspelt property", old="BatchSize: 10", new="BatchSise: 10", linted=True),
    Fault(name="reference to nothing", old="Value: !Ref DeadOrders", new="Value: !Ref DeadOrder", linted=True),
    Fault(name="condition that is not declared", old="Condition: AdminUsesSecret", new="Condition: AdminHasSecret", linted=True),
    Fault(name="queue that shows a message too soon", old="VisibilityTimeout: 180", new="VisibilityTimeout: 30"),
    Fault(name="typo in an action", old="Action: rds-db:connect", new="Action: rds-db:Conect"),
    Fault(name="right for every user", old="dbuser:${Id}/${User}", new="dbuser:${Id}/*"),
    Fault(name="ARN of the wrong service", old="arn:${AWS::Partition}:rds-db:", new="arn:${AWS::Partition}:rds:"),
    Fault(name="plural of one hour", old="cron(15 0 * * ? *)", new="rate(1 hours)"),
    Fault(name="cron of five fields", old="cron(15 0 * * ? *)", new="cron(15 0 * * *)"),
    Fault(name="misspelt setting", old="PLUNGEPOOL_POOL_SIZE", new="PLUNGEPOOL_POOLSIZE"),
    Fault(name="wrong variable of prepare_database", old="APP_ROLE_SECRET_ARN:", new="APP_ROLE_SECRET:"),
    Fault(name="output that the nested stack has not", old="{DemoDatabase.Outputs.Host}", new="{DemoDatabase.Outputs.HostName}"),
    Fault(name="version that RDS never had", file=DATABASE, old="Default: '17'", new="Default: '17.99'"),
    Fault(name="proxy that takes passwords", file=DATABASE, old="IAMAuth: REQUIRED", new="IAMAuth: DISABLED"),
    Fault(name="endpoint of a service misspelt", file=DATABASE, old="secretsmanager\n", new="secretmanager\n"),
    Fault(name="proxy's id from the wrong part", file=DATABASE, old="!Select [6, !Split [':', !GetAtt Proxy", new="!Select [5, !Split [':', !GetAtt Proxy"),
    Fault(name="no partial batch responses", old="            FunctionResponseTypes: [ReportBatchItemFailures]\n", new=""),
    Fault(name="database open to a network", file=DATABASE, old="SourceSecurityGroupId: !Ref ClientSecurityGroupId", new="CidrIp: 10.0.0.0/8"),
    Fault(name="public API", old="        DefaultAuthorizer: AWS_IAM\n", new=""),
]  # fmt: skip


@pytest.fixture(scope="module")
def faulty(examine: Callable[[dict[str, str], set[str]], dict]) -> dict:
    """The templates with each fault in turn, by the fault's name."""
    texts = {}
    for fault in FAULTS:
        text = (ROOT / fault.file).read_text()
        assert fault.old in text, fault.name
        texts[fault.name] = text.replace(fault.old, fault.new)
    return examine(texts, {fault.name for fault in FAULTS if fault.linted})


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_seeded_fault_is_caught(examined: dict, faulty: dict, fault: Fault) -> None:
    """Each of the seeded faults is caught: by SAM's transform or cfn-lint, else by a rule of our own."""
    seen = faulty[fault.name]
    if fault.linted:
        assert seen["problems"]
        return
    application, database = examined[APPLICATION], examined[DATABASE]
    changed = as_templates(application, seen) if fault.file == DATABASE else as_templates(seen, database)

    def holds(rule: Callable[[Templates], None]) -> bool:
        try:
            rule(changed)
        except (AssertionError, LookupError, ValueError):
            return False
        return True

    assert [rule.__name__ for rule in RULES if not holds(rule)]
