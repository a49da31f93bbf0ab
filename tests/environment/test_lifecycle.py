"""The toolkit's Lambda environments do to a function what Lambda's documentation says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import wait_until

from plungepool_toolkit import environment as module
from plungepool_toolkit.environment import Environment, InitError

if TYPE_CHECKING:
    from collections.abc import Callable

# Registers an extension inside the process, which is what makes Lambda send SIGTERM to a runtime.
INTERNAL_EXTENSION = """
    import http.client, json, os, signal, sys, threading

    def call(method, path, headers, body=None):
        connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
        connection.request(method, "/2020-01-01/extension/" + path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()

    def register(events):
        return call("POST", "register", {"Lambda-Extension-Name": "inside"}, json.dumps({"events": events}))

    identifier = register([])[1]["Lambda-Extension-Identifier"]
    headers = {"Lambda-Extension-Identifier": identifier}
    threading.Thread(target=call, args=("GET", "event/next", headers), daemon=True).start()
"""


@pytest.fixture
def function(tmp_path: Path, lambda_environment: Callable[..., Environment]) -> Any:
    """Start an environment of a function whose source is given."""

    def start(source: str, **keywords: Any) -> Any:
        task = tmp_path / "task"
        task.mkdir(exist_ok=True)
        (task / "app.py").write_text(dedent(source))
        return lambda_environment(task, **keywords)

    return start


def state_of(pid: int) -> Any:
    """Return the process's state as /proc shows it: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_an_invocation_gives_what_the_handler_returns(function: Callable[..., Environment]) -> None:
    """The event reaches the handler and its result comes back, with the lines it wrote; init runs once."""
    environment = function("""
        import os
        print("init")
        def handler(event, context):
            print("got", event["n"])
            return {"n": event["n"] + 1, "pid": os.getpid()}
    """)
    first, second = environment.invoke({"n": 1}), environment.invoke({"n": 2})
    assert first.payload == {"n": 2, "pid": environment.pid}
    assert second.payload == {"n": 3, "pid": environment.pid}
    assert first.error is None
    assert first.log == ("got 1",)
    assert environment.log == ("init", "got 1", "got 2")
    assert first.request_id != second.request_id


def test_the_context_is_lambdas(function: Callable[..., Environment]) -> None:
    """Request id, deadline, names, client context and trace id reach the handler as on AWS."""
    environment = function(
        """
        import os
        def handler(event, context):
            return {
                "id": context.aws_request_id,
                "left": context.get_remaining_time_in_millis(),
                "name": context.function_name,
                "arn": context.invoked_function_arn,
                "memory": context.memory_limit_in_mb,
                "client": context.client_context.custom,
                "trace": os.environ["_X_AMZN_TRACE_ID"],
                "execution": os.environ["AWS_EXECUTION_ENV"],
                "credentials": [name for name in os.environ if "SECRET" in name or "ACCESS_KEY" in name],
                "home": os.environ["HOME"],
            }
        """,
        timeout_s=60,
        function_name="shop",
        memory_mb=512,
    )
    seen = environment.invoke(
        None, request_id="r-1", trace_id="Root=1-a-b;Sampled=0", client_context={"custom": {"k": "ü"}}
    ).payload
    assert seen["id"] == "r-1"
    assert 30_000 < seen["left"] <= 60_000
    assert seen["name"] == "shop"
    assert seen["arn"].endswith(":function:shop")
    assert seen["memory"] == "512"
    assert seen["client"] == {"k": "ü"}
    assert seen["trace"] == "Root=1-a-b;Sampled=0"
    assert seen["execution"] == f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}"
    assert seen["credentials"] == []
    assert seen["home"] != os.environ.get("HOME")


