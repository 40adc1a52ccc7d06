"""Runs tests and measurements on a GPU and writes a receipt: ``make gpu``, or ``python -m benchmarks.gpu_receipt``."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from benchmarks.gpu_steps import PYTHON, Step, environment, run_step, steps_of
from benchmarks.gpu_tables import as_markdown
from benchmarks.harness import print_line
from tasks import ROOT
from tools.reproduce.identity import code_identity, machine_and_packages, source_digest
from utils import accelerator
from utils.commands import call
from utils.errors import UserError
from utils.files import write_text
from utils.flags import SEVERAL, Positive, unknown

MINUTES = 40
"""Default time limit in minutes."""

RECEIPT = "receipt.json"

HOST = ("gpus", "cores", "system", "executable")
"""Facts about a machine that may differ between receipts of the same card."""


@dataclass
class Receipt:
    """The measurements on one card, with one version of the code, the packages and the configs.

    Attributes:
        cpu: True if the steps ran at small sizes on the CPU.
        machine: the result of :func:`machine`.
        code: the result of :func:`code_version`.
        names: names of all steps of ``make gpu``, in order.
        steps: entries of the steps that have run, by name.
    """

    cpu: bool
    machine: dict[str, Any]
    code: dict[str, Any]
    names: list[str]
    steps: dict[str, dict[str, Any]]

    @property
    def identity(self) -> dict[str, Any]:
        """The facts that are equal in all receipts that can be merged."""
        return {
            "the size of the steps": "small, for the CPU" if self.cpu else "full",
            **{fact: value for fact, value in self.machine.items() if fact not in (*HOST, "packages")},
            **self.machine["packages"],
            **{f"the hash of {part}": self.code[part][:12] for part in ("sha256", "others_sha256", "configs_sha256")},
        }

    @property
    def folder_name(self) -> str:
        """Name of the receipt's folder, which contains the card and a hash of :attr:`identity`."""
        card = re.sub(r"[^a-z0-9]+", "-", self.machine["device"].lower()).strip("-")
        return f"{card}-{hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]}"

    @property
    def not_run(self) -> list[str]:
        """Names of the steps that have not run."""
        return [name for name in self.names if name not in self.steps]

    @property
    def failed(self) -> list[str]:
        """Names of the steps that failed or were stopped at their limit."""
        return [name for name in self.names if name in self.steps and self.steps[name]["failure"]]

    def missing(self, step: Step) -> list[str]:
        """Returns the names of the steps that must finish before ``step`` can run."""
        return [name for name in step.needs if name in self.not_run or name in self.failed]

    def due(self, steps: Sequence[Step]) -> list[Step]:
        """Returns the steps that have not finished, in the order in which to run them: steps that never ran, steps that failed,
        and steps that need other steps."""
        return sorted(
            [step for step in steps if step.name in self.not_run or step.name in self.failed],
            key=lambda step: (bool(self.missing(step)), step.name in self.failed),
        )

    def write(self, folder: Path) -> None:
        """Writes the receipt to a folder, as JSON and as Markdown."""
        found = asdict(self) | {
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "steps": [self.steps[name] for name in self.names if name in self.steps],
            "not_run": self.not_run,
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RECEIPT, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        write_text(folder / "receipt.md", as_markdown(found))

    @classmethod
    def read(cls, path: Path) -> Receipt:
        """Reads the receipt in a file or folder.

        Raises:
            UserError: if there is no receipt or it cannot be read.
        """
        path = path / RECEIPT if path.is_dir() else path
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            steps = {entry["step"]: entry for entry in found["steps"]}
            receipt = cls(found["cpu"], found["machine"], found["code"], found["names"], steps)
            receipt.folder_name  # noqa: B018 (raises KeyError if a fact is missing)
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", where=path, remedy="pass receipt.json") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"is not a receipt of make gpu ({type(error).__name__}: {error})",
                where=path,
                remedy="remove or rename it",
            ) from None
        return receipt


