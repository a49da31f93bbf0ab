"""`plungepool budget` with what nobody means to give it: it says what is wrong, or what it does not know, and ends."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from plungepool import Settings, SettingsError
from plungepool_toolkit import command
from plungepool_toolkit.budget.databases import POOL_SIZE, TAKES
from plungepool_toolkit.command import application

if TYPE_CHECKING:
    from pathlib import Path

SAM = "AWS::Serverless-2016-10-31"
HOST = "PLUNGEPOOL_HOST: !GetAtt Database.Endpoint.Address"


def template(
    *properties: str,
    head: str = "",
    more: str = "",
    variables: str = HOST,
    events: str = "{Api: {Type: HttpApi}}",
    transform: str = SAM,
    database: str = "{Engine: postgres, DBInstanceClass: db.r6g.large}",
) -> str:
    """Return a template of one function and one database."""
    own = textwrap.indent("\n".join(properties), " " * 6)
    return f"""Transform: {transform}
{head}
Resources:
  Orders:
    Type: AWS::Serverless::Function
    Properties:
      Runtime: python3.13
      Handler: app.handler
      CodeUri: src/
      Events: {events}
      Environment: {{Variables: {{{variables}}}}}
{own}
  Database: {{Type: AWS::RDS::DBInstance, Properties: {database}}}
{textwrap.indent(more, "  ")}
"""


def run(folder: Path, text: str | bytes, *options: str, columns: int = 200) -> Any:
    """Run the command on one template. An exception that is no way to end a command is raised."""
    path = folder / "template.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = CliRunner().invoke(application, ["budget", str(path), *options], env={"COLUMNS": str(columns)})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def said(result: Any) -> str:
    """Return what was printed as one line, without the frame around an error."""
    return " ".join(word for word in result.output.split() if word not in ("│", "╭", "╰"))


RESERVED = "ReservedConcurrentExecutions: "


def another(name: str, reserved: str) -> str:
    """Return one more function for a template, whose database is reached without a proxy."""
    return f"""{name}:
  Type: AWS::Serverless::Function
  Properties:
    Runtime: python3.13
    Handler: app.handler
    CodeUri: src/
    ReservedConcurrentExecutions: {reserved}
    Environment: {{Variables: {{{HOST}}}}}