def test_it_is_frozen_between_invocations(function: Callable[..., Environment]) -> None:
    """After init and after each invocation the process is stopped, and no thread of it runs at all."""
    environment = function("""
        import threading, time
        def tick():
            while True:
                time.sleep(0.001)
        threading.Thread(target=tick, daemon=True).start()
        def handler(event, context):
            time.sleep(0.05)
    """)

    def switches() -> list[Any]:
        tasks = [f"{environment.pid}/task/{path.name}" for path in Path(f"/proc/{environment.pid}/task").iterdir()]
        wait_until(lambda: {state_of(task) for task in tasks} == {"T"})
        lines = [line for task in tasks for line in Path(f"/proc/{task}/status").read_text().splitlines()]
        return [line for line in lines if "switches" in line]

    assert state_of(environment.pid) == "T"
    frozen = switches()
    environment.invoke(None)
    assert state_of(environment.pid) == "T"
    assert switches() != frozen
    frozen = switches()
    time.sleep(0.2)  # awake, the thread would have slept and woken a hundred times
    assert switches() == frozen


def test_child_processes_are_frozen_and_ended_with_it(function: Callable[..., Environment]) -> None:
    """What the function starts belongs to the environment."""
    environment = function("""
        import subprocess
        child = subprocess.Popen(["sleep", "60"])
        def handler(event, context):
            return child.pid
    """)
    child = environment.invoke(None).payload
    wait_until(lambda: state_of(child) == "T")
    environment.close()
    wait_until(lambda: not Path(f"/proc/{child}").exists() or state_of(child) == "Z")


def test_an_exception_is_the_error_document(function: Callable[..., Environment]) -> None:
    """The runtime's own error document comes back, and the environment goes on."""
    environment = function("""
        class OutOfStock(Exception): pass
        def handler(event, context):
            raise OutOfStock("no goggles")
    """)
    pid = environment.pid
    invocation = environment.invoke(None)
    assert invocation.payload is None
    assert invocation.error["errorType"] == "OutOfStock"
    assert invocation.error["errorMessage"] == "no goggles"
    assert "raise OutOfStock" in "".join(invocation.error["stackTrace"])
    assert environment.invoke(None).error["errorMessage"] == "no goggles"
    assert environment.pid == pid


def test_an_init_error_has_type_text_and_log(function: Callable[..., Environment]) -> None:
    """A module that raises at import is an InitError with the exception's own text."""
    with pytest.raises(InitError, match="ValueError: PLUNGEPOOL_HOST is missing") as caught:
        function("""
            print("before")
            raise ValueError("PLUNGEPOOL_HOST is missing")
        """)
    assert caught.value.phase == "init"
    assert caught.value.error["errorType"] == "ValueError"
    assert caught.value.log[0] == "before"


@pytest.mark.parametrize(
    ("source", "kind", "text"),
    [
        ("import os; os._exit(3)", "Runtime.ExitError", "exit status 3"),
        ("import time; time.sleep(60)", "Sandbox.Timedout", "longer than 0.5 s"),
        ("import no_such_module", "Runtime.ImportModuleError", "No module named 'no_such_module'"),
    ],
)
def test_other_ways_to_fail_at_init(function: Callable[..., Environment], source: str, kind: str, text: str) -> None:
    """A process that ends, hangs or lacks a module at init is told by Lambda's error types."""
    with pytest.raises(InitError) as caught:
        function(source, init_timeout_s=0.5 if kind == "Sandbox.Timedout" else 10)
    assert caught.value.error["errorType"] == kind
    assert text in caught.value.error["errorMessage"]


COUNTING = """
    import os, time
    def handler(event, context):
        if event == "hang": time.sleep(60)
        if event == "crash": os._exit(3)
        if event == "killed": os.kill(os.getpid(), 9)
        return os.getpid()
"""


@pytest.mark.parametrize(
    ("event", "kind", "text"),
    [
        ("hang", "Sandbox.Timedout", "Task timed out after 0.50 seconds"),
        ("crash", "Runtime.ExitError", "exit status 3"),
        ("killed", "Runtime.ExitError", "SIGKILL"),
    ],
)
def test_a_reset_environment_is_initialised_again(
    function: Callable[..., Environment], event: Any, kind: str, text: str
) -> None:
    """After a time-out or a crash the next invocation runs in a new process, and says that it was initialised."""
    environment = function(COUNTING)
    before = environment.invoke(None).payload
    environment.timeout_s = 0.5 if event == "hang" else 15
    failed = environment.invoke(event)
    environment.timeout_s = 15
    assert failed.error["errorType"] == kind
    assert text in failed.error["errorMessage"]
    assert failed.request_id in failed.error["errorMessage"]
    after = environment.invoke(None)
    assert after.init_s > 0
    assert after.payload == environment.pid != before
    assert environment.invoke(None).init_s is None