def merged(receipts: dict[Path, Receipt]) -> Receipt:
    """Merges receipts, by their path. If several receipts have the same step, the last one in which it did not fail counts. Facts
    about the host that differ are omitted.

    Raises:
        UserError: if the receipts are of different cards, packages, code or configs.
    """
    (first_path, first), *others = receipts.items()
    for path, other in others:
        for fact in {**first.identity, **other.identity}:
            ours, theirs = first.identity.get(fact), other.identity.get(fact)
            if ours != theirs:
                raise UserError(
                    f"{fact} is {theirs}, but {ours} in {first_path}",
                    where=path,
                    remedy="merge receipts of one card with the same packages, code and configs",
                )
    steps: dict[str, dict[str, Any]] = {}
    for receipt in receipts.values():
        for name, entry in receipt.steps.items():
            if name not in steps or steps[name]["failure"] or not entry["failure"]:
                steps[name] = entry
    last = receipts[next(reversed(receipts))]
    facts = {
        fact: value
        for fact, value in last.machine.items()
        if all(receipt.machine.get(fact) == value for receipt in receipts.values())
    }
    return Receipt(last.cpu, facts, last.code, last.names, steps)


def machine() -> dict[str, Any]:
    """Describes the device, its driver, and the packages. Creates a CUDA context, which occupies memory on the GPU."""
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


def machine_in_a_process(*, cpu: bool) -> dict[str, Any]:
    """Calls :func:`machine` in a separate process, so that no CUDA context remains. GPUs are hidden if ``cpu``."""
    command = [PYTHON, "-m", "benchmarks.gpu_receipt", "--machine"]
    process = subprocess.run(command, cwd=ROOT, env=environment(cpu=cpu), stdout=subprocess.PIPE, check=True)
    facts: dict[str, Any] = json.loads(process.stdout)
    return facts


def code_version() -> dict[str, Any]:
    """Returns the result of :func:`tools.reproduce.identity.code_identity`, with hashes of all other code that the steps use, and
    of the configs."""
    others = ("batches", "benchmarks", "commands", "demo", "launch", "tests", "tools")
    return {
        **code_identity(),
        "others_sha256": source_digest("*.py", *others),
        "configs_sha256": source_digest("*.yaml", "configs"),
    }


def run_steps(due: Sequence[Step], receipt: Receipt, out: Path, *, minutes: float) -> None:
    """Runs steps one after another, and writes the receipt after each step. A step that fails or is stopped at its limit does not
    affect the others, except for steps that need it, which are skipped.

    Args:
        due: the steps.
        receipt: the receipt to which their results are added.
        out: folder of the receipt.
        minutes: no step starts after this time.
    """
    out.mkdir(parents=True, exist_ok=True)
    variables = environment(cpu=receipt.cpu)
    started = time.monotonic()
    for number, step in enumerate(due):
        left = minutes - (time.monotonic() - started) / 60
        if left <= 0:
            break
        if missing := receipt.missing(step):
            print_line(f"{number + 1}/{len(due)} {step.name}; skipped because it needs {' and '.join(missing)}")
            continue
        remaining = min(left, sum(each.minutes for each in due[number:]))
        print_line(f"{number + 1}/{len(due)} {step.name}; at most {remaining:.0f} minutes left")
        entry = receipt.steps[step.name] = run_step(step, out, left, variables)
        print_line(f"    {entry['seconds']:.0f} s: {entry['failure'] or 'done'}")
        receipt.write(out)


def _print_list(steps: Sequence[Step], receipt: Receipt) -> None:
    """Prints all steps with their limit and their state."""
    for step in steps:
        state = "not run" if step.name in receipt.not_run else receipt.steps[step.name]["failure"] or "done"
        print_line(f"{step.name:20} at most {step.minutes:g} minutes   {state}")


def _print_missing(receipt: Receipt, out: Path, remedy: str = "") -> None:
    """Prints where the receipt is and which steps are missing. If there are any, ``remedy`` is added to the line."""
    missing = {"failed": receipt.failed, "not run": receipt.not_run}
    message = "; ".join(f"{what}: {', '.join(names)}" for what, names in missing.items() if names)
    print_line(f"{out / 'receipt.md'} and {RECEIPT}; {message + remedy if message else 'all steps are done'}")


