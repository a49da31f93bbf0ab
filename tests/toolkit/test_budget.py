"""`plungepool budget`: who may open how many connections, against what the database has and its CPU bears."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from plungepool_toolkit.budget.inputs import DATABASE_KEYS, FUNCTION_KEYS
from plungepool_toolkit.command import application

TEMPLATES = Path(__file__).parent / "budget"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of AWS, or of anybody."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"asked the network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


def run(template: str | Path, *options: str) -> Any:
    path = TEMPLATES / f"{template}.yaml" if isinstance(template, str) else template
    result = CliRunner().invoke(application, ["budget", str(path), *options], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def document(template: str | Path, *options: str) -> Any:
    return json.loads(run(template, "--json", *options).stdout)


class Case(NamedTuple):
    """One template with what is said beside it, and what must come out."""

    template: str
    options: list[str]
    exit_code: int
    #: `yes`, `tight`, `no` or `unknown`.
    holds: str
    #: The connections that may be open, by database, from the least to the most.
    open: dict[str, tuple[float, float]]
    #: The rules of the findings, the worst first.
    rules: list[str]
    #: What the first advice, or the first question, says.
    advice: str = ""


def parameters(*texts: str) -> list[str]:
    return ["--parameter-overrides", " ".join(texts)]


def database(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--database", text)]


ACCOUNT = ["--account-concurrency", "1000"]
EXPRESS = "express-1.cluster-abc.eu-west-1.rds.amazonaws.com"
CASES = [
    Case("good", [], 0, "yes", {"Cluster": (20, 40)}, []),
    Case(
        "good",
        parameters("OrdersConcurrency=900"),
        1,
        "no",
        {"Cluster": (900, 1800)},
        ["cpu", "connections"],
        "Set the parameter OrdersConcurrency to 38 (now 900).",
    ),
    Case(
        "too-many",
        [],
        1,
        "no",
        {"Database": (300, 600)},
        ["connections", "cpu"],
        "Set the parameter OrdersConcurrency to 38 (now 300).",
    ),
    Case("too-many", parameters("OrdersConcurrency=30"), 0, "yes", {"Database": (30, 60)}, []),
    Case(
        "too-many",
        parameters("OrdersConcurrency=70") + database("database-ms=0.2"),
        0,
        "tight",
        {"Database": (70, 140)},
        ["connections"],
        "Set PLUNGEPOOL_POOL of Orders to adaptive",
    ),
    Case(
        "too-many",
        parameters("OrdersConcurrency=70") + database("database-ms=0.2") + ["--strict"],
        1,
        "tight",
        {"Database": (70, 140)},
        ["connections"],
    ),
    Case(
        "too-many",
        parameters("OrdersConcurrency=30") + database("others=60"),
        0,
        "tight",
        {"Database": (30, 60)},
        ["connections"],
        "Set the parameter OrdersConcurrency to 18 (now 30).",
    ),
    # What brought veda down: the slots were enough, the CPU was not.
    Case(
        "veda", ACCOUNT, 1, "no", {"Database": (0, 0)}, ["cpu"], "Set MaxConnectionsPercent of Targets to 2 (now 100)"
    ),
    Case("veda", [], 2, "unknown", {}, [], "--account-concurrency N"),
    Case("veda", [*ACCOUNT, *database("proxy-percent=4")], 0, "tight", {"Database": (0, 0)}, ["proxy", "cpu"]),
    Case(
        "cpu-bound",
        [],
        1,
        "no",
        {"Database": (845, 1690)},
        ["cpu", "connections"],
        "Set ReservedConcurrentExecutions of Raster to 38 (now 845).",
    ),
    Case("cpu-bound", database("rate=100"), 0, "tight", {"Database": (845, 1690)}, ["connections"]),
    Case(
        "cpu-bound",
        database("handler-ms=1000", "database-ms=1"),
        0,
        "tight",
        {"Database": (845, 1690)},
        ["connections"],
    ),
    Case(
        "managed-instances",
        [],
        1,
        "no",
        {"Database": (640, 1280)},
        ["connections", "cpu"],
        "Set the parameter Environments to 24 (now 40).",
    ),
    Case("managed-instances", parameters("Environments=3"), 0, "tight", {"Database": (48, 96)}, ["cpu"]),
    Case("managed-instances-unbounded", [], 2, "unknown", {}, [], "--function Orders:environments=N"),
    Case(
        "managed-instances-unbounded",
        ["--function", "Orders:environments=3", "--function", "Orders:processes=4"],
        0,
        "yes",
        {"Database": (12, 24)},
        [],
    ),
    Case(
        "pollers",
        [],
        1,
        "no",
        {"Database": (500, 1000)},
        ["connections", "cpu"],
        "Set MaximumPollers of Fulfil to 3 (now 50).",
    ),
    Case("queue", [], 0, "yes", {"Database": (25, 25)}, []),
    Case("queue", parameters("Workers=2"), 0, "yes", {"Database": (2, 2)}, []),
    Case("null-pool", [], 1, "no", {"Database": (30, 30)}, ["cpu"], "Set the parameter Pool to tiny or adaptive"),
    Case("null-pool", parameters("Pool=adaptive"), 0, "yes", {"Database": (30, 60)}, []),
    Case(
        "tenants",
        [],
        1,
        "no",
        {"Database": (100, 200)},
        ["connections"],
        "Set ReservedConcurrentExecutions of Orders to 36 (now 40).",
    ),
    Case(
        "two-databases",
        [],
        1,
        "no",
        {"Main": (50, 100), "Reports": (100, 200)},
        ["cpu", "connections"],
        "Set ReservedConcurrentExecutions of Orders to 19 (now 50).",
    ),
    Case(
        "nested",
        [],
        1,
        "no",
        {"Data/Database": (120, 240)},
        ["connections", "cpu"],
        "Set the parameter Concurrency to 38 (now 120).",
    ),
    Case("express", [], 2, "unknown", {}, [], f"--database {EXPRESS}:KEY=VALUE"),
    Case("express", database("kind=express"), 0, "yes", {EXPRESS: (60, 120)}, []),
    Case(
        "express",
        database(f"{EXPRESS}:kind=express", f"{EXPRESS}:max-acu=1"),
        1,
        "no",
        {EXPRESS: (60, 120)},
        ["cpu"],
        "Set ReservedConcurrentExecutions of Orders to 4 (now 60).",
    ),
    Case(
        "express",
        parameters("Endpoint=proxy") + database("kind=express"),
        1,
        "no",
        {EXPRESS: (0, 0)},
        ["express"],
        "Set PLUNGEPOOL_ENDPOINT to direct",
    ),
    Case(
        "express",
        parameters("Auth=password") + database("kind=express"),
        1,
        "no",
        {EXPRESS: (60, 120)},
        ["express"],
        "Set PLUNGEPOOL_AUTH to iam.",
    ),
    Case("proxy", [], 0, "tight", {"Cluster": (0, 0)}, ["cpu"], "Set the parameter Percent to 2 (now 10)"),
    Case(
        "proxy",
        database("pinned-percent=100", "proxy-connections=40"),
        1,
        "no",
        {"Cluster": (0, 0)},
        ["pinning"],
        "Find what pins",
    ),
    Case(
        "proxy",
        database("proxy-connections=70"),
        0,
        "tight",
        {"Cluster": (0, 0)},
        ["proxy"],
        "Set ReservedConcurrentExecutions of Orders to 49 (now 100).",
    ),
    Case(
        "proxy",
        database("min-acu=0", "proxy-connections=70"),
        0,
        "tight",
        {"Cluster": (0, 0)},
        ["pause", "proxy"],
        "Set MinCapacity of Cluster to 0.5",
    ),
    Case("parameter-missing", [], 2, "unknown", {}, [], "--parameter-overrides Concurrency=…"),
    Case(
        "parameter-missing",
        parameters("Concurrency=20", "InstanceClass=db.t4g.large"),
        0,
        "yes",
        {"Database": (20, 40)},
        [],
    ),
    Case(
        "parameter-missing",
        parameters("Concurrency=20", "InstanceClass=db.q9.large"),
        2,
        "unknown",
        {},
        [],
        "--database Database:max-connections=N",
    ),
    Case(
        "parameter-missing",
        parameters("Concurrency=20", "InstanceClass=db.q9.large") + database("max-connections=200", "vcpu=2"),
        0,
        "yes",
        {"Database": (20, 40)},
        [],
    ),
    Case("unknown-host", [], 2, "unknown", {}, [], "--database orders-database:KEY=VALUE"),
    Case("unknown-host", database("max-connections=100"), 2, "unknown", {}, [], "--database orders-database:vcpu=N"),
    Case("unknown-host", database("orders-database:class=db.t4g.small"), 0, "yes", {"orders-database": (10, 20)}, []),
    Case(
        "unknown-host",
        database("class=db.t4g.small", "role-limit=8"),
        1,
        "no",
        {"orders-database": (10, 20)},
        ["role-limit"],
        "Set ReservedConcurrentExecutions of Orders to 8 (now 10).",
    ),
    Case("conditions", [], 0, "yes", {"Database": (12, 24)}, []),
    Case(
        "conditions",
        parameters("Stage=production"),
        1,
        "no",
        {"Database": (850, 1700)},
        ["cpu"],
        "Set ReservedConcurrentExecutions of Reports to 3 (now 700).",
    ),
    Case(
        "provisioned",
        [],
        1,
        "no",
        {"Database": (120, 240)},
        ["connections"],
        "Set ProvisionedConcurrentExecutions of Fulfil to 78 (now 120).",
    ),
    Case("unreserved", [], 2, "unknown", {}, [], "--account-concurrency N"),
    Case(
        "unreserved",
        ACCOUNT,
        1,
        "no",
        {"Database": (900, 3600)},
        ["connections", "cpu"],
        "Set ReservedConcurrentExecutions of List and Create to 19 each.",
    ),
    Case("unreserved", ["--account-concurrency", "10"], 0, "yes", {"Database": (10, 40)}, []),
    Case(
        "dsql",
        [],
        1,
        "no",
        {"Cluster": (1500, 3000)},
        ["dsql-connects"],
        "Set the parameter Concurrency to 1000 (now 1,500).",
    ),
    Case("dsql", parameters("Concurrency=1000"), 0, "yes", {"Cluster": (1000, 2000)}, []),
    Case(
        "dsql",
        parameters("Concurrency=100", "Pool=null"),
        1,
        "no",
        {"Cluster": (100, 100)},
        ["dsql-connects"],
        "Set the parameter Pool to tiny.",
    ),
    Case(
        "secret",
        [],
        1,
        "no",
        {"Database": (96, 192)},
        ["cpu", "connections"],
        "Set PLUNGEPOOL_POOL_SIZE of Orders to 1",
    ),
    Case(
        "not-ours",
        [],
        0,
        "yes",
        {"Database": (30, 60)},
        ["pool"],
        "State how many its pool may open: --function Plain:pool-size=N.",
    ),
    Case("not-ours", ["--function", "Plain:pool-size=15"], 1, "no", {"Database": (450, 900)}, ["connections", "cpu"]),
    Case(
        "streams",
        [],
        1,
        "no",
        {"Database": (80, 160)},
        ["cpu", "connections"],
        "Set ParallelizationFactor of ReadFast to 4 (now 10) and ParallelizationFactor of ReadSlow to 4",
    ),
    Case("readers", [], 0, "yes", {"Cluster (readers)": (1, 2)}, []),
    Case("condition-unknown", [], 2, "unknown", {}, [], "--parameter-overrides Stage=…"),
    Case("condition-unknown", parameters("Stage=test"), 0, "yes", {}, []),
    Case("no-database", [], 0, "yes", {}, []),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.template} {' '.join(case.options)}".strip() for case in CASES])
def test_each_template_has_its_verdict(case: Case) -> None:
    """Verdict, exit code, the connections that may be open, the rules and the first advice are as they must be."""
    result = run(case.template, "--json", *case.options)
    found = json.loads(result.stdout)
    findings = [finding for one in found["databases"] for finding in one["findings"]]
    assert {one["name"]: (one["open"]["low"], one["open"]["high"]) for one in found["databases"]} == case.open
    assert [finding["rule"] for finding in findings] == case.rules
    said = [*(finding["advice"] for finding in findings), *(need["option"] for need in found["missing"])]
    assert next(iter(said), "").startswith(case.advice)
    assert (result.exit_code, found["holds"]) == (case.exit_code, case.holds)


REFUSED = [
    ("broken", [], "broken.yaml, line 3 is not valid YAML"),
    ("not-a-template", [], "it has no Resources"),
    ("circle", [], "is nested in itself"),
    ("refused-by-sam", [], "property Evnets not defined"),
    ("missing", [], "missing.yaml cannot be read"),
    ("good", parameters("OrdersConcurency=1"), "has no parameter OrdersConcurency"),
    ("good", parameters("OrdersConcurrency"), "takes NAME=VALUE"),
    ("conditions", parameters("Stage=staging"), "takes one of test, production"),
    ("good", database("Clutser:class=db.r6g.large"), "the names are Cluster"),
    ("good", database("clas=db.r6g.large"), "did you mean class?"),
    ("good", database("max-connections=many"), "takes a number"),
    ("good", database("kind=oracle"), "takes one of instance"),
    ("two-databases", database("class=db.r6g.large"), "needs a name here"),
    ("good", ["--function", "concurrency=1"], "takes NAME:KEY=VALUE"),
]


@pytest.mark.parametrize(("template", "options", "text"), REFUSED)
def test_what_means_nothing_is_refused(template: str, options: list[str], text: str) -> None:
    """Exit code 2, and a sentence on standard error that says what is wrong."""
    result = run(template, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert text in " ".join(result.stderr.replace("│", " ").split())


def test_a_findings_line_is_where_the_change_is_made() -> None:
    """The line in JSON, and in SARIF, is that of the property that the advice speaks of."""
    finding = document("too-many")["databases"][0]["findings"][0]
    lines = (TEMPLATES / "too-many.yaml").read_text().splitlines()
    assert "ReservedConcurrentExecutions: !Ref OrdersConcurrency" in lines[finding["line"] - 1]


def test_sarif_names_files_from_the_folder_it_is_run_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finding is a result with a rule that the run describes, a relative path and a line."""
    monkeypatch.chdir(TEMPLATES)
    assert run("nested", "--sarif", str(tmp_path / "found.sarif")).exit_code == 1
    sarif = json.loads((tmp_path / "found.sarif").read_text())
    [run_of] = sarif["runs"]
    rules = [rule["id"] for rule in run_of["tool"]["driver"]["rules"]]
    results = run_of["results"]
    assert sarif["version"] == "2.1.0"
    assert [result["ruleId"] for result in results] == ["connections", "cpu"]
    assert [rules[result["ruleIndex"]] for result in results] == ["connections", "cpu"]
    location = results[0]["locations"][0]["physicalLocation"]
    assert location["artifactLocation"] == {"uri": "nested/workers.yaml"}
    assert location["region"] == {"startLine": 13}


