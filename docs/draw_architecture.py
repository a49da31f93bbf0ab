"""
Draw docs/architecture.md's pictures from the imports that the modules really have: python docs/draw_architecture.py
[--write]

Without --write it says what the page gets wrong, and exits with 1 if that is anything. Needs Python, and nothing else.
tests/unit/test_architecture.py asks the same.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = {
    "plungepool": ROOT / "layers" / "plungepool" / "plungepool",
    "plungepool_toolkit": ROOT / "toolkit" / "plungepool_toolkit",
}
LAZY, APART = "(lazy", "(never imported here"


class Module(NamedTuple):
    """A line of a tree: the module's name as it is imported, and what the line says of it."""

    name: str
    about: str


class Import(NamedTuple):
    """One module imports another, `when`: as it is imported itself (`init`), in a function (`late`), for types only."""

    importer: str
    imported: str
    when: str


def read_tree(page: str, package: str) -> list[Module]:
    """
    Return the modules of a package in the order in which the page lists them, which is the order of their imports.
    """
    found = re.search(rf"^```\n{package}/\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    if found is None:
        raise SystemExit(f"docs/architecture.md has no tree of {package}")
    modules = []
    folders = [package]
    for line in found[1].splitlines():
        name, _, about = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name[:-1])
        else:
            modules.append(Module(module_name([*folders, name.removesuffix(".py")]), about.strip()))
    return modules


def module_name(parts: list[str]) -> str:
    """Return the name under which `import` knows a file: `__init__` is its folder."""
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def read_modules(package: str) -> dict[str, Path]:
    """Return every module of a package with its file."""
    folder = FOLDERS[package]
    files = sorted(folder.rglob("*.py"))
    return {module_name([package, *file.relative_to(folder).with_suffix("").parts]): file for file in files}


@functools.cache
def read_imports(package: str) -> list[Import]:
    """Return each import of each module of a package; of others than these two packages the first part of the name."""
    known = {name for one in FOLDERS for name in read_modules(one)}
    found: dict[Import, None] = {}
    for name, file in read_modules(package).items():
        here = name if file.stem == "__init__" else name.rpartition(".")[0]
        for targets, when in _walk(ast.parse(file.read_text(encoding="utf-8")), here, "init"):
            # `from package import name`: the name is a module, or something in the package.
            target = next((target for target in targets if target in known), targets[-1])
            if target not in known:
                target = target.partition(".")[0]
            if target != name:
                found[Import(name, target, when)] = None
    return list(found)


