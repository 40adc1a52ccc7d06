"""Mutation testing: plant small mistakes in the code and count how many of them the tests catch.

    python -m tests.mutants record -n 2 --dist worksteal    # once: which test runs which line, and how long each test takes
    python -m tests.mutants run --tests "not slow"          # 60 mutants against the fast tests
    python -m tests.mutants run                             # the same 60 mutants against all tests
    python -m tests.mutants run --paths metrics models/core/set_head.py    # 60 mutants of these files only

``record`` runs the tests (all of them, unless its pytest arguments say otherwise) under coverage. ``run`` draws mutants of the
recorded lines with a fixed seed. It plants one mutant at a time in a temporary copy of the checkout, never in the checkout
itself, and runs the tests that cover the mutated line until one fails. The draw does not depend on ``--tests``, so the fraction
of mutants that the fast tests catch can be compared with the fraction that all tests catch. ``--paths`` draws only from these
files and from the files in these folders, and works with the same record. Results are appended to ``results.jsonl`` as they
come; rerun the same command to continue. After the tests or the code have changed, record again.

Only expressions inside functions are mutated. Module constants, default values, decorators, type annotations, strings, ``raise``
statements and log calls are left alone. Lines that only child processes run are not recorded, so they are not mutated either.

When a test fails, it is repeated on the original code; if it fails there too, it is dropped and the mutant is tried again without
it. A mutant whose tests exceed the time limit (three times their recorded time plus a minute) counts as caught.

This module is also the pytest plugin that records outcomes and selects tests (see :class:`Plugin`).
``tests/recipes/mutations.py`` changes values in configs; this command changes code.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

PACKAGES = ("models", "engine", "dataset", "tasks", "x2vlm", "metrics")
ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "runs" / "mutants"
"""Default folder of the record and of the results; git ignores it."""

REPORT, SELECTED = "MUTANTS_REPORT", "MUTANTS_SELECTED"
"""Environment variables of :class:`Plugin`."""


# Mutants of a source file


@dataclass(frozen=True)
class Mutant:
    """One change: bytes ``start`` to ``end`` of ``file`` (a path relative to the checkout) become ``text``.

    ``lines`` are the lines of the changed expression, and ``statement`` the lines of the statement that contains it, without the
    blocks inside the statement.
    """

    file: str
    operator: str
    start: int
    end: int
    text: str
    change: str
    lines: range
    statement: range

    @property
    def location(self) -> str:
        return f"{self.file}:{self.lines.start}"

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]


COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
SWAPPED = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "argmin": "argmax", "argmax": "argmin"}
AXES = ("dim", "axis", "start_dim", "end_dim")
LOG_CALLS = ("debug", "info", "warn", "warning", "error", "exception")


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a source file, in the order of the file."""
    tree = ast.parse(source)
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: Any) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def code(node: ast.AST) -> str:
        start, end = span(node)
        return source[start:end].decode()

    found = []
    for node, statement in _behaviour(tree):
        for operator, target, text in _changes(node, code):
            start, end = span(target)
            if operator == "min/max" and isinstance(target, ast.Attribute):  # only the name behind the dot
                start = end - len(target.attr)
            change = f"{_short(source[start:end].decode())} -> {_short(text)}"
            lines = range(target.lineno, target.end_lineno + 1)
            found.append(Mutant(file, operator, start, end, text, change, lines, _header(statement)))
    return sorted(found, key=lambda mutant: (mutant.start, mutant.end, mutant.operator, mutant.text))