def test_sarif_of_missing_inputs_says_what_to_say(tmp_path: Path) -> None:
    """What must be said first is a result of its own, so that a review does not pass in silence."""
    assert run("unreserved", "--sarif", str(tmp_path / "found.sarif")).exit_code == 2
    [result] = json.loads((tmp_path / "found.sarif").read_text())["runs"][0]["results"]
    assert (result["ruleId"], result["level"]) == ("missing", "error")
    assert "--account-concurrency" in result["message"]["text"]


def test_functions_that_are_not_counted_are_listed() -> None:
    """Who has no variables that lead to a database, and a nested stack that cannot be read, are named with a reason."""
    assert document("not-ours")["not_counted"] == [
        {"name": "Mailer", "why": "none of its variables leads to a database"}
    ]
    assert [each["name"] for each in document("nested")["not_counted"]] == ["Elsewhere"]


def test_no_password_is_shown() -> None:
    """A URL's password in a variable is in no output."""
    result = run("not-ours")
    assert "hunter2" not in result.stdout + result.stderr + run("not-ours", "--json").stdout


def test_samconfig_gives_parameters(tmp_path: Path) -> None:
    """As `sam deploy` does: from samconfig.toml beside the template, by --config-env; the command line is stronger."""
    path = tmp_path / "template.yaml"
    path.write_text((TEMPLATES / "too-many.yaml").read_text())
    (tmp_path / "samconfig.toml").write_text(
        "version = 0.1\n"
        '[default.deploy.parameters]\nparameter_overrides = "OrdersConcurrency=10"\n'
        '[large.deploy.parameters]\nparameter_overrides = ["ParameterKey=OrdersConcurrency,ParameterValue=20"]\n'
    )
    assert document(path)["databases"][0]["open"]["low"] == 10
    assert document(path, "--config-env", "large")["databases"][0]["open"]["low"] == 20
    assert document(path, *parameters("OrdersConcurrency=5"))["databases"][0]["open"]["low"] == 5
    assert run(path, "--config-env", "small").exit_code == 2


