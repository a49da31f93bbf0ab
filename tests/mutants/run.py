"""
What the tests would not notice: each line of a module is changed in one way at a time, and the tests that run it are
run against it.

    .venv/bin/python tests/mutants/run.py engine tls             these topics: modules, or packages with all in them
    .venv/bin/python tests/mutants/run.py                        every topic of TOPICS
    .venv/bin/python tests/mutants/run.py rds_proxy --sample 300 as many mutants of each, always the same ones
    .venv/bin/python tests/mutants/run.py --write                and put the results into docs/mutants.md

A mutant is killed where a test fails; it is timed out where a test takes many times as long as without it, twice, the
second time with nothing beside it; no test may run its line at all; or it survives: a test is missing, or the change
makes no difference (equivalent.txt names those, with the reason). Ends with 1 where a mutant is left that is neither
killed nor named.

First, the tests of a topic are run once and each line that they run is recorded, also in the processes that they start.
Then each mutant is given to the tests that run its statement, the quickest file first, up to the budget, in a fork of a
process that has imported what does not change, in a copy of the tree with a virtual environment of its own; servers are
copied, not made by initdb. What was found is kept in build/mutants/TOPIC.json by the text of the mutant and of its
tests, so that a run that was stopped goes on where it was; build/mutants/report.md says all of it, also which test
killed what.

Two tools of others were tried. mutmut 3.8 forks too and chooses tests by the function that they run, but changes
neither code that the import runs nor decorated functions, finds no package outside of ./, src/ and source/, and imports
itself into the package, whose imports tests here hold to a list. cosmic-ray 8 changes anything, in place, but starts
the whole command of the tests for each mutant. (coverage.py would record the lines as well, but stops where a test sets
a tracer of its own, as the tests of strikes do, and knows no test in the processes that tests start.)
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

sys.path.insert(0, str(Path(__file__).parent))
from mutations import Mutant, applied, mutants

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "mutants"
PACKAGE, TOOLKIT = "layers/plungepool/plungepool", "toolkit/plungepool_toolkit"
EQUIVALENT = Path(__file__).parent / "equivalent.txt"
PAGE = ROOT / "docs" / "mutants.md"
SEED = 8
AT_ONCE = 2
# Of the tests that run a place, so many seconds are asked, the quickest ones: a mutant that only the others kill counts
# as survived.
BUDGET_S = 20.0


@dataclass(frozen=True)
class Topic:
    """
    Modules that belong together, and the tests that are asked about them. Patterns: what is new is found by itself.
    """

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    #: Matches the functions and classes that count, where that is not all.
    only: str = ""


# A module that has moved into a package of its name is found there.
TOPICS = {
    "engine": Topic(
        (f"{PACKAGE}/engine*",),
        (
            "unit/test_engine*",
            "integration/test_engine*",
            "environment/test_shutdown*",
            "environment/test_snapshot*",
            "integration/test_reader*",
            "integration/test_lifecycle*",
        ),
    ),
    "connect": Topic(
        (f"{PACKAGE}/connect*",),
        (
            "unit/test_connect*",
            "unit/test_engine_wiring*",
            "unit/test_tls*",
            "integration/test_engine*",
            "integration/test_cred*",
            "unit/test_cred*",
            "integration/test_full*",
            "integration/test_adaptive*",
            "integration/test_tenants.py",
            "integration/test_connect*",
            "integration/test_reader*",
            "environment/test_snapshot*",
        ),
    ),
    "lifecycle": Topic(
        (f"{PACKAGE}/lifecycle*", f"{PACKAGE}/snapshot*"),
        (
            "integration/test_lifecycle*",
            "unit/test_engine*",
            "environment/test_lifecycle*",
            "environment/test_snapshot*",
            "integration/test_pool.py",
        ),
    ),
    "tls": Topic((f"{PACKAGE}/tls*",), ("unit/test_tls*", "integration/test_tls*")),
    "credentials": Topic(
        (f"{PACKAGE}/credentials*", f"{PACKAGE}/iam*", f"{PACKAGE}/secret*"),
        (
            "unit/test_credentials*",
            "integration/test_credentials*",
            "unit/test_keys*",
            "unit/test_iam*",
            "unit/test_secret*",
        ),
    ),
    "pool": Topic(
        (f"{PACKAGE}/pool*",),
        (
            "unit/test_pool*",
            "unit/test_thaw*",
            "unit/test_prefix*",
            "integration/test_pool*",
            "integration/test_thaw*",
            "integration/test_guard.py",
            "integration/test_deadline*",
        ),
    ),
    "wire": Topic(
        (f"{PACKAGE}/wire*",),
        (
            "wire/test_errors*",
            "wire/test_address*",
            "wire/test_auth*",
            "wire/test_conn*",
            "wire/test_scram*",
            "wire/test_protocol*",
            "wire/test_start*",
            "wire/test_fewer*",
        ),
        only="connect|_?open|startup|dial|secure|_shake_hands|_read_message|authenticate|Authentication|_md5"
        "|_encoded_password|Scram|saslprep|tune",
    ),
    "checks": Topic(
        (f"{PACKAGE}/checks*", f"{TOOLKIT}/checks*"),
        ("unit/test_checks*", "unit/test_prefix*", "integration/test_doctor*"),
    ),
    "observe": Topic(
        tuple(f"{PACKAGE}/{name}*" for name in ("observe", "recorder", "metrics", "comments", "tracing")),
        (
            "unit/test_observe*",
            "integration/test_observe*",
            "integration/test_comments*",
            "integration/test_bound*",
            "toolkit/test_timeline*",
        ),
    ),
    "slow": Topic(
        tuple(f"{PACKAGE}/{name}*" for name in ("slow", "why", "plans", "ranking")),
        (
            "unit/test_plans*",
            "integration/test_slow*",
            "integration/test_why*",
            "integration/test_plans*",
            "toolkit/test_slow*",
        ),
    ),
    "transaction": Topic(
        tuple(f"{PACKAGE}/{name}*" for name in ("transaction", "idempotency")),
        ("integration/test_transaction*", "functions/test_idempotency*"),
    ),
    "fleet": Topic(
        tuple(f"{PACKAGE}/{name}*" for name in ("fleet", "tickets", "drain")),
        (
            "unit/test_fleet*",
            "unit/test_tickets*",
            "unit/test_drain*",
            "integration/test_adaptive*",
            "integration/test_full*",
            "integration/test_drain*",
        ),
    ),
    "rds_proxy": Topic(
        (f"{TOOLKIT}/rds_proxy*",), ("toolkit/test_rds_proxy*", "unit/test_pinning*", "integration/test_rds_proxy*")
    ),
}


def _digest(*parts: str | bytes) -> str:
    return hashlib.sha256(b"\0".join(part.encode() if isinstance(part, str) else part for part in parts)).hexdigest()


class Work:
    """A copy of the tree with a virtual environment of its own, and the process in it that forks for each mutant."""

    def __init__(self, place: int) -> None:
        self.scratch = Path(f"/tmp/mutants-{os.getpid()}-{place}")
        self.scratch.mkdir()
        self.scratch.chmod(0o711)
        self.tree = BUILD / f"tree-{place}"
        self._copy_tree()
        self.python = self._make_environment()
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
        }
        self._process = subprocess.Popen(
            [self.python, self.tree / "tests" / "mutants" / "warm.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self.tree,
            env=environment | {"TMPDIR": str(self.scratch)},
        )  # fmt: skip

    def _copy_tree(self) -> None:
        shutil.rmtree(self.tree, ignore_errors=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.tree / name)

        # What `make` has installed for tests: other environments, another server.
        for path in ROOT.glob(".*"):
            if path.name.startswith((".venv-", ".debian")) and path.is_dir():
                (self.tree / path.name).symlink_to(path)

    def _make_environment(self) -> Path:
        """Make an environment in which every process that a test starts finds the packages of this copy."""
        installed = next((ROOT / ".venv" / "lib").glob("python3.*")) / "site-packages"
        self.environment = self.tree / ".venv"
        self.site = self.environment / installed.relative_to(ROOT / ".venv")
        self.site.mkdir(parents=True)
        shutil.copy(ROOT / ".venv" / "pyvenv.cfg", self.environment)
        (self.environment / "bin").mkdir()
        for name in ("python", "python3"):
            (self.environment / "bin" / name).symlink_to((ROOT / ".venv" / "bin" / "python").resolve())
        roots = [self.tree / Path(package).parent for package in (PACKAGE, TOOLKIT)]
        (self.site / "tree.pth").write_text("".join(f"{path}\n" for path in (*roots, installed)))
        # The other files are compiled once; a mutant is known by its time from what was compiled before.
        subprocess.run([sys.executable, "-m", "compileall", "-q", *roots], check=False, stdout=subprocess.DEVNULL)
        return self.environment / "bin" / "python"

    def wait(self) -> None:
        """Wait until it has imported what it will: what is recorded later is not to be recorded in it."""
        assert self._answer() == "ready"

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the process that forks for each mutant has ended")
        return json.loads(line)

    def order(self, **order: Any) -> dict[str, Any]:
        """Have one order run; the answer of warm.py."""
        assert self._process.stdin is not None
        order = {
            "progress": str(self.scratch / "progress"), "scratch": str(self.scratch / "pytest"),
            "clusters": str(self.scratch),
            "log": str(self.scratch / "log"), "first_s": 120.0, "limits": {}, "from": os.getpid(), **order,
        }  # fmt: skip
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return dict(self._answer())

    def log(self) -> str:
        """What the last order's tests have written."""
        return (self.scratch / "log").read_text(errors="replace")

    def close(self) -> None:
        """End it and remove what it used."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.rmtree(self.tree, ignore_errors=True)


class Places:
    """Where mutants are run: one at a time in each."""

    def __init__(self, number: int) -> None:
        self.works = [Work(place) for place in range(number)]
        self.lock = threading.Lock()
        self._free = list(self.works)
        for work in self.works:
            work.wait()

    @contextlib.contextmanager
    def one(self) -> Iterator[Work]:
        """Lend a free one; there is one for each thread of `each`."""
        with self.lock:
            work = self._free.pop()
        try:
            yield work
        finally:
            with self.lock:
                self._free.append(work)

    def each(self, function: Callable[[Any], None], things: Sequence[Any]) -> None:
        """Call it with each thing, as many at once as there are places."""
        with ThreadPoolExecutor(len(self.works)) as threads:
            try:
                list(threads.map(function, things))
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise

    def close(self) -> None:
        """End all of them."""
        for work in self.works:
            work.close()


@dataclass
class Found:
    """One mutant and what became of it."""

    path: str
    mutant: Mutant
    state: str = ""
    #: The test that killed it.
    by: str = ""

    @property
    def where(self) -> str:
        return f"{self.path}:{self.mutant.line}: {self.mutant.name}"


@dataclass
class Examination:
    """One topic: its files, the record of its tests, its mutants."""

    name: str
    topic: Topic
    sample: int | None
    budget_s: float = BUDGET_S
    record: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def sources(self) -> dict[str, str]:
        """The files of its modules, those of packages too."""
        paths = {
            path
            for pattern in self.topic.modules
            for place in ROOT.glob(pattern)
            for path in (place.rglob("*.py") if place.is_dir() else [place])
            if path.suffix == ".py"
        }
        return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(paths)}

    @cached_property
    def tests(self) -> dict[str, str]:
        """The digest of each file of tests that is there, with what it shares with others."""
        files = sorted({path for pattern in self.topic.tests for path in (ROOT / "tests").glob(pattern)})
        common = [*(ROOT / "tests").rglob("conftest.py"), *(ROOT / "tests" / "shared").glob("*.py")]
        shared = [path.read_text() for path in sorted(common)]
        return {
            str(path.relative_to(ROOT)): _digest(path.read_text(), *shared) for path in files if path.suffix == ".py"
        }

    def remember(self, places: Places) -> None:
        """Run what is not on record yet of the tests, once and without a mutant, and put it there."""
        kept = BUILD / f"{self.name}.record.json"
        text = _digest(*self.sources.values())
        known = json.loads(kept.read_text()) if kept.exists() else {}
        self.record = {
            file: known[file]
            for file, digest in self.tests.items()
            if known.get(file, {}).get("digest") == digest + text
        }
        missing = [file for file in self.tests if file not in self.record]
        if missing:
            print(f"{self.name}: recording {len(missing)} files of tests", flush=True)

        def record(file: str) -> None:
            with places.one() as work:
                found = self._recorded(work, file, text)
            with places.lock:
                self.record[file] = found
                kept.write_text(json.dumps(self.record))

        places.each(record, missing)
        for file, found in sorted(self.record.items()):
            if failed := found["failed"]:
                print(
                    f"{self.name}: {len(failed)} tests of {file} fail or are skipped without any mutant, and are left "
                    f"out: {failed[0]} …"
                )

    def _recorded(self, work: Work, file: str, text: str) -> dict[str, Any]:
        folder = work.scratch / "record"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "current").write_text("")
        (folder / "lines").write_text("")
        for path in (folder, folder / "current", folder / "lines"):  # a test's processes may be another user's
            path.chmod(0o777)
        packages = [str(work.tree / package) for package in (PACKAGE, TOOLKIT)]
        recorder = work.tree / "tests" / "mutants" / "recorder.py"
        started = work.site / "record.pth"
        started.write_text(
            f"import sys; names = {{}}; exec(open({str(recorder)!r}).read(), names); "
            f"names['_record']({str(folder)!r}, {tuple(packages)!r})\n"
        )
        try:
            answer = work.order(files=[file], record=str(folder), packages=packages, first_s=600.0)
        finally:
            started.unlink()
        (BUILD / "record.log").write_text(work.log())
        if answer["code"] not in (0, 1, 5):
            raise SystemExit(f"{self.name}: {file} does not run without any mutant:\n{work.log()[-5000:]}")
        told = json.loads((folder / "tests.json").read_text())
        lines: dict[str, dict[str, set[int]]] = {}
        for entry in (folder / "lines").read_text().splitlines():
            test, path, line = entry.split("\t")
            path = str(Path(path).relative_to(work.tree))
            if path in self.sources:
                lines.setdefault(test, {}).setdefault(path, set()).add(int(line))
        return {
            "digest": self.tests[file] + text,
            "failed": told["failed"],
            "seconds": {test: round(took, 3) for test, took in told["seconds"].items()},
            "lines": {test: {path: sorted(of) for path, of in found.items()} for test, found in lines.items()},
        }

    def chosen(self, path: str, mutant: Mutant) -> list[str]:
        """
        Return the tests that ran the mutant's statement, in the order in which they are asked; all for what the import
        ran.
        """
        rows: list[tuple[float, float, str]] = []
        for file, record in self.record.items():
            ran = {
                test for test, found in record["lines"].items() if not {*mutant.lines}.isdisjoint(found.get(path, ()))
            }
            everything = not mutant.scope or "" in ran or file in ran
            able = {test: took for test, took in record["seconds"].items() if test not in record["failed"]}
            of_file = {test: took for test, took in able.items() if everything or test in ran}
            rows += [(sum(of_file.values()), took, test) for test, took in of_file.items()]
        rows.sort()
        spent = list(itertools.accumulate(took for _, took, _ in rows))
        return [
            test for (_, _, test), so_far in zip(rows, spent, strict=True) if so_far <= max(self.budget_s, spent[0])
        ]

    def all_mutants(self) -> list[Found]:
        """Return those of its files, or the sample of them."""
        found = [Found(path, one) for path, text in self.sources.items() for one in mutants(text, self.topic.only)]
        if self.sample is None or self.sample >= len(found):
            return found
        places = sorted(random.Random(SEED).sample(range(len(found)), self.sample))
        return [found[place] for place in places]

    def run(self, places: Places) -> list[Found]:
        """Give each mutant to its tests, as many at once as there are places; those that took too long again, alone."""
        self.remember(places)
        kept = BUILD / f"{self.name}.json"
        known: dict[str, list[str]] = json.loads(kept.read_text()) if kept.exists() else {}
        todo = self.all_mutants()
        done = 0

        def ask(one: Found, patience: float = 1) -> None:
            nonlocal done
            chosen = self.chosen(one.path, one.mutant)
            text = applied(self.sources[one.path].encode(), one.mutant)
            key = _digest(one.path, text)
            of_tests = _digest(*sorted({self.tests[test.split("::")[0]] for test in chosen}), *chosen)
            state, by, with_tests = known.get(key, ["", "", ""])
            if state in ("killed", "timed out") or (state and with_tests == of_tests and patience == 1):
                one.state, one.by = state, by
            elif not chosen:
                one.state = "not covered"
            else:
                with places.one() as work:
                    one.state, one.by = self._outcome(work, one, text, chosen, patience)
            with places.lock:
                done += patience == 1
                if one.state != "too long":
                    known[key] = [one.state, one.by, of_tests]
                    kept.write_text(json.dumps(known))
                if one.state not in ("killed", "timed out"):
                    print(f"{self.name} [{done}/{len(todo)}] {one.state}: {one.where}", flush=True)

        places.each(ask, todo)
        for one in todo:
            if one.state == "too long":
                ask(one, 2)
        return todo

    def _outcome(self, work: Work, one: Found, text: bytes, chosen: list[str], patience: float) -> tuple[str, str]:
        changed = work.tree / one.path
        before = changed.stat()
        seconds = {test: took for record in self.record.values() for test, took in record["seconds"].items()}
        # The first test of a file also pays for what the file shares.
        limits = {test: patience * (20 + 10 * seconds[test]) for test in chosen}
        try:
            changed.write_bytes(text)
            # Never the time of what was compiled.
            os.utime(changed, (before.st_mtime + 1000, before.st_mtime + 1000))
            for compiled in (changed.parent / "__pycache__").glob(f"{changed.stem}.*.pyc"):
                compiled.unlink()
            files = list(dict.fromkeys(test.split("::")[0] for test in chosen))
            answer = work.order(files=files, tests=chosen, limits=limits, first_s=patience * 60)
        finally:
            changed.write_text(self.sources[one.path])
            os.utime(changed, (before.st_mtime, before.st_mtime))
        if answer["code"] is None:
            return ("timed out" if patience > 1 else "too long"), answer["test"]
        if answer["code"] in (0, 5):
            return "survived", ""
        return "killed", answer["test"] or "while the tests were imported"


def equivalents() -> dict[tuple[str, str], str]:
    """Return what equivalent.txt says: the reason, by the topic and the mutant's name."""
    found: dict[tuple[str, str], str] = {}
    for line in EQUIVALENT.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            topic, mutant, reason = (part.strip() for part in line.split(" | "))
            found[topic, mutant] = reason
    return found


