"""Many environments of one snapshot: what they share is its memory, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import wait_until

from plungepool_toolkit import environment as module
from plungepool_toolkit.environment import Environment, InitError

if TYPE_CHECKING:
    from collections.abc import Callable

# What a snapshot copies, and what each clone has to itself.
MEMORY = """
    import os, pathlib, random, tempfile, threading, time
    from snapshot_restore_py import register_after_restore

    forked = []
    os.register_at_fork(after_in_child=lambda: forked.append(1))
    restored = []
    register_after_restore(lambda: restored.append(os.getpid()))
    ticks = threading.Thread(target=lambda: time.sleep(3600), name="of init", daemon=True)
    ticks.start()
    (pathlib.Path(tempfile.gettempdir()) / "of init").write_text("warm")
    count = 0

    def handler(event, context):
        global count
        count += 1
        if event == "wait":
            time.sleep(3600)
        if event == "crash":
            os._exit(3)
        if event and event.get("rendezvous"):
            folder = pathlib.Path(event["rendezvous"])
            (folder / str(os.getpid())).touch()
            while len(list(folder.iterdir())) < event["parties"]:
                time.sleep(0.005)
        mine = pathlib.Path(tempfile.gettempdir())
        seen = sorted(path.name for path in mine.iterdir())
        (mine / "of an invocation").touch()
        print("count", count)
        return {"pid": os.getpid(), "count": count, "drawn": random.random(), "forked": forked, "restored": restored,
                "seen": seen, "threads": [thread.name for thread in threading.enumerate()]}
"""


def folder_of(tmp_path: Path, source: str) -> Path:
    """Return the folder of a function with this source."""
    task = tmp_path / "task"
    task.mkdir(exist_ok=True)
    (task / "app.py").write_text(dedent(source))
    return task


@pytest.fixture
def template(tmp_path: Path, lambda_environment: Callable[..., Environment]) -> Environment:
    """An environment at its snapshot."""
    return lambda_environment(folder_of(tmp_path, MEMORY), snap_start=True)


def state_of(pid: int) -> str:
    """Return the process's state as /proc shows it: T is stopped; none where there is no such process."""
    path = Path(f"/proc/{pid}/stat")
    return path.read_text().rpartition(")")[2].split()[0] if path.exists() else ""


def test_clones_are_alike_and_apart(template: Environment, tmp_path: Path) -> None:
    """
    Four clones, invoked at once: each has the memory of the snapshot, a pseudo-random sequence included, and a process,
    a log and a /tmp of its own; the environment that the snapshot was taken of goes on as if nothing had been.
    """
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    snapshot = template.snapshot()
    clones = [snapshot.restore() for _ in range(4)]
    assert {state_of(clone.pid) for clone in clones} == {"T"}
    answers: dict[int, Any] = {}

    def invoke(clone: Environment) -> None:
        answers[clone.pid] = clone.invoke({"rendezvous": str(meeting), "parties": 4})

    threads = [threading.Thread(target=invoke, args=(clone,)) for clone in clones]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    payloads = {pid: answer.payload for pid, answer in answers.items()}
    assert {pid: payload["pid"] for pid, payload in payloads.items()} == {clone.pid: clone.pid for clone in clones}
    assert {pid: payload["restored"] for pid, payload in payloads.items()} == {pid: [pid] for pid in payloads}
    assert {payload["count"] for payload in payloads.values()} == {1}
    assert len({payload["drawn"] for payload in payloads.values()}) == 1
    assert [payload["forked"] for payload in payloads.values()] == [[]] * 4
    assert [payload["seen"] for payload in payloads.values()] == [["of init"]] * 4
    assert not any("of init" in payload["threads"] for payload in payloads.values())
    assert [clone.log for clone in clones] == [("count 1",)] * 4
    assert {state_of(clone.pid) for clone in clones} == {"T"}

    own = template.invoke(None).payload
    assert (own["pid"], own["count"], own["seen"]) == (template.pid, 1, ["of init"])
    assert "of init" in own["threads"]
    template.shutdown()
    assert clones[0].invoke(None).payload["count"] == 2
    assert snapshot.restore().invoke(None).payload["count"] == 1