def test_an_init_error_after_a_reset_is_the_invocations_error(
    function: Callable[..., Environment], tmp_path: Path
) -> None:
    """Lambda initialises within the invocation then, so the caller gets the error of init."""
    marker = tmp_path / "broken"
    environment = function(f"""
        import os
        if os.path.exists({str(marker)!r}):
            raise RuntimeError("broken meanwhile")
        def handler(event, context):
            os._exit(1)
    """)
    environment.invoke(None)
    marker.touch()
    assert environment.invoke(None).error["errorMessage"] == "broken meanwhile"
    marker.unlink()
    assert environment.invoke(None).error["errorType"] == "Runtime.ExitError"


def test_without_an_extension_it_is_killed(function: Callable[..., Environment]) -> None:
    """Lambda sends SIGTERM to a runtime only if an extension is registered."""
    environment = function("""
        import signal
        signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM"))
        def handler(event, context): pass
    """)
    shutdown = environment.shutdown()
    assert (shutdown.exit_code, shutdown.signalled) == (-signal.SIGKILL, False)
    assert "SIGTERM" not in environment.log


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Lambda that gives what ends in order the time that a busy machine takes; what does not end costs as much."""
    for name in ("_SHUTDOWN_INTERNAL_S", "_SHUTDOWN_EXTERNAL_S", "_SHUTDOWN_RUNTIME_S"):
        monkeypatch.setattr(module, name, 60.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.skipif(sys.version_info < (3, 12), reason="on Python 3.11 the client's main thread hears no signal")
def test_an_extension_inside_the_process_gets_it_sigterm(function: Callable[..., Environment]) -> None:
    """With an internal extension the handler of SIGTERM runs before the end, also out of the freeze."""
    environment = function(
        INTERNAL_EXTENSION
        + """
    def leave(*_):
        print("SIGTERM")
        os._exit(7)
    signal.signal(signal.SIGTERM, leave)
    print("SHUTDOWN for an internal extension:", register(["SHUTDOWN"])[0])
    def handler(event, context): pass
    """
    )
    environment.invoke(None)
    shutdown = environment.shutdown()
    assert (shutdown.exit_code, shutdown.signalled) == (7, True)
    assert environment.log == ("SHUTDOWN for an internal extension: 403", "SIGTERM")


def test_a_runtime_that_ignores_sigterm_is_killed(function: Callable[..., Environment]) -> None:
    """The time that a shutdown gives is limited."""
    environment = function(
        INTERNAL_EXTENSION
        + """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    def handler(event, context): pass
    """
    )
    shutdown = environment.shutdown()
    assert (shutdown.exit_code, shutdown.signalled) == (-signal.SIGKILL, True)


@pytest.mark.usefixtures("patient")
def test_an_external_extension_hears_of_invocations_and_the_end(
    function: Callable[..., Environment], tmp_path: Path
) -> None:
    """A program beside the runtime registers before it, and gets INVOKE and SHUTDOWN."""
    program = tmp_path / "watcher"
    program.write_text(
        f"#!{sys.executable}\n"
        + dedent("""
            import http.client, json, os
            connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
            def call(method, path, headers, body=None):
                connection.request(method, "/2020-01-01/extension/" + path, body, headers)
                response = connection.getresponse()
                return response.headers, json.loads(response.read())
            headers, _ = call("POST", "register", {"Lambda-Extension-Name": "watcher"},
                              json.dumps({"events": ["INVOKE", "SHUTDOWN"]}))
            headers = {"Lambda-Extension-Identifier": headers["Lambda-Extension-Identifier"]}
            while True:
                event = call("GET", "event/next", headers)[1]
                print(event["eventType"], event.get("requestId") or event["shutdownReason"], flush=True)
                if event["eventType"] == "SHUTDOWN":
                    break
        """)
    )
    program.chmod(0o755)
    environment = function("def handler(event, context): return 1", extensions=[program])
    assert environment.invoke(None, request_id="r-1").payload == 1
    environment.close()
    assert environment.log == ("INVOKE r-1", "SHUTDOWN spindown")


REGISTRATIONS = """
    import http.client, json, os, threading

    def register(name, events=()):
        connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
        headers = {"Lambda-Extension-Name": name}
        connection.request("POST", "/2020-01-01/extension/register", json.dumps({"events": events}), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status == 200:
            connection.request("GET", "/2020-01-01/extension/event/next", headers={
                "Lambda-Extension-Identifier": response.headers["Lambda-Extension-Identifier"]})
            waiting.append(connection)
        return answer.get("errorType")

    waiting = []
    at_init = [register("1"), register("1"), register("2", ["SHUTDOWN"]), *(register(str(n)) for n in range(2, 12))]
    def handler(event, context):
        return [*at_init, register("late")]
"""


def test_the_extensions_api_refuses_what_lambda_refuses(function: Callable[..., Environment]) -> None:
    """A name twice, the event of external extensions, more than ten, and whoever comes after init."""
    refusals = function(REGISTRATIONS).invoke(None).payload
    assert refusals == [
        None,
        "Extension.InvalidExtensionState",
        "Extension.InvalidEventType",
        *[None] * 9,
        "Extension.TooManyExtensions",
        "Extension.RegistrationClosed",
    ]


def test_init_waits_for_every_extension_inside(function: Callable[..., Environment]) -> None:
    """One that is registered and never asks for its next event ends init by its time-out, as in Lambda."""
    silent = REGISTRATIONS.replace("if response.status == 200", 'if name != "1" and response.status == 200')
    with pytest.raises(InitError, match="Init took longer"):
        function(silent, init_timeout_s=3)


SNAPSHOT = """
    import os
    from snapshot_restore_py import register_after_restore, register_before_snapshot
    def before(n):
        print("before", n)
        if os.environ.get("FAIL") == "before": raise ValueError("not now")
    def after(n):
        print("after", n)
        if os.environ.get("FAIL") == "after": raise ValueError("not here")
    for n in (1, 2):
        register_before_snapshot(before, n)
        register_after_restore(after, n)
    def handler(event, context):
        return os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"]
"""


def test_snap_start_runs_the_hooks_around_the_freeze(function: Callable[..., Environment]) -> None:
    """Before-hooks run in reverse order at init, after-hooks in order at restore; a snapshot is frozen in between."""
    environment = function(SNAPSHOT, snap_start=True)
    assert environment.log == ("before 2", "before 1")
    assert state_of(environment.pid) == "T"
    assert environment.restore() > 0
    assert environment.log[2:] == ("after 1", "after 2")
    assert environment.invoke(None).payload == "snap-start"
    with pytest.raises(RuntimeError, match="no snapshot"):
        environment.restore()


def test_the_first_invocation_restores(function: Callable[..., Environment]) -> None:
    """A snapshot that nobody restored is restored when it is needed."""
    environment = function(SNAPSHOT, snap_start=True)
    assert environment.invoke(None).payload == "snap-start"
    assert environment.log[-2:] == ("after 1", "after 2")


def test_a_failing_hook_before_the_snapshot_is_an_init_error(function: Callable[..., Environment]) -> None:
    """Lambda does not publish a version whose hook fails."""
    with pytest.raises(InitError, match="not now") as caught:
        function(SNAPSHOT, snap_start=True, variables={"FAIL": "before"})
    assert caught.value.phase == "before-snapshot"


def test_a_failing_hook_after_the_restore_is_told(function: Callable[..., Environment]) -> None:
    """`restore` raises its error; an invocation carries it."""
    environment = function(SNAPSHOT, snap_start=True, variables={"FAIL": "after"})
    with pytest.raises(InitError, match="not here") as caught:
        environment.restore()
    assert caught.value.phase == "restore"
    assert environment.invoke(None).error["errorMessage"] == "not here"


def test_layers_are_imported_after_the_task_and_not_written_to(
    function: Callable[..., Environment], tmp_path: Path
) -> None:
    """Modules are found as on AWS: the task's, then a layer's; no bytecode is stored in either."""
    layer = tmp_path / "layer"
    packages = layer / "python" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for folder, name in ((layer / "python", "in_layer"), (layer / "python", "app"), (packages, "in_packages")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text("here = __file__\n")
    environment = function(
        """
        import in_layer, in_packages
        def handler(event, context):
            return [in_layer.here, in_packages.here]
        """,
        layers=[layer],
    )
    assert environment.invoke(None).payload == [
        str(layer / "python" / "in_layer.py"),
        str(packages / "in_packages.py"),
    ]
    assert not list(tmp_path.rglob("__pycache__"))


def test_several_environments_run_at_once(function: Callable[..., Environment]) -> None:
    """Invocations of different environments do not wait for each other."""
    source = """
        import os, time
        def handler(event, context):
            open(event["mine"], "w").close()
            while not os.path.exists(event["other"]):
                time.sleep(0.005)
            return os.getpid()
    """
    environments = [function(source) for _ in range(2)]
    folder = environments[0].task
    events = [{"mine": f"{folder}/0", "other": f"{folder}/1"}, {"mine": f"{folder}/1", "other": f"{folder}/0"}]
    results = [None, None]

    def invoke(number: int) -> None:
        results[number] = environments[number].invoke(events[number])

    threads = [threading.Thread(target=invoke, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.payload for result in results] == [environment.pid for environment in environments]


def test_large_events_and_responses_pass(function: Callable[..., Environment]) -> None:
    """Megabytes go through in both directions, chunked or not."""
    environment = function("def handler(event, context): return event * 2")
    text = "ä" * 1_500_000
    assert environment.invoke(text).payload == text * 2


def test_a_new_environment_has_a_temporary_folder_of_its_own(function: Callable[..., Environment]) -> None:
    """/tmp is per environment on AWS; here TMPDIR is, and a reset empties it."""
    environment = function("""
        import os, pathlib, tempfile
        def handler(event, context):
            if event: os._exit(1)
            seen = [path.name for path in pathlib.Path(tempfile.gettempdir()).iterdir()]
            (pathlib.Path(tempfile.gettempdir()) / "mine").touch()
            return seen
    """)
    assert environment.invoke(None).payload == []
    assert environment.invoke(None).payload == ["mine"]
    environment.invoke("crash")
    assert environment.invoke(None).payload == []


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    """A folder that does not exist is an error before anything starts."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Environment(tmp_path / "nowhere")


def test_an_ended_environment_refuses(function: Callable[..., Environment]) -> None:
    """After close there is nothing to invoke; a second close does nothing."""
    environment = function("def handler(event, context): return 1")
    environment.close()
    environment.close()
    with pytest.raises(RuntimeError, match="shut down"):
        environment.invoke(None)


@pytest.mark.parametrize("moment", ["frozen", "invoking"])
def test_nothing_is_left_when_the_parent_is_killed(tmp_path: Path, moment: Any) -> None:
    """SIGKILL of the process that drives an environment ends the environment, frozen or not."""
    (tmp_path / "app.py").write_text("import time\ndef handler(event, context): time.sleep(60)\n")
    script = (
        "import threading, time; from plungepool_toolkit.environment import Environment\n"
        f"environment = Environment({str(tmp_path)!r}, timeout_s=60).start()\n"
        "print(environment.pid, flush=True)\n"
        + ("environment.invoke(None)" if moment == "invoking" else "time.sleep(60)")
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as parent:
        pid = int(parent.stdout.readline())
        wanted = "S" if moment == "invoking" else "T"
        wait_until(lambda: state_of(pid) == wanted)
        parent.kill()
        parent.wait()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() and not list(tmp_path.glob("plungepool-*")))


def test_a_function_inherits_no_descriptor_of_the_toolkit(function: Callable[..., Environment]) -> None:
    """Besides the standard streams a function has only the descriptors that it opened itself, as on AWS."""
    environment = function("""
        import os
        inherited = [name for name in os.listdir("/proc/self/fd") if int(name) > 2]
        links = [f"/proc/self/fd/{name}" for name in inherited]
        inherited = [os.readlink(link) for link in links if os.path.exists(link)]
        def handler(event, context):
            return [target for target in inherited if target.startswith("pipe:")]
    """)
    assert environment.invoke(None).payload == []
