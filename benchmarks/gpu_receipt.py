"""Runs tests and measurements on a GPU and writes a receipt: ``make gpu``, or ``python -m benchmarks.gpu_receipt``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from tasks import ROOT
from tasks.tables import DEMO, read_tables
from tools.reproduce.identity import code_identity, machine_and_packages
from utils.commands import call
from utils.errors import UserError, one_line_errors
from utils.files import write_text
from utils.flags import Positive

MINUTES = 40
"""Default time limit in minutes."""

PYTHON = sys.executable
MICRO_BATCHES = {224: (128, 128, 50), 384: (48, 48, 18), 768: (12, 12, 4)}
"""Maps the image size in pixels to the pairs, regions and images of regions in a micro-batch."""
DIVISORS = (1, 2, 4, 8)
"""Divisors of the micro-batch; if it does not fit into memory, the next divisor is tried."""


class Step(NamedTuple):
    """A step of the receipt.

    Attributes:
        name: name of the step.
        commands: alternative commands. The next command runs only if the last line of the previous command's log contains
            ``retry_on``. The word "NUMBERS" in a command is replaced by the path of a file for the results.
        minutes: time limit.
        read: function that reads JSON values from the file of results; if None, the file itself is JSON.
        retry_on: see ``commands``.
    """

    name: str
    commands: list[list[str]]
    minutes: float
    read: Callable[[Path], Any] | None = None
    retry_on: str | None = None


def steps_of(out: Path, *, cpu: bool) -> Iterator[Step]:
    """Yields the steps, at full size on a GPU or at small sizes on the CPU. ``out`` is the folder of the demo's runs."""

    def benchmark(module: str, *words: str) -> list[str]:
        return [PYTHON, "-m", f"benchmarks.{module}", *(["--small"] if cpu else []), *words, "--json", "NUMBERS"]

    tests = ["tests/models/test_golden_random64.py", "-k", "cpu", "-m", "not slow"] if cpu else ["-m", "gpu"]
    pytest = [PYTHON, "-m", "pytest", *tests, "-p", "no:cacheprovider", "--junitxml", "NUMBERS"]
    yield Step("tests", [pytest], 10, read_tests)
    for size in ("base",) if cpu else ("base", "large"):
        for side in (224,) if cpu else MICRO_BATCHES:
            commands = [benchmark("gpu", *words) for words in speed_arguments(size, side, cpu)]
            yield Step(f"speed of {size} at {side} px", commands, 4, retry_on="all ways ran out of memory")
    yield Step("profile", [benchmark("profile_step", *([] if cpu else ["--trace", str(out / "trace.json.gz")]))], 3)
    yield Step("planned and measured", [benchmark("step_memory")], 6)
    small = ["data.images.batch_size=16", "data.regions.batch_size=16", "data.regions.max_images=4"]
    yield Step("two processes", [benchmark("two_processes", *([] if cpu else small))], 3)
    scenes = [PYTHON, "-m", "demo.scenes", "--out", "data/scenes", "--seed", "0"]
    yield Step("demo: scenes", [scenes], 5, lambda _: None)
    for name, cell in read_tables(DEMO).items():
        words = [PYTHON, "run.py", "reproduce", "--cell", name, "--unchecked", "--output", str(out / "demo")]
        words += ["--cpu", "1", "--small"] if cpu else ["--gpus", "1"]
        if cell.column == "pretraining":  # one process, with the batches and losses of the two processes in the table
            words += ["train.accumulate=2", "model.contrastive.chunks=2"]
        yield Step(f"demo: {cell.column}", [words], 6, lambda _, name=name: read_demo(out / "demo", name))  # type: ignore[misc]


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
        golden, name = "test_golden" in case.get("classname", ""), case.get("name", "")
        group = f"golden cases, {'bf16' if 'bf16' in name else 'float32'}" if golden else "others"
        found = groups.setdefault(group, {"passed": 0, "skipped": 0, "failed": []})
        if case.find("failure") is not None or case.find("error") is not None:
            found["failed"].append(f"{case.get('classname')}::{name}")
        else:
            found["skipped" if case.find("skipped") is not None else "passed"] += 1
    return groups