def test_a_clone_is_reset_and_shut_down_as_any_other(template: Environment) -> None:
    """After a time-out or a crash it is restored anew, from what the snapshot held; the end of one is no other's."""
    snapshot = template.snapshot()
    clone, other = snapshot.restore(), snapshot.restore()
    first = clone.invoke(None).payload
    clone.timeout_s = 0.3
    assert clone.invoke("wait").error["errorType"] == "Sandbox.Timedout"  # type: ignore[index]
    clone.timeout_s = 15
    second = clone.invoke(None)
    assert second.init_s is not None
    assert (second.payload["count"], second.payload["seen"]) == (1, ["of init"])
    assert second.payload["pid"] != first["pid"]
    crashed = clone.invoke("crash").error
    assert crashed is not None
    assert crashed["errorMessage"].endswith("exit status 3")
    assert clone.invoke(None).payload["count"] == 1
    os.kill(clone.pid, signal.SIGKILL)
    assert clone.invoke(None).error["errorMessage"].endswith("SIGKILL")  # type: ignore[index]
    clone.invoke(None)
    pid = clone.pid
    shutdown = clone.shutdown()
    assert shutdown is not None
    assert (shutdown.exit_code, shutdown.signalled) == (-signal.SIGKILL, False)
    assert not state_of(pid)
    assert other.invoke(None).payload["count"] == 1
    pid = other.pid
    snapshot.close()
    snapshot.close()
    assert not state_of(pid)
    with pytest.raises(RuntimeError, match="the snapshot is closed"):
        snapshot.restore()
    assert template.invoke(None).payload["count"] == 1


def test_sigterm_reaches_a_clone_whose_init_registered_an_extension(
    tmp_path: Path, lambda_environment: Callable[..., Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extension inside the process is part of the snapshot, as far as Lambda knows."""
    monkeypatch.setattr(module, "_SHUTDOWN_INTERNAL_S", 60.0)
    source = """
        import http.client, json, os, signal, threading
        def call(method, path, headers, body=None):
            connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
            connection.request(method, "/2020-01-01/extension/" + path, body, headers)
            response = connection.getresponse()
            return response.headers, response.read()
        inside = call("POST", "register", {"Lambda-Extension-Name": "inside"}, json.dumps({"events": []}))[0]
        headers = {"Lambda-Extension-Identifier": inside["Lambda-Extension-Identifier"]}
        threading.Thread(target=call, args=("GET", "event/next", headers), daemon=True).start()
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
        def handler(event, context): return os.environ["AWS_LAMBDA_RUNTIME_API"]
    """
    template = lambda_environment(folder_of(tmp_path, source), snap_start=True)
    clone = template.snapshot().restore()
    assert clone.invoke(None).payload != template.invoke(None).payload
    shutdown = clone.shutdown()
    assert shutdown is not None
    assert (shutdown.exit_code, shutdown.signalled) == (7, True)


def test_a_hook_that_fails_fails_its_clone_alone(
    tmp_path: Path, lambda_environment: Callable[..., Environment]
) -> None:
    """`Snapshot.restore` raises what `Environment.restore` does; the next one may succeed."""
    flag = tmp_path / "fail"
    source = f"""
        import os
        from snapshot_restore_py import register_after_restore
        @register_after_restore
        def check():
            if os.path.exists({str(flag)!r}): raise ValueError("not here")
        def handler(event, context): return 1
    """
    snapshot = lambda_environment(folder_of(tmp_path, source), snap_start=True).snapshot()
    flag.touch()
    with pytest.raises(InitError, match="not here") as caught:
        snapshot.restore()
    assert caught.value.phase == "restore"
    flag.unlink()
    clone = snapshot.restore()
    assert clone.invoke(None).payload == 1
    with pytest.raises(RuntimeError, match="no snapshot"):
        clone.snapshot()


def test_what_cannot_be_kept_is_refused(tmp_path: Path, lambda_environment: Callable[..., Environment]) -> None:
    """There is no snapshot on demand, after the restore, of a process that is gone, and of programs beside it."""
    task = folder_of(tmp_path, "def handler(event, context): return 1")
    with pytest.raises(RuntimeError, match="no snapshot"):
        lambda_environment(task).snapshot()
    restored = lambda_environment(task, snap_start=True)
    restored.restore()
    with pytest.raises(RuntimeError, match="no snapshot"):
        restored.snapshot()
    killed = lambda_environment(task, snap_start=True)
    os.kill(killed.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="cannot be taken, because the environment's process ended"):
        killed.snapshot()
    beside = Environment(task, snap_start=True, extensions=[sys.executable])
    with pytest.raises(RuntimeError, match="start it"):
        beside.snapshot()


def test_no_clone_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the process that drives clones ends each of them, frozen or at work, and removes every folder."""
    (tmp_path / "app.py").write_text("import time\ndef handler(event, context): time.sleep(60)\n")
    script = (
        "import threading, time; from plungepool_toolkit.environment import Environment\n"
        f"environment = Environment({str(tmp_path)!r}, timeout_s=60, snap_start=True).start()\n"
        "snapshot = environment.snapshot()\n"
        "busy, frozen = snapshot.restore(), snapshot.restore()\n"
        "print(environment.pid, busy.pid, frozen.pid, flush=True)\n"
        "busy.invoke(None)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        wait_until(lambda: [state_of(pid) for pid in pids] == ["T", "S", "T"])
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(map(state_of, pids)) and not list(tmp_path.glob("plungepool-*")))