def _behaviour(node: ast.AST, statement: ast.stmt | None = None) -> Iterator[tuple[Any, ast.stmt]]:
    """Yields the nodes below ``node`` that may be mutated, each with its statement. ``statement`` is None outside functions."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            for each in node.body:
                yield from _behaviour(each, each)
            return
        case ast.Lambda():
            children: list[ast.AST] = [node.body]
        case ast.AnnAssign():
            children = [node.value] if node.value else []
        case ast.Assert():
            children = [node.test]
        case ast.Raise() | ast.JoinedStr():
            return
        case ast.keyword(arg="strict"):  # strict=True of zip only guards against mistakes
            return
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name))) if name in LOG_CALLS:
            return
        case _:
            children = list(ast.iter_child_nodes(node))
    if statement is not None:
        yield node, statement
    for child in children:
        inner = child if statement is not None and isinstance(child, ast.stmt) else statement
        yield from _behaviour(child, inner)


def _changes(node: Any, code: Any) -> Iterator[tuple[str, Any, str]]:
    """The changes of one node: the operator's name, the node to replace, and the text that replaces it."""
    match node:
        case ast.Compare():
            for index, kind in enumerate(node.ops):
                ops = [*node.ops[:index], COMPARISONS[type(kind)](), *node.ops[index + 1 :]]
                yield "comparison", node, _text(ast.Compare(node.left, ops, node.comparators))
        case ast.BinOp() if type(node.op) in ARITHMETIC and not (_is_text(node.left) or _is_text(node.right)):
            yield "arithmetic", node, _text(ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right))
        case ast.AugAssign() if type(node.op) in ARITHMETIC and not _is_text(node.value):
            changed = ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
            yield "arithmetic", node, ast.unparse(changed)
        case ast.BoolOp():
            op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield "boolean", node, _text(ast.BoolOp(op, node.values))
        case ast.UnaryOp(op=ast.Not()):
            yield "boolean", node, f"({code(node.operand)})"
        case ast.Constant(value=bool()):
            yield "constant", node, str(not node.value)
        case ast.Constant(value=int() | float() as number):
            yield "constant", node, repr(number + 1)
        case ast.If() | ast.IfExp() if not _negated_anyway(node.test):
            yield "condition", node.test, f"not ({code(node.test)})"
        case ast.comprehension():
            for test in node.ifs:
                if not _negated_anyway(test):
                    yield "condition", test, f"not ({code(test)})"
        case ast.Slice():
            for bound in (node.lower, node.upper):
                if bound is not None and not isinstance(bound, ast.Constant):  # constants are changed anyway
                    yield "slice", bound, f"({code(bound)}) + 1"
        case ast.Return(value=ast.expr()) if not _is_none(node.value):
            yield "return", node.value, "None"
        case ast.Call():
            yield from _changes_of_call(node)


def _changes_of_call(node: ast.Call) -> Iterator[tuple[str, Any, str]]:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in SWAPPED:
            yield "min/max", node.func, SWAPPED[name]
    for keyword in node.keywords:
        if keyword.arg in (None, "strict"):
            continue
        others = [each for each in node.keywords if each is not keyword]
        yield "keyword", node, ast.unparse(ast.Call(node.func, node.args, others))
        if keyword.arg in AXES and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, int):
            yield "axis", keyword.value, "0" if keyword.value.value else "-1"