KINDS = ("killed", "timed out", "equivalent", "survived", "not covered")
HEAD = ["| topic | mutants | killed | timed out | equivalent | survived | not covered | killed of the others | date |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|"]  # fmt: skip


def row(name: str, todo: list[Found], sample: int | None, of: int) -> str:
    """Return the topic's line of the table."""
    count = Counter(one.state for one in todo)
    share = (count["killed"] + count["timed out"]) / max(1, len(todo) - count["equivalent"])
    number = f"{len(todo)} of {of} (sample, seed {SEED})" if sample is not None and len(todo) < of else str(of)
    cells = [name, number, *(str(count[kind]) for kind in KINDS), f"{share:.0%}", f"{datetime.date.today():%Y-%m-%d}"]
    return f"| {' | '.join(cells)} |"


def write_page(rows: dict[str, str]) -> None:
    """Put these lines into the page's table; those of other topics stay."""
    text = PAGE.read_text()
    before, _, rest = text.partition("<!-- table -->\n")
    table, _, after = rest.partition("<!-- /table -->")
    kept = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    kept = {name: line for name, line in (kept | rows).items() if name in TOPICS}
    lines = [*HEAD, *(kept[name] for name in TOPICS if name in kept)]
    PAGE.write_text(f"{before}<!-- table -->\n" + "".join(f"{line}\n" for line in lines) + f"<!-- /table -->{after}")