"""


@pytest.mark.parametrize(
    "function",
    [
        *("!Ref [a]", "!Sub [1]", "!Sub {a: b}", "!Join x", "!Select x", "!Select ['²', [1]]", "!Split x", "!If [A]"),
        *("!If [[a], 1, 2]", "!GetAtt []", "!FindInMap x", "!Length 3", "!ImportValue x", "!If [Bad, 1, 2]"),
        *("!If [Nothing, 1, 2]", "'{{resolve:ssm:/a:1}}'", "20.5", "-1", "'²'", "'٣'", "true", "[1]", "{a: 1}"),
        *(".nan", ".inf", "1" * 30),
    ],
)
def test_what_is_not_known_is_asked_for_and_can_be_said(function: str, tmp_path: Path) -> None:
    """Of a number that cannot be known the option is named, and with that option there is a verdict."""
    text = template(RESERVED + function, head="Conditions: {Bad: !Equals [x]}")
    asked = run(tmp_path, text)
    assert (asked.exit_code, "--function Orders:concurrency=N" in said(asked)) == (2, True)
    assert run(tmp_path, text, "--function", "Orders:concurrency=20").exit_code == 0


@pytest.mark.parametrize(
    ("text", "option", "answer"),
    [
        (template(RESERVED + "20", "Timeout: !ImportValue x"), "--function Orders:timeout=N", "Orders:timeout=30"),
        (
            template(
                events="{Tick: {Type: Schedule, Properties: {Schedule: !ImportValue x}}}",
            ),
            "--function Orders:concurrency=N",
            "Orders:concurrency=2",
        ),
        (
            template(
                events="{Q: {Type: SQS, Properties: {Queue: !GetAtt Queue.Arn, ScalingConfig: "
                "{MaximumConcurrency: !ImportValue x}}}}",
                more="Queue: {Type: AWS::SQS::Queue}",
            ),
            "--function Orders:concurrency=N",
            "Orders:concurrency=2",
        ),
    ],
)
def test_what_is_asked_of_a_function_can_be_said(text: str, option: str, answer: str, tmp_path: Path) -> None:
    """The option that is asked for is the one that answers."""
    asked = run(tmp_path, text)
    assert (asked.exit_code, option in said(asked)) == (2, True)
    assert run(tmp_path, text, "--function", answer).exit_code == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "has no Resources"),
        (b"\0", "special characters are not allowed"),
        (template().encode("utf-16"), "it is not UTF-8"),
        (template() + "#" * 1_000_000, "larger than CloudFormation accepts"),
        ("Resources: {A: {Type: X, P: " + "[" * 150 + "]" * 150 + "}}", "nested too deeply"),
        (template(RESERVED + "900", RESERVED + "20"), "the key ReservedConcurrentExecutions occurs twice, on"),
        (template(head="Parameters: [a]"), "line 2: Parameters is not a map"),
        (template(head="Conditions: [a]"), "line 2: Conditions is not a map"),
        (template(head="Globals: [a]"), "line 2: Globals is not a map"),
        (template(transform="Other"), f"AWS::Serverless::Function needs the line Transform: {SAM}"),
        (template(more="'Fn::ForEach::X': [N, [a], {'Q${N}': hello}]"), "Qa, which a loop generates, has no Type"),
        (template(more="'Fn::ForEach::X': [N, !ImportValue x, {'Q${N}': {Type: X}}]"), "Fn::ForEach::X is not known"),
        (
            template(more="N: {Type: AWS::CloudFormation::Stack, Properties: {TemplateURL: n.yaml, Parameters: [a]}}"),
            "Parameters of N is not a map",
        ),
    ],
)
def test_what_is_no_template_is_said(text: str | bytes, problem: str, tmp_path: Path) -> None:
    """A file that cannot be read for what it is ends with exit code 2 and why, and with no traceback."""
    result = run(tmp_path, text)
    assert (result.exit_code, problem in said(result)) == (2, True), result.output


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/proc/self", "."])
def test_what_is_no_file_is_said(name: str) -> None:
    """A device without an end, one without a beginning and a folder are refused, and none is read for ever."""
    result = CliRunner().invoke(application, ["budget", name])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + template(RESERVED + "20").encode(),
        template(RESERVED + "20").replace("\n", "\r\n"),
        template(RESERVED + "20", "<<: &shared {MemorySize: 512}", "<<: *shared"),
        template(RESERVED + "20", head="Parameters: {A: {Type: Number, Default: 1, AllowedValues: 7}}"),
        template(RESERVED + "20.0"),
        json.dumps(
            {
                "Resources": {
                    "Orders": {
                        "Type": "AWS::Lambda::Function",
                        "Properties": {
                            "ReservedConcurrentExecutions": 20,
                            "Environment": {"Variables": {"DATABASE": {"Ref": "Database"}}},
                        },
                    },
                    "Database": {
                        "Type": "AWS::RDS::DBInstance",
                        "Properties": {"Engine": "postgres", "DBInstanceClass": "db.r6g.large"},
                    },
                }
            },
            indent="\t",
        ),
    ],
    ids=["mark", "CRLF", "merged", "allowed", "whole", "JSON with tabs"],
)
def test_what_is_odd_is_read(text: str | bytes, tmp_path: Path) -> None:
    """What CloudFormation takes is taken: a byte order mark, other ends of lines, merged keys, tabs in JSON."""
    result = run(tmp_path, text)
    assert (result.exit_code, "20 to 40" in result.output) == (0, True), result.output


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (template(RESERVED + "20", transform=f"[Ours, {SAM}]"), "the transform Ours"),
        (
            template(RESERVED + "20", more="'Fn::Transform': {Name: AWS::Include, Parameters: {Location: s3://x}}"),
            "Fn::Transform",
        ),
        (template(RESERVED + "20", more="M: {Type: Our::Shop::Db::MODULE}"), "M"),
        (template(RESERVED + "20", more="S: {Type: AWS::CloudFormation::StackSet}"), "S"),
        (
            template(
                RESERVED + "20", more="N: {Type: AWS::CloudFormation::Stack, Properties: {TemplateURL: 'https://x/y'}}"
            ),
            "N",
        ),
    ],
)
def test_what_is_not_seen_is_listed(text: str, name: str, tmp_path: Path) -> None:
    """Macros, modules, stack sets and stacks elsewhere may hold functions: none is passed over in silence."""
    result = run(tmp_path, text, "--json")
    assert [one["name"] for one in json.loads(result.stdout)["not_counted"]] == [name]


@pytest.mark.parametrize(
    ("value", "head"),
    [
        ("!If [Large, 900, 20]", "Conditions: {Large: !Equals [!Ref Stage, prod]}"),
        ("!FindInMap [Sizes, !Ref Stage, C]", "Mappings: {Sizes: {prod: {C: 900}}}"),
        ("!Select [0, [900]]", ""),
    ],
)
def test_a_parameter_that_only_chooses_is_not_to_be_set(value: str, head: str, tmp_path: Path) -> None:
    """A stage that decides which number is taken is no number: the advice names the property and not the parameter."""
    head = "Parameters: {Stage: {Type: String, Default: prod}}\n" + head
    result = run(tmp_path, template(RESERVED + value, head=head))
    assert "Set ReservedConcurrentExecutions of Orders to 38 (now 900)." in said(result)


def test_a_parameter_whose_value_turns_itself_off_is_to_be_set(tmp_path: Path) -> None:
    """A parameter that is 0 for none and the value otherwise is what to set where there is none."""
    head = "Parameters: {Most: {Type: Number, Default: 0}}\nConditions: {Bound: !Not [!Equals [!Ref Most, 0]]}"
    text = template(RESERVED + "!If [Bound, !Ref Most, !Ref AWS::NoValue]", head=head)
    assert "Set the parameter Most to 38" in said(run(tmp_path, text, "--account-concurrency", "1000"))


def test_functions_that_share_a_parameter_are_told_one_value(tmp_path: Path) -> None:
    """Two functions by one parameter, and two findings of each: one value, with which the template holds."""
    other = another("Reports", "!Ref Most")
    text = template(
        RESERVED + "!Ref Most",
        "Timeout: 30",
        head="Parameters: {Most: {Type: Number, Default: 2000}}",
        more=other,
    )
    findings = json.loads(run(tmp_path, text, "--json").stdout)["databases"][0]["findings"]
    assert {one["advice"] for one in findings if "Most" in one["advice"]} == {
        "Set the parameter Most to 19 (now 2,000)."
    }
    assert run(tmp_path, text, "--parameter-overrides", "Most=19").exit_code == 0


@pytest.mark.parametrize(
    ("variable", "value"), [("POOL", "Adaptive"), ("POOL_SIZE", "0"), ("POOL_SIZE", "2.5"), ("ENDPOINT", "PROXY")]
)
def test_a_setting_that_would_be_refused_is_said(variable: str, value: str, tmp_path: Path) -> None:
    """A function that would not start with its settings is not counted as if it did."""
    text = template(RESERVED + "20", variables=f"{HOST}, PLUNGEPOOL_{variable}: '{value}'")
    result = run(tmp_path, text)
    assert (result.exit_code, f"PLUNGEPOOL_{variable} of Orders has a value" in said(result)) == (1, True)


def test_what_is_refused_is_what_the_settings_refuse() -> None:
    """The values that the budget takes for good are those that the package takes, and so is the default."""
    environ = {"PLUNGEPOOL_HOST": "h", "PLUNGEPOOL_USER": "u", "PLUNGEPOOL_PASSWORD": "p", "AWS_REGION": "eu-west-1"}
    assert Settings.from_env(environ).pool_size == POOL_SIZE
    for variable, takes in TAKES.items():
        if variable == "POOL_SIZE":
            least, most = map(int, takes.split(" to "))
            assert [Settings.from_env(environ | {"PLUNGEPOOL_POOL_SIZE": str(n)}).pool_size for n in (least, most)]
            refused = [str(least - 1), str(most + 1)]
        else:
            refused = ["other"]
        for value in refused:
            with pytest.raises(SettingsError, match=f"PLUNGEPOOL_{variable}") as error:
                Settings.from_env(environ | {f"PLUNGEPOOL_{variable}": value})
            for each in takes.split(", ") if variable != "POOL_SIZE" else ():
                assert each in str(error.value)


@pytest.mark.parametrize("names", [("Db.example.com", "db.example.com"), ("db.example.com.", " db.example.com")])
def test_one_database_by_two_names_of_dns_is_one(names: tuple[str, str], tmp_path: Path) -> None:
    """A name's case, its last dot and blanks around it make no other host: both uses count against one database."""
    one, other = names
    text = template(RESERVED + "20", variables=f"PLUNGEPOOL_HOST: '{one}', REPORTS_PLUNGEPOOL_HOST: '{other}'")
    found = json.loads(run(tmp_path, text, "--json", "--database", "class=db.r6g.large").stdout)
    assert [(each["name"], each["open"]["low"]) for each in found["databases"]] == [("db.example.com", 40)]