def _walk(node: ast.AST, here: str, when: str) -> list[tuple[list[str], str]]:
    """Return what each import of a syntax tree may mean, the narrowest first."""
    found: list[tuple[list[str], str]] = []
    for child in ast.iter_child_nodes(node):
        inner = when
        if isinstance(child, ast.Import):
            found += [([alias.name], when) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parts = here.split(".")
                base = ".".join([*parts[: len(parts) - child.level + 1], *([base] if base else [])])
            found += [([f"{base}.{alias.name}", base], when) for alias in child.names]
        elif (
            isinstance(child, ast.Call)
            and _says(child.func, "import_module")
            and isinstance(child.args[0], ast.Constant)
        ):
            found.append(([str(child.args[0].value)], when))
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and when != "types":
            inner = "late"
        elif isinstance(child, ast.If) and _says(child.test, "TYPE_CHECKING"):
            inner = "types"
        found += _walk(child, here, inner)
    return found


def _says(expression: ast.expr, name: str) -> bool:
    return ast.unparse(expression).rpartition(".")[2] == name


def is_in(module: str, room: str) -> bool:
    """Say whether a module is this one, or in this folder."""
    return module == room or module.startswith(f"{room}.")


def draw(package: str) -> str:
    """
    Return a package's modules and imports as a flowchart in Mermaid.

    An arrow that says only what a chain of others says is left out: with it nobody would see the order.
    """
    names = [module.name for module in read_tree(PAGE.read_text(encoding="utf-8"), package)]
    imports = [one for one in read_imports(package) if one.imported.partition(".")[0] in FOLDERS]
    others = "plungepool"
    if package != others:
        # Of the other package the room is enough.
        imports = [one._replace(imported=others) if is_in(one.imported, others) else one for one in imports]
        if any(one.imported == others for one in imports):
            names = [*names, others]
    init = _shortest({(one.importer, one.imported) for one in imports if one.when == "init"})
    reached = _reached(init)
    late = {
        (one.importer, one.imported)
        for one in imports
        if one.when == "late" and one.imported not in reached.get(one.importer, ())
    }
    lines = ["```mermaid", "flowchart TD"]
    lines += _nodes(package, names)
    place = {name: number for number, name in enumerate(names)}

    def order(arrow: tuple[str, str]) -> tuple[int, int]:
        return place[arrow[0]], place[arrow[1]]

    for arrows, drawn in ((init, "-->"), (late, "-.->")):
        lines += [f"    {_id(package, one)} {drawn} {_id(package, other)}" for one, other in sorted(arrows, key=order)]
    return "\n".join([*lines, "```", ""])


def _nodes(package: str, names: list[str]) -> list[str]:
    """Return a line for each module; those of a folder, and of folders in it, stand in a box."""
    boxes: dict[str, list[str]] = {}
    for name in names:
        inside = name.removeprefix(f"{package}.")
        folder = inside.partition(".")[0]
        is_folder = name != package and any(one.startswith(f"{package}.{folder}.") for one in names)
        boxes.setdefault(folder if is_folder else "", []).append(f'{_id(package, name)}["{inside}"]')
    lines = [f"    {node}" for node in boxes.pop("", [])]
    for folder, nodes in boxes.items():
        lines += [f'    subgraph {folder}_folder["{folder}/"]', *(f"        {node}" for node in nodes), "    end"]
    return lines


def _id(package: str, name: str) -> str:
    return name.removeprefix(f"{package}.").replace(".", "_")


def _reached(arrows: set[tuple[str, str]]) -> dict[str, set[str]]:
    """Return all that each module imports, by itself or through others."""
    reached: dict[str, set[str]] = {}

    def reach(name: str) -> set[str]:
        if name not in reached:
            reached[name] = set()
            for importer, imported in arrows:
                if importer == name:
                    reached[name] |= {imported} | reach(imported)
        return reached[name]

    for importer, _ in arrows:
        reach(importer)
    return reached


def _shortest(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    reached = _reached(arrows)
    return {
        (importer, imported)
        for importer, imported in arrows
        if not any(
            imported in reached.get(other, ())
            for start, other in arrows
            if start == importer and other not in (imported, importer)
        )
    }


def problems(page: str) -> list[str]:
    """Return what the page says otherwise than the files, each as a sentence that says what to change."""
    found = []
    for package in FOLDERS:
        listed = [module.name for module in read_tree(page, package)]
        real = read_modules(package)
        for name in real.keys() - set(listed):
            found.append(f"the tree of {package} lacks {name}: add its line, below all that it imports")
        for name in set(listed) - real.keys():
            found.append(f"the tree of {package} lists {name}, which is gone: take the line out")
        if not found and drawing(page, package) != draw(package):
            found.append(f"the drawing of {package} is out of date: python docs/draw_architecture.py --write")
    return sorted(found)


def drawing(page: str, package: str) -> str:
    """Return the drawing that the page shows."""
    return _frame(package).search(page)[2]  # type: ignore[index]


def _frame(package: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- drawn: {package} -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def write() -> None:
    """Put the drawings into the page."""
    page = PAGE.read_text(encoding="utf-8")
    for package in FOLDERS:
        drawn = draw(package)
        page = _frame(package).sub(lambda match, drawn=drawn: match[1] + drawn + match[3], page)  # type: ignore[misc]
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    missing = [problem for problem in problems(PAGE.read_text(encoding="utf-8")) if "drawing" not in problem]
    if sys.argv[1:] == ["--write"] and not missing:
        write()
    found = problems(PAGE.read_text(encoding="utf-8"))
    print("\n".join(found) or "docs/architecture.md is as the modules are.")
    sys.exit(bool(found))