def main() -> None:
    """Examine the topics that are named, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"of {', '.join(TOPICS)}; default all")
    parser.add_argument("--sample", type=int, metavar="N", help="of each topic N mutants, always the same ones")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, metavar="N", help=f"mutants side by side, {AT_ONCE}")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, metavar="S", help=f"seconds of tests for one mutant, {BUDGET_S:g}"
    )
    parser.add_argument("--write", action="store_true", help="put the results into docs/mutants.md")
    options = parser.parse_args()
    if unknown := sorted(set(options.topics) - set(TOPICS)):
        parser.error(f"unknown: {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.chdir(ROOT)
    BUILD.mkdir(parents=True, exist_ok=True)
    alone = (BUILD / "lock").open("w")
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another run uses {BUILD.relative_to(ROOT)}") from None
    named = equivalents()
    rows: dict[str, str] = {}
    details: list[str] = []
    left = 0
    places = Places(options.at_once)
    try:
        for name in options.topics or TOPICS:
            examination = Examination(name, TOPICS[name], options.sample, options.budget)
            todo = examination.run(places)
            for one in todo:
                if one.state in ("survived", "not covered") and (name, one.mutant.name) in named:
                    one.state = "equivalent"
            unsampled = sum(len(mutants(text, examination.topic.only)) for text in examination.sources.values())
            rows[name] = row(name, todo, options.sample, unsampled)
            left += sum(one.state in ("survived", "not covered") for one in todo)
            for kind in KINDS[1:]:
                details += ["", f"## {name}: {kind}", *(f"- `{one.where}`" for one in todo if one.state == kind)]
            killers = Counter(one.by for one in todo if one.state == "killed")
            details += [
                "",
                f"## {name}: killed by",
                *(f"- {number} `{test}`" for test, number in killers.most_common()),
            ]
            print("\n".join([*HEAD, rows[name]]), flush=True)
            (BUILD / "report.md").write_text("\n".join(["# Mutants", "", *HEAD, *rows.values(), *details, ""]))
    finally:
        places.close()
    if options.write:
        write_page(rows)
    raise SystemExit(1 if left else 0)


if __name__ == "__main__":
    main()
