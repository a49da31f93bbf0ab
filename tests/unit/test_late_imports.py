"""
Which modules the package imports after its own import, and on which path: on none of an error, a deadline or a
shutdown.
"""

from __future__ import annotations

import ast
from pathlib import Path

import plungepool

# Each function that imports -> the path on which it is first called. A new one must say on which; if that is an
# error's, a deadline's or a shutdown's, the import belongs to the module's head, or to the init.
PATHS = {
    "checks._identity": "the doctor",
    "checks._has_gateway": "the doctor",
    "checks._row_security": "the doctor",
    "connect.source": "init",
    "iam.TokenSource._keys_of_chain": "connect, outside Lambda",
    "iam._fetch_container_keys": "connect, after a restore",
    "iam._is_container_host": "connect, after a restore",
    "iam._epoch": "connect",
    "secret._secret_reader": "connect, with a secret",
    "sqltypes._range_text": "writing a value",
    "engine.build_engine": "init, behind a proxy",
    "engine._observe": "init, with what is asked for by a setting",
    "slow.Watch.hear": "a slow statement that left its session usable, and time",
    "observe.to_metrics": "init, with metrics",
    "observe.to_tracer": "init, with a tracer",
    "observe.to_opentelemetry": "init, with OpenTelemetry",
    "tracing.OpenTelemetry.__init__": "init, with OpenTelemetry",
    "connect.Driver.__init__": "init, of an adaptive pool or with comments",
    "pool._policy": "init, of an adaptive pool",
    "lifecycle._watch_snapshots": "init, with SnapStart",
    "snapshot.watch": "init, with SnapStart",
    "settings.Settings._read": "init, and its only error",
    "settings._misplaced": "init, and its only error",
    "names.host_problem": "init",
    "settings._secret_problem": "init",
    "tls.is_loopback": "connect",
    "tls._make_context": "connect",
    "wire.values.interval": "reading a value",
    "wire.values.range_reader.read": "reading a value",
    "wire.datestyle._zone": "reading a value",
    "wire.connection.Xid.__str__": "two-phase commit",
    "wire.authentication.Authentication.answer": "connect",
    "wire.protocol.Protocol._change_style": "a session that sets DateStyle or TimeZone, at connect or by SET",
    "wire.protocol._is_text": "COPY",
    "wire.authentication._md5": "connect",
    "wire.scram.saslprep": "connect",
    "wire.session._load": "connect",
    "wire.transport.Transport._shake_hands": "connect",
}


def importers(folder: Path) -> set[str]:
    """Return `module.function` of each function, and `module` of each condition, that has an import of its own."""
    found = set()

    def walk(node: ast.AST, name: str, depth: int) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)) and depth:
                found.add(name)
            elif isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                walk(child, f"{name}.{child.name}", depth + isinstance(child, ast.FunctionDef))
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            elif isinstance(child, ast.If) and not depth:
                walk(child, name, 1)
            else:
                walk(child, name, depth)

    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        walk(ast.parse(path.read_text(encoding="utf-8")), module, 0)
    return found


def test_every_late_import_says_on_which_path() -> None:
    """The table holds exactly what imports late, and no path of it is one of an error, a deadline or a shutdown."""
    assert importers(Path(plungepool.__file__).parent) == set(PATHS)
    forbidden = ("error", "deadline", "shutdown", "close", "rollback", "cancel")
    assert [
        name for name, path in PATHS.items() if any(word in path for word in forbidden) and not path.startswith("init")
    ] == []
