"""The steps of ``make gpu``: what they run, how long they may take, and how their results are read."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from tasks import ROOT
from tasks.tables import DEMO, read_tables
from utils.files import read_json

PYTHON = sys.executable
OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""Environment variables of all steps, which use only what is on the machine."""

GRACE_S = 15
"""Time that a step has to save its results so far, after it is interrupted at its limit."""

MICRO_BATCHES = {224: (128, 128, 50), 384: (48, 48, 18), 768: (12, 12, 4)}
"""Maps the image size in pixels to the pairs, regions and images of regions in a micro-batch."""
DIVISORS = (1, 2, 4, 8)
"""Divisors of the micro-batch; if it does not fit into memory, the next divisor is tried."""


class Step(NamedTuple):
    """A step of ``make gpu``.

    Attributes:
        name: name of the step, as in ``make gpu STEP=name``.
        commands: alternative commands. The next command runs only if the last line of the previous command's log contains
            ``retry_on``. The word "NUMBERS" in a command is replaced by the path of a file for the results.
        minutes: time limit of all commands together.
        read: function that reads JSON values from the file of results; if None, the file itself is JSON.
        retry_on: see ``commands``.
        needs: names of the steps whose files this step reads.
    """

    name: str
    commands: list[list[str]]
    minutes: float
    read: Callable[[Path], Any] | None = None
    retry_on: str | None = None
    needs: tuple[str, ...] = ()


def steps_of(out: Path, *, cpu: bool) -> Iterator[Step]:
    """Yields the steps in their order, at full size on a GPU or at small sizes on the CPU.

    Args:
        out: folder for the demo's runs and the trace of the profiler.
        cpu: see above.
    """

    def benchmark(module: str, *words: str) -> list[str]:
        return [PYTHON, "-m", f"benchmarks.{module}", *(["--small"] if cpu else []), *words, "--json", "NUMBERS"]

    def tests(*of_gpu: str, of_cpu: str) -> list[str]:
        words = [of_cpu, "-k", "cpu", "-m", "not slow"] if cpu else [*of_gpu, "-m", "gpu"]
        return [PYTHON, "-m", "pytest", *words, "-p", "no:cacheprovider", "--junitxml", "NUMBERS"]

    of_models = tests("tests/models", of_cpu="tests/models/test_golden_random64.py")
    yield Step("tests-models", [of_models], 7, read_tests)
    of_others = tests("--ignore=tests/models", of_cpu="tests/engine/test_steps_on_devices.py")
    yield Step("tests-others", [of_others], 7, read_tests)
    for size in ("base",) if cpu else ("base", "large"):
        for side in (224,) if cpu else MICRO_BATCHES:
            commands = [benchmark("gpu", *words) for words in speed_arguments(size, side, cpu)]
            yield Step(f"speed-{size}-{side}", commands, 5, retry_on="all ways ran out of memory")
    yield Step("profile", [benchmark("profile_step", *([] if cpu else ["--trace", str(out / "trace.json.gz")]))], 3)
    yield Step("step-memory", [benchmark("step_memory")], 6)
    small = ["data.images.batch_size=16", "data.regions.batch_size=16", "data.regions.max_images=4"]
    yield Step("two-processes", [benchmark("two_processes", *([] if cpu else small))], 3)
    scenes = [PYTHON, "-m", "demo.scenes", "--out", "data/scenes", "--seed", "0"]
    yield Step("demo-scenes", [scenes], 5, lambda _: None)
    for name, cell in read_tables(DEMO).items():
        words = [PYTHON, "run.py", "reproduce", "--cell", name, "--unchecked", "--output", str(out / "demo")]
        words += ["--cpu", "1", "--small"] if cpu else ["--gpus", "1"]
        needs = ["demo-scenes"]
        if cell.column == "pretraining":  # one process, with the batches and losses of the two processes in the table
            words += ["train.accumulate=2", "model.contrastive.chunks=2"]
        else:
            needs.append("demo-pretraining")
        read = partial(read_demo, out / "demo", name)
        yield Step(f"demo-{cell.column}", [words], 7, read, needs=tuple(needs))