def test_which_database_a_condition_chooses_is_asked_for(tmp_path: Path) -> None:
    """Where a condition that nobody knows decides which database is used, its parameter is asked for."""
    head = "Parameters: {Stage: {Type: String}}\nConditions: {Own: !Equals [!Ref Stage, prod]}"
    text = template(RESERVED + "20", head=head, variables=f"{HOST.replace('!', '!If [Own, !')}, other.example.com]")
    result = run(tmp_path, text, "--json")
    assert [one["option"] for one in json.loads(result.stdout)["missing"]] == ["--parameter-overrides Stage=…"]
    assert json.loads(result.stdout)["not_counted"] == []
    assert run(tmp_path, text, "--parameter-overrides", "Stage=prod").exit_code == 0


@pytest.mark.parametrize(
    ("expression", "timeout_s", "at_once"),
    [
        ("rate(1 minute)", 900, 15),
        ("cron(* * * * ? *)", 900, 15),
        ("cron(0/5 * * * ? *)", 900, 3),
        ("cron(0,10,15 * * * ? *)", 900, 3),
        ("cron(10-12 * * * ? *)", 120, 2),
        ("cron(0 8 * * ? *)", 900, 1),
        ("cron(WAT * * * ? *)", 120, 2),
        ("at(2027-01-01T00:00:00)", 900, 1),
    ],
)
def test_a_schedule_overlaps_itself(expression: str, timeout_s: int, at_once: int, tmp_path: Path) -> None:
    """A schedule invokes again while the last may still run: as often as its time-out is longer than its pause."""
    events = f"{{Tick: {{Type: ScheduleV2, Properties: {{ScheduleExpression: '{expression}'}}}}}}"
    found = json.loads(run(tmp_path, template(f"Timeout: {timeout_s}", events=events), "--json").stdout)
    assert found["databases"][0]["functions"][0]["environments"]["low"] == at_once


