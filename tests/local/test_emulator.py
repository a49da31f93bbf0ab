"""AWS's own emulator of an environment, which shares Lambda's source: it takes the extension, and tells of the end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from elsewhere import wait_until

from plungepool_toolkit.network import free_port
from plungepool_toolkit.postgres import Postgres

ROOT = Path(__file__).parents[2]
FUNCTION = """
from plungepool import get_engine
from sqlalchemy import text

engine = get_engine()

def handler(event, context):
    with engine.begin() as connection:
        return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
"""


@pytest.fixture(scope="module")
def emulator() -> Path:
    """The emulator that the SAM CLI brings."""
    if not (ROOT / ".venv-sam" / "bin" / "sam").exists():
        command = [ROOT / "toolkit" / "set-up", "venv", ".venv-sam", "requirements/sam.txt"]
        subprocess.run(command, check=True, cwd=ROOT)
    machine = {"aarch64": "arm64"}.get(platform.machine(), "x86_64")
    (found,) = ROOT.glob(f".venv-sam/lib/python*/site-packages/samcli/local/rapid/aws-lambda-rie-{machine}")
    return found


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="on Python 3.11 the runtime client's main thread hears no signal"
)
@pytest.mark.parametrize("mode", ["extension", "off"])
def test_the_end_of_an_environment(emulator: Path, tmp_path: Path, mode: str) -> None:
    """It registers what asks once for its next event, and sends SIGTERM; without that the server hears nothing."""
    (tmp_path / "app.py").write_text(FUNCTION)
    (own, api), version = (free_port(), free_port()), f"{sys.version_info[0]}.{sys.version_info[1]}"
    with Postgres({"log_min_messages": "debug1", "log_disconnections": "on", "log_line_prefix": "[%p] "}) as server:
        variables = {
            "PATH": os.environ["PATH"],
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python{version}",
            "PLUNGEPOOL_URL": server.url(),
            "PLUNGEPOOL_TLS": "disable",
            "PLUNGEPOOL_SHUTDOWN": mode,
        }
        addresses = [f"127.0.0.1:{own}", "--runtime-api-address", f"127.0.0.1:{api}"]
        command = [emulator, "--runtime-interface-emulator-address", *addresses]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, sys.executable, "-m", "awslambdaric", "app.handler"],
                cwd=tmp_path,
                env=variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            answers: list[str] = []

            def answered() -> bool:
                connection = http.client.HTTPConnection("127.0.0.1", own, timeout=60)
                with contextlib.suppress(ConnectionRefusedError), contextlib.closing(connection):
                    connection.request("POST", "/2015-03-31/functions/function/invocations", "{}")
                    answers.append(connection.getresponse().read().decode())
                return bool(answers)

            wait_until(answered)
            pid = json.loads(answers[0])
            assert isinstance(pid, int), (answers, (tmp_path / "log").read_text())
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        wait_until(lambda: f"[{pid}] LOG:  disconnection:" in server.log)
        assert (f"[{pid}] DEBUG:  unexpected EOF" in server.log) is (mode == "off")