def test_the_page_shows_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template of docs/budget.md gives the output below it there, and its table of keys is the command's."""
    page = (ROOT / "docs" / "budget.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    template = next(block for language, block in blocks if language == "yaml" and "Resources:" in block)
    shown = next(block for _, block in blocks if "┏" in block)
    (tmp_path / "template.yaml").write_text(template)
    monkeypatch.chdir(tmp_path)
    result = run(Path("template.yaml"))
    assert [line.rstrip() for line in result.stdout.strip().splitlines()] == shown.strip().splitlines()
    table = page.partition("| option | key | meaning |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[2:4]] for line in table.splitlines()]
    keys = {key: meaning.replace("`", "") for key, meaning in rows}
    assert keys == DATABASE_KEYS | FUNCTION_KEYS | {"kind": "instance, aurora, express or dsql"}


OURS = [
    parameters("DatabaseMode=aurora", "VpcId=vpc-1", "SubnetIds=subnet-1,subnet-2"),
    parameters("DatabaseMode=aurora", "Endpoint=proxy", "VpcId=vpc-1", "SubnetIds=subnet-1,subnet-2"),
    parameters("DatabaseMode=instance", "VpcId=vpc-1", "SubnetIds=subnet-1,subnet-2"),
    [*parameters("Host=db.example.com", "ResourceId=db-A"), "--database", "class=db.t4g.micro"],
]


@pytest.mark.parametrize("options", OURS, ids=["aurora", "aurora behind a proxy", "instance", "existing"])
def test_our_own_template_holds(options: list[str]) -> None:
    """No mode of this application, with its defaults, can open more than its database has or its CPU bears."""
    found = document(ROOT / "template.yaml", *options)
    rules = {(finding["rule"], finding["level"]) for one in found["databases"] for finding in one["findings"]}
    assert found["missing"] == []
    # The demo's role has 20 connections, and a deployment may meet frozen environments of the version before.
    assert rules <= {("role-limit", "warning"), ("proxy", "warning")}
    counted = {function["name"] for one in found["databases"] for function in one["functions"]}
    assert {"HandleOrdersFunction", "FulfilOrdersFunction", "ReportSalesFunction"} <= counted


def test_our_own_template_asks_for_its_database() -> None:
    """Without a host, nothing is guessed."""
    result = run(ROOT / "template.yaml")
    assert result.exit_code == 2
    assert "--parameter-overrides Host=…" in result.stdout


def test_the_started_project_holds(tmp_path: Path) -> None:
    """The template that `sam init` makes holds on the smallest instance."""
    text = (ROOT / "templates" / "{{cookiecutter.project_name}}" / "template.yaml").read_text()
    for name, value in {"project_name": "mine", "database_user": "app", "runtime": "python3.13"}.items():
        text = text.replace("{{ cookiecutter." + name + " }}", value)
    path = tmp_path / "template.yaml"
    path.write_text(text.replace("{{ cookiecutter.architecture }}", "arm64"))
    options = [*parameters("Host=db.example.com", "ResourceId=db-A"), *database("class=db.t4g.micro")]
    found = document(path, *options)
    assert (found["holds"], found["databases"][0]["open"]) == ("yes", {"low": 20, "high": 40})


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], {"Reserving": 100, "Free": 1, "Preparing": 1}),
        (["Free:concurrency=30"], {"Reserving": 100, "Free": 30, "Preparing": 1}),
        (["Preparing:concurrency=5"], {"Reserving": 100, "Free": 1, "Preparing": 5}),
        (["Reserving:concurrency=40"], {"Reserving": 40, "Free": 1, "Preparing": 1}),
        (["Reserving:concurrency=500"], {"Reserving": 100, "Free": 1, "Preparing": 1}),
    ],
)
def test_what_is_invoked_from_elsewhere_counts_as_reserved_or_as_said(
    said: list[str], expected: dict[str, int]
) -> None:
    """A function without an event here may run as often as it reserves, and as it is said to, whichever is less."""
    found = document("invoked-elsewhere", *(word for text in said for word in ("--function", text)))
    (one,) = found["databases"]
    # At a deployment `tiny` has twice as many.
    assert {each["name"]: each["open"]["high"] / 2 for each in one["functions"]} == expected