def read_demo(folder: Path, cell: str) -> list[dict[str, Any]]:
    """Reads the results of a cell of the demo, with the corresponding results on the CPU (``configs/tables_demo.yaml``)."""
    receipts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("receipt.json"))]
    return [{"cell": cell, **number} for each in receipts if each["cell"] == cell for number in each["numbers"]]


def machine() -> dict[str, Any]:
    """Describes the device, its driver, and the packages. Called in a separate process, because it creates a CUDA context."""
    import torch

    facts = machine_and_packages()
    if not torch.cuda.is_available():
        return {**facts, "device": "CPU"}
    card = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    try:
        driver = subprocess.run(
            [*query, f"--id=GPU-{card.uuid}"], capture_output=True, text=True, timeout=60
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        driver = ""
    return {
        **facts,
        "memory_gb": round(card.total_memory / 1e9, 1),
        "compute_capability": f"{card.major}.{card.minor}",
        "driver, power limit, clock": driver or "unknown, since nvidia-smi does not report them",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


def run_step(step: Step, out: Path, minutes: float, environment: dict[str, str]) -> dict[str, Any]:
    """Runs a step for at most ``minutes``. Returns its entry of the receipt."""
    slug = step.name.replace(": ", "-").replace(" ", "-")
    log, numbers = out / f"{slug}.log", out / f"{slug}.numbers"
    numbers.unlink(missing_ok=True)
    started = time.monotonic()
    failures: list[str] = []
    kept: dict[str, Any] = {"step": step.name}
    with log.open("w", encoding="utf-8") as output:
        for words in step.commands:
            command = [str(numbers) if word == "NUMBERS" else word for word in words]
            kept["command"] = shlex.join(["python" if word == PYTHON else word for word in words])
            output.write(f"$ {shlex.join(command)}\n")
            output.flush()
            left = 60 * min(step.minutes, minutes) - (time.monotonic() - started)
            status = _run(command, environment, output, max(left, 1))
            if status == 0:
                failures = []
                break
            ended = f"status {status}" if status else f"stopped after {(time.monotonic() - started) / 60:.1f} minutes"
            failures.append(f"{ended}: {_last_line(log)}" if status else ended)
            if not status or not step.retry_on or step.retry_on not in _last_line(log):
                break
    kept["seconds"] = round(time.monotonic() - started, 1)
    try:
        kept["numbers"] = (step.read or _read_json)(numbers)
    except (OSError, ValueError, ElementTree.ParseError):
        kept["numbers"] = None
        failures = failures or [f"wrote no results; see {log.name}"]
    kept["failure"] = "; ".join(failures) or None
    return _without_paths(kept, out)


def _without_paths(value: Any, out: Path) -> Any:
    """Returns ``value`` with the paths of this machine replaced."""
    if isinstance(value, str):
        for path, name in ((out, "OUT"), (ROOT, "."), (Path.home(), "~")):
            value = value.replace(str(path), name)
        return value
    if isinstance(value, dict):
        return {key: _without_paths(each, out) for key, each in value.items()}
    return [_without_paths(each, out) for each in value] if isinstance(value, list) else value


def _run(command: list[str], environment: dict[str, str], output: IO[str], seconds: float) -> int | None:
    """Runs a command and returns its exit status. If it takes longer than ``seconds``, kills it with all its child processes and
    returns None."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also after Ctrl-C
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300]


def as_markdown(receipt: dict[str, Any]) -> str:
    """Formats the receipt as Markdown."""
    where, code = receipt["machine"], receipt["code"]
    lines = [f"# {where['device']}", ""]
    if receipt["cpu"]:
        lines += ["Run on the CPU at small sizes to check that everything works; the numbers are meaningless.", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in where.items() if not isinstance(value, dict)]
    lines.append(f"| packages | {', '.join(f'{name} {release}' for name, release in where['packages'].items())} |")
    lines.append(
        f"| code | version {code['version']}, commit {code['commit'][:12] or 'unknown'}{', changed' * code['changed']} |"
    )
    lines += [f"| made | {receipt['made']} |", "", "| step | seconds | |", "|---|---|---|"]
    lines += [f"| {each['step']} | {each['seconds']:.0f} | {each['failure'] or 'done'} |" for each in receipt["steps"]]
    lines += [f"| {name} | | not run |" for name in receipt["not_run"]]
    by_name = {each["step"]: each["numbers"] for each in receipt["steps"] if each["numbers"]}
    for name, table in TABLES.items():
        if name in by_name:
            lines += ["", f"## {name[0].upper()}{name[1:]}", "", *table(by_name[name])]
    if speeds := {name: rows for name, rows in by_name.items() if name.startswith("speed")}:
        lines += ["", "## Speed", "", *_speeds(speeds)]
    if demo := [number for name, numbers in by_name.items() if name.startswith("demo") for number in numbers]:
        lines += ["", "## Demo", "", *_demo(demo)]
    return "\n".join(lines) + "\n"


def _tests(groups: dict[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {each['passed']} | {each['skipped']} | {len(each['failed'])} |" for name, each in groups.items()
    ]
    failed = [f"- `{name}`" for each in groups.values() for name in each["failed"]]
    return ["| | passed | skipped | failed |", "|---|---|---|---|", *rows, "", *failed]


def _demo(numbers: list[dict[str, Any]]) -> list[str]:
    rows = []
    for each in numbers:
        measured = ", ".join(f"{value:.1f}" for value in each["measured"])
        rows.append(f"| {each['cell']} | {each['metric']} | {each['published']} | {measured} |")
    return ["| cell | metric | on the CPU | here |", "|---|---|---|---|", *rows]


def _speeds(speeds: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = ["| | way | samples/s | ms/step | forward, backward, optimiser | GB | TFLOP/s | utilisation |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, rows in speeds.items():
        for row in rows:
            if "failure" in row:
                lines.append(f"| {name.removeprefix('speed of ')} | {row['way']} | {row['failure']} | | | | | |")
                continue
            phases = ", ".join(f"{row['phases'][phase]:.1f}" for phase in ("forward", "backward", "optimiser"))
            numbers = [
                _formatted(row["memory_gb"], ".1f"),
                _formatted(row["tflops_per_s"], ".2f"),
                _formatted(row["utilisation"], ".1%"),
            ]
            lines.append(
                f"| {name.removeprefix('speed of ')} | {row['way']} | {row['samples_per_s']:.1f} | "
                f"{row['milliseconds_per_step']:.1f} | {phases} | {' | '.join(numbers)} |"
            )
    return lines


def _profile(found: dict[str, Any]) -> list[str]:
    idle = [] if found["idle"] is None else [f"- idle {found['idle']:.0%} of the time"]
    attention = [f"- attention: {count:g} calls per step, {name}" for name, count in found["attention"].items()]
    rows = [
        f"| `{each['name'][:100].replace('|', ' ')}` | {each['share']:.1%} | {each['milliseconds_per_step']:.2f} |"
        for each in found["kernels"][:15]
    ]
    return [*idle, *attention, "", "| kernel | share | ms/step |", "|---|---|---|", *rows]


def _planned(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| | examples | GB planned | GB measured | s planned | s measured |", "|---|---|---|---|---|---|"]
    for row in rows:
        numbers = [_formatted(row[side]["memory"], ".2f", 1e9) for side in ("planned", "measured")]
        numbers += [_formatted(row[side]["seconds"], ".3f") for side in ("planned", "measured")]
        lines.append(f"| {row['case']} | {row['examples']} | {' | '.join(numbers)} |")
    return lines


def _two_processes(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['losses']} losses over {found['steps']} steps differ from a single process by at most "
        f"{found['largest_difference']:.1e} ({found['backend']})."
    ]


def _formatted(number: float | None, form: str, unit: float = 1) -> str:
    return "unknown" if number is None else format(number / unit, form)


TABLES: dict[str, Callable[[Any], list[str]]] = {
    "tests": _tests,
    "profile": _profile,
    "planned and measured": _planned,
    "two processes": _two_processes,
}


def make(steps: Sequence[Step], out: Path, facts: dict[str, Any], *, cpu: bool, minutes: float) -> dict[str, Any]:
    """Runs the steps that are not done yet, writes the receipt after each step, and returns the receipt.

    Steps that failed in a previous call are run last. Results of different sources, versions or devices are discarded.

    Args:
        steps: all steps of the receipt.
        out: folder of the receipt.
        facts: the result of :func:`machine`.
        cpu: if True, GPUs are hidden.
        minutes: no step starts after this time.
    """
    out.mkdir(parents=True, exist_ok=True)
    code, kept_file = code_identity(), out / "kept.json"
    same = {
        "cpu": cpu,
        "sources": code["sha256"],
        "others": _digest("benchmarks", "tests", "demo", "tools"),
        "machine": facts,
    }
    kept = _read_json(kept_file) if kept_file.is_file() else {}
    done = kept["steps"] if kept.get("of") == same else {}
    environment = _environment(cpu)
    started = time.monotonic()

    def receipt() -> dict[str, Any]:
        return {
            "cpu": cpu,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": facts,
            "code": code,
            "steps": [done[step.name] for step in steps if step.name in done],
            "not_run": [step.name for step in steps if step.name not in done],
        }

    due = [step for step in steps if step.name not in done]
    due += [step for step in steps if step.name in done and done[step.name]["failure"]]
    for number, step in enumerate(due):
        left = minutes - (time.monotonic() - started) / 60
        if left <= 0:
            break
        remaining = min(left, sum(each.minutes for each in due[number:]))
        sys.stdout.write(f"{number + 1}/{len(due)} {step.name}; at most {remaining:.0f} minutes left\n")
        sys.stdout.flush()
        done[step.name] = run_step(step, out, left, environment)
        sys.stdout.write(f"    {done[step.name]['seconds']:.0f} s: {done[step.name]['failure'] or 'done'}\n")
        write_text(kept_file, json.dumps({"of": same, "steps": done}) + "\n")
        write_text(out / "receipt.json", json.dumps(receipt(), indent=2, ensure_ascii=False) + "\n")
        write_text(out / "receipt.md", as_markdown(receipt()))
    return receipt()


def _digest(*folders: str) -> str:
    """Returns a hash of the sources in some folders of the checkout."""
    total = hashlib.sha256()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            total.update(path.read_bytes())
    return total.hexdigest()


def _environment(cpu: bool) -> dict[str, str]:
    """Returns the environment of a step, in which GPUs are hidden if ``cpu``."""
    return {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})}


def main(*, out_: Path | None = None, cpu: bool = False, minutes: Positive = MINUTES, machine_: bool = False) -> int:
    """Runs tests and measurements on a GPU and writes a receipt; make gpu runs it too.

    The steps run one after another, each as a separate command with a time limit: tests on the device, the demo compared with its
    results on the CPU, speed of base and large models, a profile, planned and measured memory and time, and two processes on the
    device. The results of each step are saved immediately, so the same command resumes after an interruption; failed steps are
    repeated. The receipt consists of receipt.json and receipt.md, next to the logs of all steps.

    --cpu runs the same steps on the CPU at small sizes, to check that everything works; its numbers are meaningless.

    Args:
        out_: folder of the receipt (default: runs/gpu, runs/gpu_on_cpu).
        cpu: run all steps on the CPU at small sizes, to try them.
        minutes: no step starts after this time; rerun the command to continue.
        machine_: print information about the machine; the benchmark calls itself with this flag in a separate process.

    Examples:
        python -m benchmarks.gpu_receipt
    """

    @one_line_errors
    def run() -> int:
        import torch

        if machine_:
            sys.stdout.write(json.dumps(machine()))
            return 0
        if not cpu and not torch.cuda.is_available():
            raise UserError(
                "torch finds no GPU", remedy="pass --cpu (make gpu CPU=1) to try all steps on the CPU at small sizes"
            )
        out = (out_ or ROOT / "runs" / ("gpu_on_cpu" if cpu else "gpu")).absolute()
        command = [PYTHON, "-m", "benchmarks.gpu_receipt", "--machine"]
        facts = json.loads(
            subprocess.run(command, cwd=ROOT, env=_environment(cpu), stdout=subprocess.PIPE, check=True).stdout
        )
        digest = code_identity()["sha256"][:8]  # keeps the demo's runs of other sources separate
        steps = list(steps_of(out / f"runs-{digest}", cpu=cpu))
        receipt = make(steps, out, facts, cpu=cpu, minutes=minutes)
        missing = {
            "failed": [each["step"] for each in receipt["steps"] if each["failure"]],
            "not run": receipt["not_run"],
        }
        message = "; ".join(f"{what}: {', '.join(names)}" for what, names in missing.items() if names)
        again = "; run the same command again to resume" if message else ""
        sys.stdout.write(f"{out / 'receipt.md'} and receipt.json; {message or 'all steps are done'}{again}\n")
        return 1 if message else 0

    return run()


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.gpu_receipt"))
