"""Tests and measurements on a GPU, in one command with one receipt: ``make gpu``, or ``python -m benchmarks.gpu_receipt``.

The steps run one after another, each a separate command with a time limit: tests on the device, the demo compared with its
results on the CPU, speed of base and large models, a profile, planned and measured memory and time, and two processes on the
device. The results of a step are saved at once, so the same command resumes after an interruption; failed steps are run again.
The receipt is ``receipt.json`` and ``receipt.md``, next to the logs of all steps.

``--cpu`` runs the same steps on the CPU with small sizes, to check that everything works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
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

from tasks.kinds import ROOT
from tasks.tables import DEMO, read_tables
from tools.reproduce.identity import code_identity, machine_and_packages
from utils.errors import UserError, one_line_errors
from utils.files import write_text
from utils.flags import positive

MINUTES = 40
"""Of all steps of a call together."""

PYTHON = sys.executable
SPEEDS = {224: (128, 128, 50), 384: (48, 48, 18), 768: (12, 12, 4)}
"""Side of the images in pixels -> pairs, regions and images of regions in a micro-batch."""
SMALLER = 8
"""A micro-batch that does not fit is made half as large, down to this part of it."""


class Step(NamedTuple):
    """A step of the receipt.

    ``commands``: are tried in their order until one ends with status 0; "NUMBERS" in them is a file for the step's numbers.
    ``minutes``: after which it is stopped. ``read``: that file -> numbers as JSON values; None: it holds JSON.
    """

    name: str
    commands: list[list[str]]
    minutes: float
    read: Callable[[Path], Any] | None = None


def steps_of(out: Path, *, cpu: bool) -> Iterator[Step]:
    """The steps on a GPU, or small ones on the CPU."""

    def benchmark(module: str, *words: str) -> list[str]:
        return [PYTHON, "-m", f"benchmarks.{module}", *(["--small"] if cpu else []), *words, "--json", "NUMBERS"]

    tests = ["tests/models/test_golden_random64.py", "-k", "cpu", "-m", "not slow"] if cpu else ["-m", "gpu"]
    yield Step(
        "tests", [[PYTHON, "-m", "pytest", *tests, "-p", "no:cacheprovider", "--junitxml", "NUMBERS"]], 10, read_tests
    )
    yield Step("scenes", [[PYTHON, "-m", "demo.scenes", "--out", "data/scenes", "--seed", "0"]], 5, lambda path: None)
    demo = [PYTHON, "run.py", "reproduce", "--table", "demo", "--unchecked", "--output", str(out / "demo")]
    placement = ["--cpu", "1", "--small"] if cpu else ["--gpus", "1"]
    yield Step("demo", [[*demo, *placement]], 15, lambda path: read_demo(out / "demo"))
    for size in ("base",) if cpu else ("base", "large"):
        for side in (224,) if cpu else SPEEDS:
            yield Step(
                f"speed of {size} at {side} px", [benchmark("gpu", *words) for words in speed_words(size, side, cpu)], 4
            )
    yield Step("profile", [benchmark("profile_step", *([] if cpu else ["--trace", str(out / "trace.json.gz")]))], 3)
    yield Step("planned and measured", [benchmark("step_memory")], 6)
    small = ["data.images.batch_size=16", "data.regions.batch_size=16", "data.regions.max_images=4"]
    backends = ("gloo",) if cpu else ("gloo", "nccl")
    words = [["--backend", backend, *([] if cpu else small)] for backend in backends]
    yield Step("two processes", [benchmark("two_processes", *each) for each in words], 3)


def speed_words(size: str, side: int, cpu: bool) -> Iterator[list[str]]:
    """Arguments of :mod:`benchmarks.gpu`, with micro-batches that get smaller."""
    if cpu:
        yield ["--rounds", "2", "--ways", "plain,eager"]
        return
    ways = "plain,eager,compiled" if side == 224 else "eager,compiled"
    part = 1
    while part <= SMALLER:
        pairs, regions, images = (max(1, number // part) for number in SPEEDS[side])
        yield [
            *("--config", f"configs/pretrain/{size}_4m.yaml", "--rounds", "10", "--ways", ways),
            *(f"model.vision.image_size={side}", "train.global_batch=null", f"data.images.batch_size={pairs}"),
            *(f"data.regions.batch_size={regions}", f"data.regions.max_images={images}"),
        ]
        part *= 2


def read_tests(path: Path) -> dict[str, Any]:
    """Numbers of tests from a file of JUnit's form: golden cases, in float32 and bf16, and others."""
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