def speed_arguments(size: str, side: int, cpu: bool) -> Iterator[list[str]]:
    """Yields arguments for :mod:`benchmarks.gpu`, with increasingly small micro-batches."""
    if cpu:
        yield ["--rounds", "2", "--ways", "plain,eager"]
        return
    ways = "plain,eager,compiled" if side == 224 else "eager,compiled"
    for divisor in DIVISORS:
        pairs, regions, images = (max(1, number // divisor) for number in MICRO_BATCHES[side])
        yield [
            *("--config", f"configs/pretrain/{size}_4m.yaml", "--rounds", "10", "--ways", ways),
            *(f"model.vision.image_size={side}", "train.global_batch=null", f"data.images.batch_size={pairs}"),
            *(f"data.regions.batch_size={regions}", f"data.regions.max_images={images}"),
        ]


def read_tests(path: Path) -> dict[str, Any]:
    """Reads the numbers of passed, skipped and failed tests from a JUnit file: golden cases in float32 and bf16, and other
    tests."""
    groups: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name = case.get("name")
        if name is None:  # pytest was interrupted in this test
            continue
        golden = "test_golden" in case.get("classname", "")
        group = f"golden cases, {'bf16' if 'bf16' in name else 'float32'}" if golden else "others"
        found = groups.setdefault(group, {"passed": 0, "skipped": 0, "failed": []})
        if case.find("failure") is not None or case.find("error") is not None:
            found["failed"].append(f"{case.get('classname')}::{name}")
        else:
            found["skipped" if case.find("skipped") is not None else "passed"] += 1
    return groups


def read_demo(folder: Path, cell: str, _: Path) -> list[dict[str, Any]]:
    """Reads the results of a cell of the demo, with the corresponding results on the CPU (``configs/tables_demo.yaml``)."""
    receipts = [read_json(path) for path in sorted(folder.rglob("receipt.json"))]
    return [{"cell": cell, **number} for each in receipts if each["cell"] == cell for number in each["numbers"]]


def environment(*, cpu: bool) -> dict[str, str]:
    """Returns the environment of a step: no network, and no GPU if ``cpu``."""
    return {**os.environ, **OFFLINE, **({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})}


def run_step(step: Step, out: Path, minutes: float, variables: dict[str, str]) -> dict[str, Any]:
    """Runs a step and returns its entry of the receipt.

    Args:
        step: the step.
        out: folder for its log and the file of its results.
        minutes: limit in addition to the limit of the step.
        variables: its environment, see :func:`environment`.
    """
    log, numbers = out / f"{step.name}.log", out / f"{step.name}.numbers"
    numbers.unlink(missing_ok=True)
    started = time.monotonic()
    failures: list[str] = []
    entry: dict[str, Any] = {"step": step.name}
    with log.open("w", encoding="utf-8") as output:
        for words in step.commands:
            command = [str(numbers) if word == "NUMBERS" else word for word in words]
            entry["command"] = shlex.join(["python" if word == PYTHON else word for word in words])
            output.write(f"$ {shlex.join(command)}\n")
            output.flush()
            left = 60 * min(step.minutes, minutes) - (time.monotonic() - started)
            status = _run(command, variables, output, max(left, 1))
            if status == 0:
                failures = []
                break
            if status is None:
                failures.append(
                    f"stopped at its limit of {step.minutes:g} minutes"
                    if step.minutes <= minutes
                    else f"stopped after {(time.monotonic() - started) / 60:.1f} minutes, when the time for all steps was over"
                )
                break
            failures.append(f"status {status}: {_last_line(log)}")
            if not step.retry_on or step.retry_on not in _last_line(log):
                break
    entry["seconds"] = round(time.monotonic() - started, 1)
    try:
        entry["numbers"] = (step.read or read_json)(numbers)
    except (OSError, ValueError, ElementTree.ParseError):
        entry["numbers"] = None
        failures = failures or [f"wrote no results; see {log.name}"]
    entry["failure"] = "; ".join(failures) or None
    return _without_paths(entry, out)


def _without_paths(value: Any, out: Path) -> Any:
    """Returns ``value`` with the paths of this machine replaced."""
    if isinstance(value, str):
        for path, name in ((out, "OUT"), (ROOT, "."), (Path.home(), "~")):
            value = value.replace(str(path), name)
        return value
    if isinstance(value, dict):
        return {key: _without_paths(each, out) for key, each in value.items()}
    return [_without_paths(each, out) for each in value] if isinstance(value, list) else value


def _run(command: list[str], variables: dict[str, str], output: IO[str], seconds: float) -> int | None:
    """Runs a command and returns its exit status, or None if it takes longer than ``seconds``.

    A command that takes too long is interrupted like with Ctrl-C, after which pytest writes the results so far and a run saves a
    checkpoint. If it has not ended after :data:`GRACE_S`, it is killed with all its child processes.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        return None
    finally:  # also after Ctrl-C
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300]