def _only(name: str, steps: Sequence[Step], receipt: Receipt) -> Step:
    """Returns the step with the given name.

    Raises:
        UserError: if it does not exist, or needs a step that is still to be finished.
    """
    by_name = {step.name: step for step in steps}
    if name not in by_name:
        raise UserError(f"--step {unknown(name, list(by_name))}")
    if missing := receipt.missing(by_name[name]):
        raise UserError(
            f"{name} reads the files of {' and '.join(missing)}, which {'has' if len(missing) == 1 else 'have'} not finished",
            remedy=f"run make gpu STEP={missing[0]}{' CPU=1' * receipt.cpu} first",
        )
    return by_name[name]


def main(
    *,
    step: str | None = None,
    merge: Annotated[list[Path] | None, SEVERAL] = None,
    list_: bool = False,
    out_: Path | None = None,
    cpu: bool = False,
    minutes: Positive = MINUTES,
    machine_: bool = False,
) -> int:
    """Runs tests and measurements on a GPU and writes a receipt; make gpu runs it too.

    The steps run one after another, each as a separate command with a time limit of less than eight minutes, and use no network:
    tests on the device, speed of base and large models, a profile, planned and measured memory and time, two processes on the
    device, and the demo compared with its results on the CPU. The receipt consists of receipt.json and receipt.md, next to the
    logs of all steps. Each card, with the versions of code, configs and packages, has its own folder, in which the receipt is
    saved after each step. Steps that are done are not repeated, so the same command resumes after an interruption; steps that
    failed or were stopped at their limit are repeated.

    --cpu runs the same steps on the CPU at small sizes, to check that everything works; its numbers are meaningless.

    Args:
        step: run only this step, even if it is done (make gpu STEP=name).
        merge: receipts, or folders of receipts, of one card with the same code, configs and packages; they are merged into the
            receipt in the card's folder.
        list_: print the steps with their limits and states.
        out_: folder of the receipts' folders (default: runs/gpu).
        cpu: run all steps on the CPU at small sizes, to try them.
        minutes: no step starts after this time; rerun the command to continue.
        machine_: print information about the machine; the benchmark calls itself with this flag in a separate process.

    Examples:
        python -m benchmarks.gpu_receipt
        python -m benchmarks.gpu_receipt --step profile
        python -m benchmarks.gpu_receipt --merge first/receipt.json second/receipt.json
    """
    if machine_:
        sys.stdout.write(json.dumps(machine()))
        return 0
    parent = (out_ or ROOT / "runs" / "gpu").absolute()
    if merge:
        receipt = merged({path: Receipt.read(path) for path in merge})
        out = parent / receipt.folder_name
        receipt = _with_earlier(receipt, out)
        receipt.write(out)
        _print_missing(receipt, out)
        return 0
    if not cpu and accelerator.best_device().type == "cpu":
        raise UserError(
            "torch finds no GPU", remedy="pass --cpu (make gpu CPU=1) to try all steps on the CPU at small sizes"
        )
    receipt = Receipt(cpu, machine_in_a_process(cpu=cpu), code_version(), [], {})
    out = parent / receipt.folder_name
    steps = list(steps_of(out, cpu=cpu))
    receipt.names = [each.name for each in steps]
    receipt = _with_earlier(receipt, out)
    if list_:
        _print_list(steps, receipt)
        return 0
    if step is not None:
        only = _only(step, steps, receipt)
        run_steps([only], receipt, out, minutes=minutes)
        _print_missing(receipt, out)
        return 1 if step in receipt.failed else 0
    run_steps(receipt.due(steps), receipt, out, minutes=minutes)
    _print_missing(receipt, out, "; run the same command again to resume")
    return 1 if receipt.failed or receipt.not_run else 0


def _with_earlier(receipt: Receipt, out: Path) -> Receipt:
    """Returns a receipt with the steps of the receipt that is already in its folder, if any."""
    path = out / RECEIPT
    return merged({path: Receipt.read(path), out: receipt}) if path.is_file() else receipt


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.gpu_receipt"))