def read_demo(folder: Path) -> list[dict[str, Any]]:
    """The demo's results, each with the one on the CPU (``configs/tables_demo.yaml``)."""
    receipts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("receipt.json"))]
    by_cell = {receipt["cell"]: receipt["numbers"] for receipt in receipts}
    return [{"cell": name, **number} for name in read_tables(DEMO) for number in by_cell.get(name, [])]


def machine(cpu: bool) -> dict[str, Any]:
    """The device, its driver, and the packages."""
    import torch

    facts = machine_and_packages()
    if cpu or not torch.cuda.is_available():
        return {**facts, "device": "CPU"}
    card = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader", "--id=0"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout.strip()
    except OSError:
        driver = "unknown, since nvidia-smi is missing"
    return {
        **facts,
        "memory_gb": card.total_memory / 1e9,
        "compute_capability": f"{card.major}.{card.minor}",
        "driver, power limit, clock": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


def run_step(step: Step, out: Path, minutes: float, environment: dict[str, str]) -> dict[str, Any]:
    """Run a step's commands until one succeeds; returns what is kept of it."""
    slug = step.name.replace(" ", "-")
    log, numbers = out / f"{slug}.log", out / f"{slug}.numbers"
    started = time.monotonic()
    kept: dict[str, Any] = {"step": step.name, "failure": None}
    with log.open("w", encoding="utf-8") as said:
        for words in step.commands:
            command = [str(numbers) if word == "NUMBERS" else word for word in words]
            numbers.unlink(missing_ok=True)
            left = 60 * min(step.minutes, minutes) - (time.monotonic() - started)
            said.write(f"$ {shlex.join(command)}\n")
            said.flush()
            kept["command"] = shlex.join(["python" if word == PYTHON else word for word in command]).replace(
                str(out), "OUT"
            )
            status = _run(command, environment, said, max(left, 1))
            if status is None:
                kept["failure"] = f"stopped after {(time.monotonic() - started) / 60:.2g} minutes"
                break
            kept["failure"] = None if status == 0 else f"status {status}: {_last_line(log)}"
            if status == 0:
                break
    kept["seconds"] = round(time.monotonic() - started, 1)
    try:
        kept["numbers"] = (step.read or _read_json)(numbers)
    except (OSError, ValueError, ElementTree.ParseError):
        kept["numbers"] = None
        kept["failure"] = kept["failure"] or f"wrote no numbers; see {log.name}"
    return kept


def _run(command: list[str], environment: dict[str, str], said: IO[str], seconds: float) -> int | None:
    """The exit status of a command; None: it was stopped after ``seconds``, with all processes that it had started."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
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
    """The receipt for people."""
    where, code = receipt["machine"], receipt["code"]
    lines = [f"# {where['device']}", ""]
    if receipt["cpu"]:
        lines += ["On the CPU in small sizes, to see that all works: the numbers mean nothing.", ""]
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
    lines = ["| | way | samples/s | ms a step | forward, backward, optimiser | GB | TFLOP/s | utilisation |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, rows in speeds.items():
        for row in rows:
            phases = ", ".join(f"{row['phases'][phase]:.1f}" for phase in ("forward", "backward", "optimiser"))
            numbers = [
                _shown(row["memory_gb"], ".1f"),
                _shown(row["tflops_per_s"], ".2f"),
                _shown(row["utilisation"], ".1%"),
            ]
            lines.append(
                f"| {name.removeprefix('speed of ')} | {row['way']} | {row['samples_per_s']:.1f} | "
                f"{row['milliseconds_per_step']:.1f} | {phases} | {' | '.join(numbers)} |"
            )
    return lines


def _profile(found: dict[str, Any]) -> list[str]:
    idle = [] if found["idle"] is None else [f"- idle {found['idle']:.0%} of the time"]
    attention = [f"- attention: {count:g} calls a step, {name}" for name, count in found["attention"].items()]
    rows = [
        f"| `{each['name'][:100].replace('|', ' ')}` | {each['share']:.1%} | {each['milliseconds_per_step']:.2f} |"
        for each in found["kernels"][:15]
    ]
    return [*idle, *attention, "", "| kernel | share | ms a step |", "|---|---|---|", *rows]


def _planned(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| | examples | GB planned | GB measured | s planned | s measured |", "|---|---|---|---|---|---|"]
    for row in rows:
        numbers = [_shown(row[side]["memory"], ".2f", 1e9) for side in ("planned", "measured")]
        numbers += [_shown(row[side]["seconds"], ".3f") for side in ("planned", "measured")]
        lines.append(f"| {row['case']} | {row['examples']} | {' | '.join(numbers)} |")
    return lines


def _two(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['losses']} losses of {found['steps']} steps differ from one process by "
        f"{found['largest_difference']:.1e} at most ({found['backend']})."
    ]


def _shown(number: float | None, form: str, unit: float = 1) -> str:
    return "unknown" if number is None else format(number / unit, form)


TABLES: dict[str, Callable[[Any], list[str]]] = {
    "tests": _tests,
    "demo": _demo,
    "profile": _profile,
    "planned and measured": _planned,
    "two processes": _two,
}


def make(steps: Sequence[Step], out: Path, *, cpu: bool, minutes: float) -> dict[str, Any]:
    """Run the steps that are not done yet, and write the receipt after each of them; returns it.

    Args:
        steps: all steps of the receipt.
        out: the folder of the receipt.
        cpu: whether no GPU is to be used.
        minutes: what does not begin within them is left to the next call.
    """
    out.mkdir(parents=True, exist_ok=True)
    code, facts = code_identity(), machine(cpu)
    same = {"cpu": cpu, "sources": code["sha256"], "device": facts["device"]}
    kept_file = out / "kept.json"
    kept = _read_json(kept_file) if kept_file.is_file() else {}
    done = kept["steps"] if kept.get("of") == same else {}
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})}
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

    for number, step in enumerate(steps, 1):
        left = minutes - (time.monotonic() - started) / 60
        if step.name in done and done[step.name]["failure"] is None:
            continue
        if left <= 0:
            break
        most = sum(each.minutes for each in steps[number - 1 :])
        sys.stdout.write(f"{number}/{len(steps)} {step.name} (at most {min(left, most):.0f} minutes are left)\n")
        sys.stdout.flush()
        done[step.name] = run_step(step, out, left, environment)
        sys.stdout.write(f"    {done[step.name]['seconds']:.0f} s: {done[step.name]['failure'] or 'done'}\n")
        write_text(kept_file, json.dumps({"of": same, "steps": done}) + "\n")
        write_text(out / "receipt.json", json.dumps(receipt(), indent=2, ensure_ascii=False) + "\n")
        write_text(out / "receipt.md", as_markdown(receipt()))
    return receipt()


def main(argv: Sequence[str] | None = None) -> int:
    """Make the receipt; status 1 if a step failed or was not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the receipt (default: runs/gpu, runs/gpu_on_cpu)"
    )
    parser.add_argument("--cpu", action="store_true", help="small sizes on the CPU: shows the way, not the numbers")
    parser.add_argument(
        "--minutes", type=positive, default=MINUTES, help="the next call does what does not begin in them"
    )
    flags = parser.parse_args(argv)

    @one_line_errors
    def run() -> int:
        import torch

        if not flags.cpu and not torch.cuda.is_available():
            raise UserError(
                "torch finds no GPU here; give --cpu (make gpu CPU=1) to try all steps on the CPU with small sizes"
            )
        out = (flags.out or ROOT / "runs" / ("gpu_on_cpu" if flags.cpu else "gpu")).absolute()
        receipt = make(list(steps_of(out, cpu=flags.cpu)), out, cpu=flags.cpu, minutes=flags.minutes)
        failed = [each["step"] for each in receipt["steps"] if each["failure"]]
        told = [f"failed: {', '.join(failed)}"] * bool(failed) + [f"not run: {', '.join(receipt['not_run'])}"] * bool(
            receipt["not_run"]
        )
        again = "; run the same command again to resume" if told else ""
        sys.stdout.write(f"{out / 'receipt.md'} and receipt.json; {'; '.join(told) or 'all steps are done'}{again}\n")
        return 1 if told else 0

    return run()


if __name__ == "__main__":
    sys.exit(main())
