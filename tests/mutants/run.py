"""
What the tests would not notice: each line of a module is changed in one way at a time, and its tests are run against it.

    .venv/bin/python tests/mutants/run.py engine tls        these modules
    .venv/bin/python tests/mutants/run.py                   every module of MODULES

A mutant that lets every test pass survives: a test is missing, or the change makes no difference (equivalent.txt names those, with
the reason). What was found is kept in build/mutants/MODULE.json by the text of the mutant and of the tests, so that a run that was
stopped goes on where it was; build/mutants/report.md says all of it. Ends with 1 where a mutant survives that is not named.

A list of our own in place of mutmut or cosmic-ray: mutmut copies a whole project and knows no tests that start processes of their own,
cosmic-ray starts an interpreter for each mutant and changes the files in place, which beside other work on the same checkout
nobody wants. Here a process that has imported what does not change forks for each mutant, and the changed copy of the package is a
folder of its own that child processes find, too.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "mutants"
PACKAGES = {
    "plungepool": ROOT / "layers" / "plungepool" / "plungepool",
    "plungepool_toolkit": ROOT / "toolkit" / "plungepool_toolkit",
}
EQUIVALENT = Path(__file__).parent / "equivalent.txt"


@dataclass(frozen=True)
class Module:
    """One module and the tests that can kill its mutants, quickest first; `only` restricts it to these functions and classes."""

    package: str
    tests: tuple[str, ...]
    only: tuple[str, ...] = ()
    seconds: float = 120.0  # for one mutant, beside what the tests take without any


MODULES = {
    "engine": Module(
        "plungepool",
        ("tests/unit/test_engine.py", "tests/unit/test_engine_wiring.py", "tests/integration/test_engine_options.py"),
    ),
    "lifecycle": Module(
        "plungepool",
        (
            "tests/integration/test_lifecycle_hooks.py",
            "tests/integration/test_pool.py::test_fork_during_the_first_connect_does_not_deadlock",
            "tests/unit/test_engine.py",
            "tests/environment/test_lifecycle.py",
        ),
    ),
    "tls": Module(
        "plungepool", ("tests/unit/test_tls.py", "tests/unit/test_tls_handshakes.py", "tests/integration/test_tls.py")
    ),
    "credentials": Module(
        "plungepool",
        (
            "tests/unit/test_credentials.py",
            "tests/integration/test_credentials_keys.py",
            "tests/integration/test_credentials_secret.py",
            "tests/integration/test_credentials_iam.py",
            "tests/integration/test_credentials_rotation.py",
            "tests/integration/test_credentials_dsql.py",
        ),
    ),
    "pool": Module(
        "plungepool",
        (
            "tests/integration/test_pool.py",
            "tests/integration/test_pool_model.py",
            "tests/integration/test_pool_strikes.py",
        ),
    ),
    "wire/__init__": Module(
        "plungepool",
        (
            "tests/wire/test_wire.py",
            "tests/wire/test_errors.py",
            "tests/wire/test_address.py",
            "tests/wire/test_dead_networks.py",
        ),
        only=("connect", "_open", "_dial", "_secure", "_read_message", "_authenticate", "_md5", "_Scram", "_tune"),
    ),
    "checks": Module("plungepool_toolkit", ("tests/integration/test_doctor.py",)),
    "rds_proxy": Module(
        "plungepool_toolkit", ("tests/toolkit/test_rds_proxy.py", "tests/integration/test_rds_proxy.py")
    ),
}


@dataclass(frozen=True)
class Mutant:
    """One change of one place: the bytes from `start` to `end` become `text`."""

    line: int
    start: int
    end: int
    text: str
    was: str

    @property
    def name(self) -> str:
        """What it is called in reports and in equivalent.txt: no line numbers, which move."""
        short = lambda text: " ".join(text.split())[:60]  # noqa: E731
        return f"{short(self.was)} -> {short(self.text)}"


_COMPARED: dict[type[ast.cmpop], str] = {
    ast.Lt: ">=", ast.LtE: "<", ast.Gt: "<=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not", ast.IsNot: "is",
    ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_COUNTED: dict[type[ast.operator], str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.LShift: ">>", ast.RShift: "<<",
}  # fmt: skip


def mutants(source: str, only: tuple[str, ...] = ()) -> list[Mutant]:
    """Return each change that is made to this source, in its order. Texts of messages, annotations and docstrings stay."""
    tree = ast.parse(source)
    encoded = source.encode()
    starts = [0]
    for line in encoded.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.AST) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def change(node: ast.AST, text: str) -> Mutant:
        start, end = span(node)
        return Mutant(node.lineno, start, end, text, encoded[start:end].decode())  # type: ignore[attr-defined]

    def code(node: ast.AST) -> str:
        start, end = span(node)
        return encoded[start:end].decode()

    def changes(node: ast.AST) -> Iterator[Mutant]:
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARED:
                yield change(node, f"({code(left)} {_COMPARED[type(op)]} {code(right)})")
            case ast.BoolOp(op=op, values=values):
                for place in range(len(values)):  # each condition left out
                    rest = values[:place] + values[place + 1 :]
                    yield change(
                        node, "(" + f" {'and' if isinstance(op, ast.And) else 'or'} ".join(map(code, rest)) + ")"
                    )
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield change(node, f"bool({code(operand)})")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _COUNTED and not _is_text(left):
                yield change(node, f"({code(left)} {_COUNTED[type(op)]} {code(right)})")
            case ast.Constant(value=bool() as value):
                yield change(node, str(not value))
            case ast.Constant(value=int() | float() as value):
                yield change(node, f"({value!r} + 1)")
            case ast.If(test=test) | ast.IfExp(test=test) if isinstance(
                test, ast.Name | ast.Attribute | ast.Call | ast.NamedExpr
            ):
                yield change(test, f"(not ({code(test)}))")
            case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
                yield change(value, "None")
            case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise() | ast.AugAssign() | ast.Delete():
                yield change(node, "pass")
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield change(node, "pass")
            case ast.Call(keywords=keywords):
                for keyword in keywords:
                    # A keyword left out; where it is needed, the mutant is killed by the first call.
                    if keyword.arg and not (
                        isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool | int | float)
                    ):
                        start, end = span(keyword)
                        end += (
                            len(encoded[end:]) - len(encoded[end:].lstrip(b" \n,"))
                            if encoded[end:].lstrip(b" \n")[:1] == b","
                            else 0
                        )
                        yield Mutant(keyword.lineno, start, end, "", encoded[start:end].decode())
            case ast.Break():
                yield change(node, "continue")
            case ast.Continue():
                yield change(node, "break")
            case _:
                pass

    found: list[Mutant] = []

    def walk(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            inside = inside or node.name in only
        # Neither for a type checker nor for a reader: what runs.
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if inside or not only:
            found.extend(changes(node))
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "type_comment"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    walk(child, inside)

    walk(tree, False)
    valid = []
    for mutant in sorted(set(found), key=lambda one: (one.start, one.end, one.text)):
        with contextlib.suppress(SyntaxError):
            ast.parse(applied(encoded, mutant))
            valid.append(mutant)
    return valid


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def applied(encoded: bytes, mutant: Mutant) -> bytes:
    """Return the source with this change."""
    return encoded[: mutant.start] + mutant.text.encode() + encoded[mutant.end :]


def preload() -> None:
    """Import what takes long and does not change, so that each forked child has it."""
    import boto3  # noqa: F401
    import pytest  # noqa: F401
    import sqlalchemy.orm  # noqa: F401


def run_tests(folder: Path, tests: list[str], seconds: float, log: Path) -> int | None:
    """Run these tests in a child with the package of this folder; its exit code, or None where it took too long."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()
            with log.open("w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            # Before the editable install, here and in every process that a test starts.
            sys.path.insert(0, str(folder))
            os.environ["PYTHONPATH"] = str(folder)
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            import pytest

            code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _end_group(child)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    _end_group(child)
    os.waitpid(child, 0)
    return None


def _end_group(child: int) -> None:
    # The child leads a session of its own: whatever its tests left running ends with it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def copy_of(package: str, folder: Path) -> None:
    """Put the package into a folder: links for what stays, so that a mutant costs one file."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PACKAGES[package], folder / package, ignore=shutil.ignore_patterns("__pycache__"))


def examine(name: str, module: Module, every: int) -> dict[str, list[str]]:
    """Run every mutant of one module that is not known yet; the names of the mutants by what became of them."""
    path = PACKAGES[module.package] / f"{name}.py"
    source = path.read_text()
    tests = [test for test in module.tests if (ROOT / test.split("::")[0]).exists()]
    file = name.replace("/", "-")
    kept = BUILD / f"{file}.json"
    text_of_tests = hashlib.sha256(
        "".join((ROOT / test.split("::")[0]).read_text() for test in tests).encode()
    ).hexdigest()
    known: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
    folder = BUILD / f"tree-{file}"
    copy_of(module.package, folder)
    begin = time.monotonic()
    log = BUILD / f"{file}.log"
    if run_tests(folder, tests, 900, log) != 0:
        raise SystemExit(f"{name}: the tests fail without any mutant; see {log.relative_to(ROOT)}")
    seconds = module.seconds + 3 * (time.monotonic() - begin)
    changed = folder / module.package / f"{name}.py"
    outcome: dict[str, list[str]] = {"killed": [], "equivalent": [], "surviving": []}
    equivalent = equivalents().get(name, {})
    todo = mutants(source, module.only)[::every]
    for number, mutant in enumerate(todo, 1):
        text = applied(source.encode(), mutant)
        key = hashlib.sha256(text).hexdigest()
        where = f"{name}.py:{mutant.line}: {mutant.name}"
        state = known.get(key, "")
        if state != "killed" and state != f"survived {text_of_tests}":
            changed.write_bytes(text)
            code = run_tests(folder, tests, seconds, log)
            state = f"survived {text_of_tests}" if code == 0 else "killed"
            known[key] = state
            kept.write_text(json.dumps(known))
        kind = "killed" if state == "killed" else "equivalent" if mutant.name in equivalent else "surviving"
        outcome[kind].append(where)
        if kind == "surviving":
            print(f"[{number}/{len(todo)}] survives: {where}", flush=True)
    return outcome


def equivalents() -> dict[str, dict[str, str]]:
    """Return what equivalent.txt says: the reason, by the module and the mutant's name."""
    found: dict[str, dict[str, str]] = {}
    for line in EQUIVALENT.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            module, mutant, reason = (part.strip() for part in line.split(" | "))
            found.setdefault(module, {})[mutant] = reason
    return found


def main() -> None:
    """Examine the modules that are named, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}; default all")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="a sample: the first of each N mutants")
    options = parser.parse_args()
    if unknown := sorted(set(options.modules) - set(MODULES)):
        parser.error(f"unknown: {', '.join(unknown)}")
    os.chdir(ROOT)
    BUILD.mkdir(parents=True, exist_ok=True)
    preload()
    lines = [
        "# Mutants",
        "",
        "| module | mutants | killed | equivalent | surviving | killed of the others |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    details, survivors = [], 0
    for name in options.modules or MODULES:
        outcome = examine(name, MODULES[name], options.every)
        killed, equivalent, surviving = (len(outcome[kind]) for kind in ("killed", "equivalent", "surviving"))
        share = f"{killed / max(1, killed + surviving):.0%}"
        lines.append(
            f"| {name} | {killed + equivalent + surviving} | {killed} | {equivalent} | {surviving} | {share} |"
        )
        details += ["", f"## {name}: surviving", *(f"- `{where}`" for where in outcome["surviving"])]
        survivors += surviving
        print(lines[-1], flush=True)
        (BUILD / "report.md").write_text("\n".join([*lines, *details, ""]))
    raise SystemExit(1 if survivors else 0)


if __name__ == "__main__":
    main()