def _text(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _is_none(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _negated_anyway(node: ast.expr) -> bool:
    """True if another change of the condition negates it."""
    if isinstance(node, ast.Compare):
        return len(node.ops) == 1 and isinstance(
            node.ops[0], ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn
        )
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _header(statement: ast.stmt) -> range:
    """The lines of a statement up to the block inside it, if it has one."""
    body = getattr(statement, "body", None)
    end = body[0].lineno - 1 if body else statement.end_lineno
    return range(statement.lineno, max(end or 0, statement.lineno) + 1)


def _short(text: str) -> str:
    return textwrap.shorten(text, 60, placeholder="...")


def draw(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """One mutant on each of up to ``count`` lines. A larger ``count`` continues the same list."""
    by_line: dict[tuple[str, int], list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        by_line[mutant.file, mutant.lines.start].append(mutant)
    rng = random.Random(seed)
    lines = sorted(by_line)
    rng.shuffle(lines)
    return [rng.choice(by_line[line]) for line in lines[:count]]


# The record: which tests cover which lines


@dataclass(frozen=True)
class Record:
    """The result of ``record``.

    Attributes:
        digest: SHA-256 of the record.
        sources: SHA-256 of each source file.
        seconds: time of each test that passed.
        covering: the tests that run each line, by file and line.
    """

    digest: str
    sources: Mapping[str, str]
    seconds: Mapping[str, float]
    covering: Mapping[str, Mapping[int, Collection[str]]]

    @staticmethod
    def read(folder: Path) -> Record:
        if not (folder / "record.json").is_file():
            raise SystemExit(f"{folder}: no record of the tests; make one with `python -m tests.mutants record`")
        from coverage import CoverageData

        content = (folder / "record.json").read_bytes()
        found = json.loads(content)
        data = CoverageData(str(folder / "coverage"))
        data.read()
        tests_of_file: dict[str, list[str]] = defaultdict(list)
        for test in found["seconds"]:
            tests_of_file[test.partition("::")[0]].append(test)
        covering: dict[str, dict[int, set[str]]] = {}
        for file in found["sources"]:
            by_line = covering[file] = {}
            for line, contexts in data.contexts_by_lineno(file).items():
                tests: set[str] = set()
                for context in contexts:
                    test, _, phase = context.rpartition("|")
                    # Fixtures may be shared: the first test that needs one sets it up for all tests of the file.
                    tests.update([test] if phase == "run" else tests_of_file[test.partition("::")[0]])
                if tests := tests & found["seconds"].keys():
                    by_line[line] = tests
        return Record(_digest(content), found["sources"], found["seconds"], covering)

    def tests_of(self, mutant: Mutant) -> set[str]:
        """The tests that run the mutated expression, or at least its statement."""
        by_line = self.covering[mutant.file]
        for lines in (mutant.lines, mutant.statement):
            if tests := {test for line in lines for test in by_line.get(line, ())}:
                return tests
        return set()


def record(root: Path, folder: Path, pytest_arguments: Sequence[str]) -> int:
    """Run the tests under coverage and write the record."""
    folder.mkdir(parents=True, exist_ok=True)
    packages = [package for package in PACKAGES if (root / package).is_dir()]
    files = sorted(path for package in packages for path in (root / package).rglob("*.py"))
    sources = {path.relative_to(root).as_posix(): _digest(path.read_bytes()) for path in files}
    config, report = folder / "coveragerc", folder / "tests.jsonl"
    config.write_text("[run]\nrelative_files = true\n", encoding="utf-8")
    report.unlink(missing_ok=True)
    coverage = [*(f"--cov={package}" for package in packages), "--cov-context=test", "--cov-report="]
    # The last -m takes effect. By default every test is recorded, including the tests that pyproject.toml skips.
    command = [*_pytest(), *coverage, f"--cov-config={config}", "-m", "", *pytest_arguments]
    # Only the trace core of coverage can tell tests apart.
    environment = os.environ | {"COVERAGE_FILE": str(folder / "coverage"), "COVERAGE_CORE": "ctrace"}
    code = subprocess.run(command, cwd=root, env=environment | {REPORT: str(report)}).returncode
    if code not in (0, 1):
        raise SystemExit(f"pytest ended with exit status {code}; nothing is recorded")
    tests = outcomes(report)
    seconds = {test: outcome.seconds for test, outcome in tests.items() if outcome.passed}
    record = {"sources": sources, "seconds": seconds}
    (folder / "record.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    failed = [test for test, outcome in tests.items() if outcome.failed]
    _say(f"recorded {len(seconds)} tests in {folder}")
    if failed:
        _say("\n  ".join([f"{len(failed)} tests failed and will not be used:", *failed]))
    return 0


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()


def _pytest() -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "tests.mutants"]


# The pytest plugin: ``pytest -p tests.mutants``


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin. Workers of pytest-xdist send their reports to the controller, which writes them."""
    if REPORT in os.environ and not hasattr(config, "workerinput"):
        selected = os.environ.get(SELECTED)
        order = json.loads(Path(selected).read_text(encoding="utf-8")) if selected else None
        config.pluginmanager.register(Plugin(Path(os.environ[REPORT]), order))


class Plugin:
    """Writes the outcome of each test as JSON lines. If ``order`` is not None, only the tests in ``order`` are run, in that
    order."""

    def __init__(self, report: Path, order: Sequence[str] | None):
        self.report = report
        self.positions = None if order is None else {test: position for position, test in enumerate(order)}

    def write(self, **fields: Any) -> None:
        with self.report.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.positions is not None:
            positions = self.positions
            items[:] = sorted(
                (item for item in items if item.nodeid in positions), key=lambda item: positions[item.nodeid]
            )

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.write(test=item.nodeid, phase="collected")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.write(test=report.nodeid, phase="collection", outcome="failed", seconds=0)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(test=nodeid, phase="start")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.write(test=report.nodeid, phase=report.when, outcome=report.outcome, seconds=report.duration)


@dataclass
class Outcome:
    """The outcome of a test, or of a test file that could not be collected."""

    seconds: float = 0.0
    started: bool = False
    finished: bool = False
    passed: bool = False
    failed: bool = False


def outcomes(report: Path) -> dict[str, Outcome]:
    """The outcomes that :class:`Plugin` wrote, by test."""
    found: dict[str, Outcome] = defaultdict(Outcome)
    for line in report.read_text(encoding="utf-8").splitlines() if report.is_file() else ():
        event = json.loads(line)
        outcome, phase = found[event["test"]], event["phase"]
        outcome.started |= phase == "start"
        outcome.finished |= phase == "teardown"
        if "outcome" in event:
            outcome.seconds += event["seconds"]
            outcome.failed |= event["outcome"] == "failed"
            outcome.passed |= phase == "call" and event["outcome"] == "passed"
    for outcome in found.values():
        outcome.passed &= not outcome.failed
    return dict(found)


# Running mutants


def copy_of(root: Path, target: Path) -> Path:
    """Copies the files of a checkout that git tracks or would track, in their current state, and returns the copy."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    return target


def choose(tests: Collection[str], seconds: Mapping[str, float], maximum: int) -> list[str]:
    """Returns at most ``maximum`` of the tests, taken evenly from their files, the fastest tests of each file. Tests in the same
    file stay together, since they share fixtures. The file whose tests take the least time is first."""
    by_file: dict[str, list[str]] = defaultdict(list)
    for test in sorted(tests, key=lambda test: (seconds[test], test)):
        by_file[test.partition("::")[0]].append(test)
    ranked = sorted(
        ((rank, seconds[test], test) for of_file in by_file.values() for rank, test in enumerate(of_file)),
    )
    chosen = {test for _, _, test in ranked[:maximum]}
    files = [[test for test in of_file if test in chosen] for of_file in by_file.values()]
    files.sort(key=lambda of_file: (sum(seconds[test] for test in of_file), of_file))
    return [test for of_file in files for test in of_file]


@dataclass(frozen=True, eq=False)
class Trial:
    """A mutant with the tests that are run against it, chosen from the ``covering`` tests that run the mutated line."""

    mutant: Mutant
    tests: Sequence[str]
    covering: int

    def key(self, known: Record) -> str:
        """Returns the key of the result, which is reused only for the same record, change and tests."""
        mutant = self.mutant
        parts = [known.digest, mutant.file, mutant.start, mutant.end, mutant.text, *self.tests]
        return _digest(json.dumps(parts).encode())


class Runner:
    """Runs tests in copies of the checkout, and stops the processes that it started."""

    def __init__(self) -> None:
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def pytest(
        self, copy: Path, arguments: Sequence[str], order: Sequence[str] | None = None, limit: float | None = None
    ) -> tuple[int | None, dict[str, Outcome], str]:
        """Returns the exit status (None if the time limit was exceeded), the outcomes, and the end of the output."""
        if self.stopped:
            raise RuntimeError("interrupted")
        with tempfile.TemporaryDirectory() as folder:
            report, selected, output = (Path(folder) / name for name in ("report", "selected", "output"))
            # A mutant can have the size and the time of the original, so bytecode is neither written nor read.
            environment = os.environ | {REPORT: str(report), "PYTHONDONTWRITEBYTECODE": "1"}
            environment.pop(SELECTED, None)
            if order is not None:
                selected.write_text(json.dumps(order), encoding="utf-8")
                environment[SELECTED] = str(selected)
            with output.open("wb") as file:
                process = subprocess.Popen(
                    [*_pytest(), "-p", "no:cacheprovider", *arguments],
                    cwd=copy,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self.processes.add(process)
                status: int | None = None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(limit)
                _stop(process)  # including processes that the tests started and that a mutant kept running
                self.processes.discard(process)
            return status, outcomes(report), output.read_text(encoding="utf-8", errors="replace")[-2000:]

    def stop(self) -> None:
        """Stops all processes. No more processes are started."""
        self.stopped = True
        for process in list(self.processes):
            _stop(process)

    def tier(self, copy: Path, expression: str | None) -> set[str]:
        """The tests that pytest selects by default, or by a marker expression."""
        marked = [] if expression is None else ["-m", expression]
        status, found, output = self.pytest(copy, ["--collect-only", *marked])
        if status != 0:
            raise SystemExit(f"pytest cannot collect the tests (exit status {status}):\n{output}")
        return set(found)

    def check(self, mutant: Mutant, tests: Sequence[str], seconds: Mapping[str, float], copy: Path) -> dict[str, Any]:
        """Plants a mutant in a copy, runs the tests until one fails, and restores the copy."""
        path, remaining = copy / mutant.file, list(tests)
        original = path.read_bytes()
        unreliable: list[str] = []
        while remaining:
            limit = 3 * sum(seconds[test] for test in remaining) + 60
            try:
                path.write_bytes(mutant.apply(original))
                status, found, output = self.pytest(copy, _arguments(remaining), remaining, limit)
            finally:
                path.write_bytes(original)
            if status == 0:
                break
            failed = [test for test, outcome in found.items() if outcome.failed]
            unfinished = [test for test, outcome in found.items() if outcome.started and not outcome.finished]
            by = (failed or unfinished or [f"exit status {status}"])[0]
            if status is None:
                return {"outcome": "timeout", "by": by, "unreliable": unreliable}
            if status == 5:  # no test was collected: the mutant removes the parameters of the tests
                break
            if by not in remaining:  # a file that cannot be imported, or a crash
                return {"outcome": "caught", "by": by, "unreliable": unreliable, "output": output}
            if self.pytest(copy, _arguments([by]), [by], limit)[0] == 0:  # the original passes
                return {"outcome": "caught", "by": by, "unreliable": unreliable}
            unreliable.append(by)
            remaining.remove(by)
        return {"outcome": "survived", "by": None, "unreliable": unreliable}

    def check_all(
        self, trials: Sequence[Trial], seconds: Mapping[str, float], copies: Sequence[Path]
    ) -> Iterator[tuple[Trial, dict[str, Any]]]:
        """Check several mutants, one at a time in each copy; yields each with its result as it comes."""
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for copy in copies:
            free.put(copy)

        def result_of(trial: Trial) -> dict[str, Any]:
            copy, start = free.get(), time.monotonic()
            try:
                found = self.check(trial.mutant, trial.tests, seconds, copy)
            finally:
                free.put(copy)
            return {**found, "seconds": round(time.monotonic() - start, 1)}

        with ThreadPoolExecutor(len(copies)) as pool:
            futures = {pool.submit(result_of, trial): trial for trial in trials}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()


def _arguments(tests: Sequence[str]) -> list[str]:
    """Arguments of pytest for the files of the tests. They lift the default choice of markers."""
    return ["-x", "-q", "-m", "", *dict.fromkeys(test.partition("::")[0] for test in tests)]


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def files_in(files: Collection[str], paths: Collection[str]) -> list[str]:
    """Returns the recorded ``files`` at or below any of ``paths``, which are relative to the checkout.

    Raises:
        SystemExit: if no recorded file is at or below a path.
    """
    chosen: set[str] = set()
    for path in paths:
        found = [file for file in files if PurePosixPath(file).is_relative_to(PurePosixPath(path))]
        if not found:
            raise SystemExit(
                f"--paths {path}: no recorded file is at or below this path; pass files or folders in "
                f"{', '.join(PACKAGES)}, relative to the checkout, or record again"
            )
        chosen.update(found)
    return [file for file in files if file in chosen]


def run(root: Path, folder: Path, options: argparse.Namespace) -> int:
    """Draw mutants, run the mutants without a result, and print all results and the share caught."""
    known = Record.read(folder)
    files = files_in(known.sources, options.paths) if options.paths else list(known.sources)
    sources = {file: (root / file).read_bytes() for file in files if (root / file).is_file()}
    changed = [file for file in files if _digest(sources.get(file, b"")) != known.sources[file]]
    if changed:
        _say(f"skipped, since they changed after the record: {', '.join(changed)}")
    mutants = [
        mutant
        for file in sorted(sources.keys() - set(changed))
        for mutant in mutants_of(file, sources[file])
        if known.tests_of(mutant)
    ]
    runner = Runner()
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        copies = [copy_of(root, Path(scratch) / str(number)) for number in range(options.jobs)]
        tier = runner.tier(copies[0], options.tests)
        trials = []
        for mutant in draw(mutants, options.count, options.seed):
            covering = known.tests_of(mutant) & tier
            trials.append(Trial(mutant, choose(covering, known.seconds, options.most), len(covering)))
        results = _read_results(folder / "results.jsonl")
        done = {trial: results[key] for trial in trials if (key := trial.key(known)) in results}
        for trial, result in done.items():
            _print_result(trial, result)
        left = [trial for trial in trials if trial not in done]
        for trial, result in runner.check_all(left, known.seconds, copies):
            done[trial] = result
            mutant = trial.mutant
            fields: dict[str, Any] = {"location": mutant.location, "operator": mutant.operator, "change": mutant.change}
            fields |= {"key": trial.key(known), "tests": options.tests, "tests_run": len(trial.tests)}
            with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({**fields, **result}) + "\n")
            _print_result(trial, result)
    _print_shares({trial.mutant: result for trial, result in done.items()})
    return 0


def _read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Results by key. The last line may be incomplete after an interruption."""
    results = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(line)
            results[found["key"]] = found
    return results


def _print_result(trial: Trial, result: Mapping[str, Any]) -> None:
    mutant, run, covering = trial.mutant, len(trial.tests), trial.covering
    lines = [f"{result['outcome']:<9}{mutant.location:<36} {mutant.change}"]
    if result["by"]:
        lines.append(f"by {result['by']}")
    if not covering:
        lines.append("none of these tests covers the line")
    if run < covering:
        lines.append(f"limited to {run} of the {covering} tests that cover the line")
    for test in result["unreliable"]:
        lines.append(f"ignored, since it also fails on the original code: {test}")
    _say("\n         ".join(lines))


def _print_shares(results: Mapping[Mutant, Mapping[str, Any]]) -> None:
    by_package: dict[str, list[bool]] = defaultdict(list)
    for mutant, result in results.items():
        by_package[mutant.file.partition("/")[0]].append(result["outcome"] != "survived")
    every = [caught for package in by_package.values() for caught in package]
    _say("")
    for package, caught in [*sorted(by_package.items()), ("total", every)]:
        share = f"{sum(caught) / len(caught):.0%}" if caught else "-"
        _say(f"{package:<10}{sum(caught):>4} of {len(caught):>4} caught {share:>5}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the record and of the results")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record", help="run the tests under coverage; all other arguments are passed to pytest")
    running = commands.add_parser("run", help="draw mutants and run the tests that cover them")
    running.add_argument("--count", type=int, default=60, help="number of mutants (default: 60)")
    running.add_argument(
        "--paths",
        nargs="+",
        metavar="PATH",
        help="files or folders, relative to the checkout, to draw mutants from (default: all recorded files)",
    )
    running.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    running.add_argument("--tests", metavar="MARKERS", help="marker expression of the tests (default: all tests)")
    running.add_argument("--most", type=int, default=60, help="maximum number of tests per mutant (default: 60)")
    running.add_argument("--jobs", type=int, default=1, help="number of mutants at a time (default: 1)")
    options, rest = parser.parse_known_args(arguments)
    if options.command == "record":
        return record(ROOT, options.folder.resolve(), rest)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if min(options.count, options.most, options.jobs) < 1:
        parser.error("--count, --most and --jobs must be at least 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    try:
        return run(ROOT, options.folder.resolve(), options)
    except KeyboardInterrupt:
        _say("interrupted; rerun the same command to continue")
        return 130


if __name__ == "__main__":
    sys.exit(main())
