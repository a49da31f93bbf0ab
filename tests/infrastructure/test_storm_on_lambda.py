"""`plungepool storm --aws`: a function that is deployed to an AWS emulator is really invoked, at once and by rounds."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from elsewhere import wait_until

from plungepool_toolkit.processes import GuardedProcess
from plungepool_toolkit.storm import results

ROOT = Path(__file__).parents[2]
MINISTACK = ROOT / ".venv-ministack"
REGION, ACCOUNT = "eu-west-1", "000000000000"
CODE = """
import time
def handler(event, context):
    time.sleep(0.2)
    if event.get("raise"):
        raise LookupError("no such day")
    return {"statusCode": event["status"]}
"""
TRUST = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
TEMPLATE = {
    "Resources": {
        "Role": {
            "Type": "AWS::IAM::Role",
            "Properties": {"AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": [TRUST]}},
        },
        "Answer": {
            "Type": "AWS::Lambda::Function",
            "Properties": {
                "Handler": "index.handler",
                "Runtime": "python3.13",
                "Timeout": 10,
                "MemorySize": 512,
                "Role": {"Fn::GetAtt": ["Role", "Arn"]},
                "Code": {"ZipFile": CODE},
            },
        },
    }
}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An emulated AWS with a stack of one function: the environment variables that lead to it."""
    if not (MINISTACK / "bin" / "ministack").exists():
        command = [ROOT / "toolkit" / "set-up", "venv", MINISTACK.name, "requirements/ministack.txt"]
        subprocess.run(command, check=True)
    scratch = tmp_path_factory.mktemp("cloud")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SAM_"))}
    emulator = clean | {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "MINISTACK_HOST": "127.0.0.1",
        "MINISTACK_REGION": REGION,
        "AUTH": "true",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(scratch),
        "DATABASE_HOST": "127.0.0.1",
        "PROXY_HOST": "127.0.0.1",
    }
    log = scratch / "emulator.log"
    command = [MINISTACK / "bin" / "python", Path(__file__).with_name("emulator.py")]
    process = GuardedProcess(command, output=log, environment=emulator, cwd=scratch, stop=[("SIGTERM", 15.0)])
    try:
        wait_until(lambda: answers(f"{url}/_ministack/health"), f"see {log}")
        formation = boto3.client(
            "cloudformation",
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id=ACCOUNT,
            aws_secret_access_key="test",
        )
        template = json.dumps(TEMPLATE)
        formation.create_stack(StackName="answers", TemplateBody=template, Capabilities=["CAPABILITY_IAM"])
        formation.get_waiter("stack_create_complete").wait(StackName="answers", WaiterConfig={"Delay": 1})
        yield clean | {
            "AWS_ACCESS_KEY_ID": ACCOUNT,
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": url,
            "COLUMNS": "120",
        }
    finally:
        process.stop()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def storm(environment: dict[str, str], *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "plungepool_toolkit", "storm", "--aws", *map(str, options)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )


def test_a_deployed_function_is_invoked(emulated: dict[str, str], tmp_path: Path) -> None:
    """So many at once and so often; prices come first; what it measured is the document that every storm writes."""
    event, file = tmp_path / "event.json", tmp_path / "storm.json"
    event.write_text('{"status": 200}')
    options = ("answers", "--event", event, "--environments", "4", "--rounds", "2", "--yes", "--json", file)
    done = storm(emulated, *options)
    assert (done.returncode, done.stderr) == (0, "")
    measured = results.Storm.from_json(json.loads(file.read_text()))
    (one,) = measured.strategies
    assert (one.endpoint, one.invocations, one.succeeded, one.answered) == ("lambda", 8, 8, (4, 4))
    assert one.latency_ms.p50 >= 200
    assert one.connections is None
    # 8 invocations of 10 s and half a GB at most.
    assert "0.0007 US dollars at most" in " ".join(done.stdout.split())
    assert done.stdout.index("US dollars") < done.stdout.index("8 of 8")


@pytest.mark.parametrize(("event", "code"), [({"raise": True}, "HandlerError"), ({"status": 503}, "status 503")])
def test_what_a_deployed_function_fails_by(
    emulated: dict[str, str], tmp_path: Path, event: dict[str, object], code: str
) -> None:
    """An error of the function, and a status from 500 on, are failures by their name."""
    given, file = tmp_path / "event.json", tmp_path / "storm.json"
    given.write_text(json.dumps(event))
    options = ("answers", "--event", given, "--environments", "2", "--rounds", "1", "--yes", "--json", file)
    assert storm(emulated, *options).returncode == 0
    (one,) = results.Storm.from_json(json.loads(file.read_text())).strategies
    assert one.succeeded == 0
    ((failure, count),) = one.failures.items()
    assert code in failure
    assert count == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("answers",), "there is no terminal to ask"),
        (("answers", "--function", "Question", "--yes"), "give --function, one of Answer"),
        (("elsewhere", "--yes"), "elsewhere"),
    ],
)
def test_nothing_is_invoked_unasked(emulated: dict[str, str], options: tuple[str, ...], said: str) -> None:
    """Without a yes, and where there is no such stack or function, it says so and exits by 2."""
    done = storm(emulated, *options)
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stdout.split())
