"""``run.py plan``: what fits on a GPU, how often to accumulate for the published batch, and how long a run takes."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dataset.text import load_tokenizer
from engine.devices import ASSUMED_UTILISATION, PEAKS, known, peak
from engine.measured import Measured, ran_out_of_memory
from engine.memory import Rehearsal, StepMemory
from tasks import TASKS
from tasks.base import BaseTask
from tasks.kinds import kind_of
from tasks.plan_search import largest_that_fits, share_out
from tasks.plan_table import Plan, Setting, as_table
from utils.config import load_config
from utils.distributed import process_group
from utils.errors import UserError, one_line_errors
from utils.flags import positive, positive_real, share
from utils.launcher import let_segments_grow

CONTEXT, FRAGMENTS = 700_000_000, 0.05
"""Assumed where no GPU is at hand: what CUDA and its libraries take, and the allocator's share beside the tensors."""

NCCL = 1_000_000_000
"""Assumed of several GPUs, also where one is at hand: the buffers through which they talk."""

OUTSIDE = "outside torch's allocator"

ASSUMED_GPU = "h100"
"""Whose peak is assumed, where none is named or at hand."""

EXAMPLES = """examples:
  python run.py plan --config configs/pretrain/base_4m.yaml --gpus 8 --memory 80 --gpu h100
  python run.py plan --config configs/vqa/vqa2_base_4m.yaml --gpus 4 --memory 24 --peak-tflops 71 --records 1000000"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py plan``."""
    parser = argparse.ArgumentParser(
        prog="run.py plan",
        description="Tell the largest micro-batch that fits, how to reach the published batch, and how long it takes: "
        "measured where there is a GPU, else estimated.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="YAML file; see configs/")
    parser.add_argument("--task", choices=list(TASKS), help="of a config that has no key `task`")
    parser.add_argument("--gpus", type=positive, default=1, metavar="N", help="GPUs on all nodes together (default: 1)")
    parser.add_argument(
        "--memory", type=positive_real, metavar="GB", help="of a whole GPU, in 1e9 bytes (default: that of this GPU)"
    )
    parser.add_argument(
        "--gpu",
        choices=list(PEAKS),
        metavar="NAME",
        help=f"known: {', '.join(PEAKS)} (default: this GPU; where there is none, {ASSUMED_GPU})",
    )
    parser.add_argument(
        "--peak-tflops", type=positive_real, metavar="X", help="of another GPU, in the config's precision"
    )
    parser.add_argument(
        "--utilisation",
        type=share,
        default=ASSUMED_UTILISATION,
        metavar="U",
        help=f"share of the peak, where it is not measured ({ASSUMED_UTILISATION})",
    )
    parser.add_argument(
        "--global-batch", type=positive, metavar="ROWS", help="of the leading stream (default: published)"
    )
    parser.add_argument(
        "--records", type=positive, metavar="N", help="of the leading stream, for a run given in epochs"
    )
    parser.add_argument("--estimate", action="store_true", help="do not measure, though there is a GPU")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the config's")
    return parser.parse_intermixed_args(argv)


class Planner:
    """A config's model and micro-batches of any size, on a GPU or as an estimate."""

    def __init__(self, arguments: argparse.Namespace):
        path = Path(arguments.config)
        self.schema, self.kind = kind_of(path, arguments.overrides, arguments.task)
        self.arguments, self.path = arguments, path
        self.config = load_config(path, arguments.overrides, self.schema)
        self.sizes = self.kind.batch_sizes(self.config)
        self.at_hand = known(torch.cuda.get_device_name(_this_gpu())) if torch.cuda.is_available() else None
        self.measures = torch.cuda.is_available() and not arguments.estimate
        self._check_objective()
        self._check_precision()
        self.limit = self._limit()
        self.links = NCCL if arguments.gpus > 1 else 0
        vocabulary = self._vocabulary()

        def build() -> Any:
            return self.kind.build_model(self.config, vocabulary)

        with torch.device("meta"):
            self.counted = build()
        self.step = self._stepper(build)
        self.found: dict[int, dict[str, int] | None] = {}

    @property
    def leading(self) -> int:
        """Rows of the leading stream in the config's own micro-batch."""
        return next(iter(self.sizes.values()))

    def plan(self) -> Plan:
        largest = largest_that_fits(self._cost, self.limit, self.leading)
        if largest == 0:
            needed = self._cost(1)
            said = f"needs {needed / 1e9:.1f} GB" if math.isfinite(needed) else "does not fit"
            raise UserError(
                f"--memory {self.limit / 1e9:g}: a micro-batch of one row {said}; take a smaller picture "
                "(model.vision.image_size), a smaller model or a larger GPU"
            )
        gpus, total = self.arguments.gpus, self._global_batch()
        rows, accumulate = share_out(total, gpus, largest)
        self._check_accumulation(accumulate, total, largest)
        return Plan(
            config=str(self.path),
            gpus=gpus,
            memory_gb=self.limit / 1e9,
            precision=self.config.train.precision,
            measured_on=torch.cuda.get_device_name(_this_gpu()) if self.measures else None,
            global_batch=rows * gpus * accumulate,
            asked_batch=total,
            largest=self._setting(largest, 1),
            chosen=self._setting(rows, accumulate),
            steps=self._steps(rows * gpus * accumulate),
            assumptions=self._assumptions(),
        )

    def _cost(self, rows: int) -> float:
        """Bytes of a step on a micro-batch of so many rows; infinite where it was tried and did not fit."""
        found = self._memory(rows)
        return math.inf if found is None else sum(found.values())

    def _memory(self, rows: int) -> dict[str, int] | None:
        if rows not in self.found:
            accumulates = self._global_batch() > rows and not self.config.train.records_graphs
            step = self.step.memory(self._batch(rows), gradients_stay=self.arguments.gpus > 1 or accumulates)
            self.found[rows] = None if step is None else self._with_overhead(step)
        return self.found[rows]

    def _with_overhead(self, step: StepMemory) -> dict[str, int]:
        if isinstance(self.step, Measured):
            return {**asdict(step), OUTSIDE: self.step.outside() + self.links}
        return {**asdict(step), "fragments": int(FRAGMENTS * step.total), OUTSIDE: CONTEXT + self.links}

    def _stepper(self, build: Callable[[], Any]) -> Measured | Rehearsal:
        """What takes the steps: this GPU, or an estimate."""
        train, optim = self.config.train, self.config.optim
        if not self.measures:
            return Rehearsal(build, train, optim, as_on_gpu=True)
        try:
            return Measured(build, train, optim, _this_gpu(), self.limit - self.links)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise UserError(
                f"--memory {self.limit / 1e9:g}: not even the weights fit; take a smaller model or a larger GPU"
            ) from None

    def _batch(self, rows: int) -> Callable[[Any], Any]:
        config = scaled(self.config, self.kind, rows)
        return lambda model: self.kind.synthetic_batch(config, model)

    def _setting(self, rows: int, accumulate: int) -> Setting:
        memory = self._memory(rows)
        assert memory is not None
        work = self.counted.work(self._batch(rows)(self.counted))
        seconds = self._seconds(rows, work.flops)
        step_s = None if seconds is None else seconds * accumulate
        sizes = self.kind.batch_sizes(scaled(self.config, self.kind, rows))
        return Setting(
            overrides={**sizes, "train.accumulate": accumulate},
            memory=memory,
            step_s=step_s,
            samples_per_s=None if seconds is None else work.samples * self.arguments.gpus / seconds,
            tflop_per_gpu=None if math.isnan(work.flops) else work.flops * accumulate / 1e12,
        )

    def _seconds(self, rows: int, flops: float) -> float | None:
        """Of a micro-batch."""
        if isinstance(self.step, Measured):
            return self.step.seconds(self._batch(rows))
        return None if math.isnan(flops) else flops / (self._peak() * 1e12 * self.arguments.utilisation)

    def _peak(self) -> float:
        """TFLOP/s of the GPU that is planned for."""
        given = self._given_peak()
        return peak(self._gpu(), self.config.train.precision) if given is None else given

    def _given_peak(self) -> float | None:
        """As told by number; a GPU's name goes before the config's."""
        if self.arguments.peak_tflops is not None or self.arguments.gpu is not None:
            return self.arguments.peak_tflops
        return self.config.train.peak_tflops

    def _gpu(self) -> str:
        """The GPU whose peak is taken where none is told."""
        return self.arguments.gpu or self.at_hand or ASSUMED_GPU

    def _limit(self) -> int:
        given = self.arguments.memory
        if not torch.cuda.is_available():
            if given is None:
                raise UserError("--memory: there is no GPU here to ask; give what one has, in GB")
            return int(given * 1e9)
        there = torch.cuda.get_device_properties(_this_gpu()).total_memory
        if given is not None and given * 1e9 > there and self.measures:
            raise UserError(
                f"--memory {given:g}: this GPU has {there / 1e9:.1f} GB; add --estimate to plan for another"
            )
        return there if given is None else int(given * 1e9)

    def _global_batch(self) -> int:
        """Rows of the leading stream in a step: as given, or as the config has them on the GPUs of the command it opens with."""
        if self.arguments.global_batch is not None:
            return self.arguments.global_batch
        return self.leading * self.config.train.accumulate * (published_gpus(self.path) or self.arguments.gpus)

    def _steps(self, total: int) -> int | None:
        train, records = self.config.train, self.arguments.records
        return train.steps if train.steps is not None or records is None else train.steps_of(records, total)

    def _vocabulary(self) -> int | None:
        """Entries of the tokenizer, where the config leaves the size to it."""
        text = self.config.model.text
        return None if text.knows_vocabulary else len(load_tokenizer(text.encoder))

    def _check_objective(self) -> None:
        if getattr(self.config.train, "objective", None) == "self_critical":
            raise UserError(
                f"{self.path}: train.objective is self_critical, which draws captions of a length not known before; it cannot be "
                "planned: plan the likelihood"
            )

    def _check_precision(self) -> None:
        estimates_at_hand = not self.measures and self._given_peak() is None
        gpu = self.arguments.gpu or (self.at_hand if estimates_at_hand else None)
        if self.config.train.precision == "bf16" and gpu is not None and PEAKS[gpu].tf32 is None:
            other = "" if self.arguments.gpu else ", or name another --gpu"
            raise UserError(f"train.precision: bf16, which a {gpu} has not; use train.precision=fp16{other}")

    def _check_accumulation(self, accumulate: int, total: int, largest: int) -> None:
        if accumulate > 1 and self.config.train.records_graphs:
            mode, gpus = self.config.train.compile, self.arguments.gpus
            raise UserError(
                f"train.compile: {mode} takes one micro-batch a step, and {largest:,} rows fit of {math.ceil(total / gpus):,}; "
                f"plan train.compile=true, more --gpus, or --global-batch {largest * gpus}"
            )

    def _assumptions(self) -> list[str]:
        said = ["texts of their greatest length; no time for data and for the network between GPUs"]
        links = f"{NCCL / 1e9:.0f} GB for NCCL's buffers" if self.links else ""
        if self.measures:
            return [*said, links] if links else said
        shares = [f"{CONTEXT / 1e9:.1f} GB for CUDA's context", links, f"{FRAGMENTS:.0%} for fragments"]
        said.append(f"{', '.join(filter(None, shares))}; fused attention")
        train, given = self.config.train, self.arguments
        if train.recompute:
            said.append(f"no time for what train.recompute computes anew ({', '.join(train.recompute)})")
        if train.compile:
            said.append("memory and time without what train.compile changes")
        if self._given_peak() is not None:
            whose, flags = "", "--utilisation"
        else:
            here = "this " if self.at_hand and not given.gpu else ""
            whose, flags = f"{here}{self._gpu()}'s ", "--gpu, --utilisation"
            if torch.cuda.is_available() and not here and not given.gpu:
                flags = f"the GPU here is not known; {flags}"
        return [*said, f"{given.utilisation:.0%} of {whose}{self._peak():g} TFLOP/s ({flags})"]


def _this_gpu() -> torch.device:
    """With its index, which torch asks for where it caps memory."""
    return torch.device("cuda", torch.cuda.current_device())


def scaled(config: Any, kind: type[BaseTask[Any, Any, Any]], rows: int) -> Any:
    """The config with micro-batches of ``rows`` rows of the leading stream, and of the others in proportion."""
    sizes = kind.batch_sizes(config)
    leading = next(iter(sizes.values()))
    for key, size in sizes.items():
        config = _with(config, key.split("."), max(1, round(size * rows / leading)))
    return config


def _with(config: Any, keys: list[str], value: int) -> Any:
    name, *rest = keys
    return config.model_copy(update={name: _with(getattr(config, name), rest, value) if rest else value})


def published_gpus(path: Path) -> int | None:
    """GPUs, over all nodes, of the command that a config opens with (or processes on the CPU); None: it opens with none."""
    opening = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        opening += line
    gpus, nodes = re.search(r"--(?:gpus|cpu) (\d+)", opening), re.search(r"--nodes (\d+)", opening)
    return int(gpus[1]) * (int(nodes[1]) if nodes else 1) if gpus else None


@one_line_errors
def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    let_segments_grow()
    with process_group():  # a GPU is set up as it is for the run
        plan = Planner(arguments).plan()
    sys.stdout.write((json.dumps(asdict(plan), indent=2) if arguments.json else as_table(plan)) + "\n")
    return 0