def test_a_source_that_is_off_invokes_nothing(tmp_path: Path) -> None:
    """A queue whose mapping is disabled counts as what may be there now and then, and says so."""
    events = "{Q: {Type: SQS, Properties: {Queue: !GetAtt Queue.Arn, Enabled: false}}}"
    text = template(events=events, more="Queue: {Type: AWS::SQS::Queue}")
    assert "an event source that is disabled" in said(run(tmp_path, text))


@pytest.mark.parametrize(
    "options",
    [
        ("--parameter-overrides", "A='x"),
        ("--database", "database-ms=0"),
        ("--database", "vcpu=0"),
        ("--database", "proxy-percent=500"),
        ("--database", "max-acu=9999"),
        ("--database", "max-connections=-1"),
        ("--function", "Orders:pool-size=0"),
        ("--function", "Orders:timeout=0"),
        ("--function", "Orders:concurrency=99999999"),
        ("--sarif", "no-such-folder/budget.sarif"),
        ("--config-env", "nothing"),
    ],
)
def test_an_option_that_means_nothing_is_a_usage_error(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers out of bounds, words that do not end and files that cannot be written end with exit code 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samconfig.toml").write_text("version = 0.1\ndefault = 'odd'\n")
    assert run(tmp_path, template(RESERVED + "20"), *options).exit_code == 2


def test_names_are_no_markup_and_are_not_broken(tmp_path: Path) -> None:
    """At 40, 60 and 80 columns a function's and a database's name stand whole in one line, whatever is in them."""
    name = "CreateOrdersFromTheWarehousesQueueOfEveryNight"
    text = template(RESERVED + "20", variables="PLUNGEPOOL_HOST: 'a[/b]:smile:.example.com'").replace(
        "Orders:", f"{name}:"
    )
    for columns in (40, 60, 80, 200):
        result = run(tmp_path, text, "--database", "class=db.r6g.large", columns=columns)
        assert result.exit_code == 0
        assert any(name in line for line in result.output.splitlines())
        assert any("a[/b]:smile:.example.com" in line for line in result.output.splitlines())
        assert "20 to 40" in result.output


# Without SAM's transform, whose import takes most of the time.
PLAIN = """{"Resources": {
 "Orders": {"Type": "AWS::Lambda::Function", "Properties": {"ReservedConcurrentExecutions": 900,
  "Environment": {"Variables": {"PLUNGEPOOL_HOST": {"Fn::GetAtt": "Database.Endpoint.Address"}}}}},
 "Database": {"Type": "AWS::RDS::DBInstance", "Properties": {"Engine": "postgres", "DBInstanceClass": "db.r6g.large"}}
}}"""
COMMAND = [sys.executable, "-m", "plungepool_toolkit", "budget"]


def test_a_terminal_without_the_signs_shows_others(tmp_path: Path) -> None:
    """Where the terminal's encoding has no cross and no arrow, something else stands for them."""
    path = tmp_path / "template.json"
    path.write_text(PLAIN)
    environ = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    ended = subprocess.run([*COMMAND, str(path)], env=environ, capture_output=True, check=False, timeout=60)
    assert (ended.returncode, b"Traceback" in ended.stderr) == (1, False), ended.stderr
    assert b"It cannot hold." in ended.stdout


def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    """A pipe that is closed before the document is written ends the command, and says nothing more."""
    path = tmp_path / "template.json"
    path.write_text(PLAIN)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        ended = subprocess.run([*COMMAND, "--json", str(path)], stdout=out, stderr=subprocess.PIPE, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, b"")


DSQL = "PLUNGEPOOL_HOST: !GetAtt Data.Endpoint, PLUNGEPOOL_AUTH: dsql"


@pytest.mark.parametrize(
    ("variables", "exit_code"),
    [
        (DSQL, 0),
        (f"{DSQL}, PLUNGEPOOL_POOL: adaptive", 1),
        (DSQL.replace("dsql", "iam"), 1),
        (f"{HOST}, PLUNGEPOOL_AUTH: dsql", 1),
        (f"{HOST}, PLUNGEPOOL_AUTH: iam", 0),
    ],
)
def test_what_aurora_dsql_does_not_take_is_an_error(variables: str, exit_code: int, tmp_path: Path) -> None:
    """A login or a pool that the server, or Plungepool before it, refuses does not hold."""
    text = template(RESERVED + "20", variables=variables, more="Data: {Type: AWS::DSQL::Cluster}")
    result = run(tmp_path, text)
    assert (result.exit_code, "PLUNGEPOOL_" in said(result)) == (exit_code, exit_code == 1)


PROXY = """Proxy: {Type: AWS::RDS::DBProxy, Properties: {DBProxyName: one, EngineFamily: POSTGRESQL}}
Targets:
  Type: AWS::RDS::DBProxyTargetGroup
  Properties: {DBProxyName: !Ref Proxy, DBInstanceIdentifiers: [!Ref Database], TargetGroupName: default}
"""


def test_a_proxy_that_takes_all_is_to_leave_the_rest(tmp_path: Path) -> None:
    """Where a proxy may open every connection and a function comes without it, the proxy's share is what to change."""
    other = another("Direct", "10")
    through = "PLUNGEPOOL_HOST: !GetAtt Proxy.Endpoint, PLUNGEPOOL_ENDPOINT: proxy"
    text = template(RESERVED + "20", variables=through, more=PROXY + other)
    assert "Set MaxConnectionsPercent of Targets to 98 (now 100), so that the proxy leaves" in said(run(tmp_path, text))
    mended = text.replace("TargetGroupName: default", "ConnectionPoolConfigurationInfo: {MaxConnectionsPercent: 98}")
    assert "It holds." in said(run(tmp_path, mended))


def test_the_advice_for_adaptive_is_what_holds(tmp_path: Path) -> None:
    """With less at work more find a kept connection: the value that is advised holds, and the next does not."""
    variables = f"{HOST}, PLUNGEPOOL_POOL: adaptive"
    database = "{Engine: postgres, DBInstanceClass: db.t4g.micro}"

    def reserving(number: int) -> str:
        return template(RESERVED + str(number), "Timeout: 30", variables=variables, database=database)

    advised = "Set ReservedConcurrentExecutions of Orders to 38 (now 300)."
    assert said(run(tmp_path, reserving(300))).count(advised) == 2
    rules = [
        [
            one["rule"]
            for one in json.loads(run(tmp_path, reserving(number), "--json").stdout)["databases"][0]["findings"]
        ]
        for number in (38, 39)
    ]
    assert ["cpu" in one for one in rules] == [False, True]


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where standard output has no room, the command says so, and any other error is not hidden by that."""

    def fail(number: int) -> None:
        def application() -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(command, "application", application)
        command.main()

    with pytest.raises(SystemExit, match="cannot be written: No space left"):
        fail(errno.ENOSPC)
    with pytest.raises(OSError, match="Input/output"):
        fail(errno.EIO)


@pytest.mark.parametrize("columns", [58, 59, 60, 62, 66, 70])
def test_nothing_of_a_table_is_cut_off(columns: int, tmp_path: Path) -> None:
    """A table that is printed is no wider than the terminal, and has all of its words."""
    result = run(tmp_path, template(RESERVED + "20"), columns=columns)
    lines = [line for line in result.output.splitlines() if line[:1] in "┏┃┡│└"]
    assert max((len(line) for line in lines), default=0) <= columns
    assert result.output.count("20 to 40") >= 2
    assert all(line[-1:] in "┓┃┩│┘" for line in lines)
    assert all(word in result.output for word in ("environments", "reserved", "connections"))
