"""A step of pre-training on a GPU, split into its parts: ``python -m benchmarks.gpu``, or with ``torchrun``.

The steps are the trainer's (:meth:`engine.trainer.Trainer.train_step`), with the config's streams, precision, optimiser,
accumulation and ``train.recompute``. Three ways to the same losses: the released algebra (:mod:`benchmarks.plain_path`), which
computes nothing anew, ours as it is, ours with encoders compiled as ``train.compile`` says (where it says nothing, ``true``).
What a step is made of is printed first. Each way takes the same steps on the same few batches in turn, the compiled one as the
trainer pads them for it, the released one with texts padded to the config's most tokens; printed are samples per second, the
milliseconds of data (the copy to the device, which a run makes beside the step before), forward, backward, optimiser and, of
several processes, communication (what the sum of gradients adds to the backward pass; contrastive rows are gathered beside the
fusion), memory, and the utilisation: the least operations that the losses need (:mod:`models.flops`) over the device's dense
peak (``train.peak_tflops`` where it is not known). A way that needs more memory than there is says so. The last line is the
ratio of the fastest way to the first, and the line before it says which they are. Without a GPU the same runs on the CPU.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.plain_path import Padding, plain_losses, why_not_plain
from benchmarks.synthetic import pretrain_batch
from engine.devices import peak_of
from engine.memory import trainer_of
from engine.real_steps import ran_out_of_memory
from engine.train_config import TrainConfig
from engine.trainer import Trainer
from models.pretrain import PretrainModel
from tasks.pretrain import PretrainConfig, PretrainTask
from tools.plan.synthetic import text_limits
from utils import distributed
from utils.batch import PretrainBatch, Work, to_device
from utils.config import load_config, peek
from utils.errors import UserError, one_line_errors
from utils.flags import positive
from utils.launcher import let_segments_grow

VOCABULARY = 30522
"""Words, where the config leaves their number to a tokenizer."""

WAYS = ("plain", "eager", "compiled")

CONFIG = Path("configs/pretrain/base_4m.yaml")

SMALL = (
    Path("configs/demo/pretrain.yaml"),
    ["data.images.batch_size=4", "data.regions.batch_size=6", "data.regions.max_images=2"],
)
"""Config and overrides of a check that it runs."""

NAMES = {
    "images": "pairs of image and text",
    "regions": "regions",
    "videos": "pairs of video and text",
    "texts": "texts alone",
    "pairs": "pairs of texts",
}
"""What a row of each stream is."""

PHASES = ("data", "forward", "backward", "optimiser")

PARTS = {
    **dict.fromkeys(("data",), "data"),
    **dict.fromkeys(("rates", "counts", "work", "forward", "losses"), "forward"),
    **dict.fromkeys(("backward",), "backward"),
    **dict.fromkeys(("clip", "optimiser", "numbers"), "optimiser"),
}
"""The phase that is printed, for each of the trainer's."""

LONGER = (0.85, 1.05, 0.95, 1.15)
"""How much longer than on average the texts of each batch are: so far apart that the numbers of their tokens, rounded up for
compiled encoders, differ from step to step, as they do in a run."""


class Clock:
    """Marks at the ends of a step's phases, read when all is over: the device is not waited for in between."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[Any] = []
        self.phases: list[str] = []
        self.mark("start")

    def mark(self, phase: str) -> None:
        """The end of ``phase``."""
        mark: Any = time.perf_counter()
        if self.device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        self.marks.append(mark)
        self.phases.append(phase)

    def milliseconds(self) -> list[float]:
        """Milliseconds of each of :data:`PHASES`, over all micro-batches."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.device)
        took = dict.fromkeys(PHASES, 0.0)
        for (first, second), phase in zip(itertools.pairwise(self.marks), self.phases[1:], strict=True):
            took[PARTS[phase]] += first.elapsed_time(second) if on_gpu else 1000 * (second - first)
        return list(took.values())


class Stepper:
    """Takes the trainer's steps.

    Args:
        trainer: whose weights are trained.
        batches: micro-batches, taken in turn; on the host, in pinned memory where there is a GPU.
        accumulate: so many are a step.
    """

    def __init__(self, trainer: Trainer, batches: Sequence[PretrainBatch], accumulate: int):
        self.trainer, self.accumulate = trainer, accumulate
        self.batches = itertools.cycle(batches)

    def step(self, context: AbstractContextManager[Any]) -> Clock:
        """The clock of one; in ``context`` is the part in which ranks meet."""
        device = self.trainer.device
        micro_batches = [next(self.batches) for _ in range(self.accumulate)]
        clock = Clock(device)
        on_device = [to_device(batch, device) for batch in micro_batches]
        clock.mark("data")
        self.trainer.after = clock.mark
        with context:
            self.trainer.train_step(micro_batches, on_device)
        return clock

    def milliseconds(self, steps: int, context: Callable[[], AbstractContextManager[Any]]) -> list[list[float]]:
        """Milliseconds of the phases of each step. Clocks are read at the end, so that the host runs ahead, as in training."""
        clocks = [self.step(context()) for _ in range(steps)]
        return [clock.milliseconds() for clock in clocks]


def config_for(path: Path, overrides: Sequence[str]) -> PretrainConfig:
    """A config of pre-training.

    Raises:
        UserError: see :func:`~utils.config.load_config`; also for a config of another task.
    """
    said = peek(path, overrides, "task")
    if said not in (None, "pretrain"):
        raise UserError(f"{path}: task is {said!r}; this benchmark is of pre-training: give a config such as {CONFIG}")
    return load_config(path, overrides, PretrainConfig)


def build(config: PretrainConfig) -> PretrainModel:
    return PretrainTask.build_model(config, None if config.model.text.knows_vocabulary else VOCABULARY)


def batches_for(config: PretrainConfig, model: PretrainModel, *, static: bool) -> list[PretrainBatch]:
    """Micro-batches of the config's streams and sizes, with texts of real lengths; ``static``: padded as with ``train.compile``,
    with the same texts."""
    vocabulary = len(model.text.word_embeddings)
    return [
        pretrain_batch(config.data, model.vision, vocabulary, seed=seed, longer=longer, static=static)
        for seed, longer in enumerate(LONGER)
    ]


def step_of(config: PretrainConfig) -> str:
    """A line that describes the examples of a step."""
    data, video = config.data, config.model.vision.video
    said = {name: f"{stream.batch_size} {NAMES[name]}" for name, stream in data.streams().items()}
    if data.regions is not None:
        said["regions"] += f" of {data.regions.max_images} images"
    if video is not None and data.videos is not None:
        said["videos"] += f" of {video.frames} frames"
    accumulation = config.train.accumulation(config.data)
    times = f"{accumulation} times " if accumulation > 1 else ""
    return f"a step: {times}" + ", ".join(said.values())


def steps_apart(config: PretrainConfig) -> str:
    """Which steps of a run are not like those that are measured; empty: all are."""
    data = config.data
    conditions = {
        "data.images.clean": data.images is not None and data.images.clean is not None,
        "data.videos.clean": data.videos is not None and data.videos.clean is not None,
        "data.matching_steps": data.matching_steps is not None,
    }
    keys = [key for key, given in conditions.items() if given]
    if not keys:
        return ""
    leave = "leaves" if len(keys) == 1 else "leave"
    return f"with all matching losses, which {' and '.join(keys)} {leave} out of some steps of a run"


def padding_of(config: PretrainConfig) -> Padding:
    """That of the plain way: as in the released code, to the most tokens of the config."""
    return Padding(*(text_limits(config.data, stream).max_tokens for stream in ("images", "pairs")))


def ways_for(config: PretrainConfig, wanted: Sequence[str]) -> list[str]:
    """The ways that can be measured. A way that is left out is told of.

    Raises:
        UserError: if none is left.
    """
    with torch.device("meta"):
        why = why_not_plain(build(config))
    if why is None or "plain" not in wanted:
        return list(wanted)
    left = [way for way in wanted if way != "plain"]
    if not left:
        raise UserError(
            f"--ways plain: the released algebra is not written out where {why}; give --ways eager,compiled"
        )
    _print(f"plain is left out: the released algebra is not written out where {why}")
    return left


def attempt(way: str, config: PretrainConfig, flags: argparse.Namespace, device: torch.device) -> float | None:
    """:func:`measure`; None where there is too little memory, of which it tells. Ranks have batches of the same sizes, so that
    all of them run out of memory or none."""
    try:
        return measure(way, config, flags, device)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
    _print(f"{way}: out of memory")
    return None


def measure(way: str, config: PretrainConfig, flags: argparse.Namespace, device: torch.device) -> float:
    """Run one way, print its line, and return its samples per second over all ranks."""
    torch.manual_seed(0)
    model = build(config)
    if way == "plain":
        model.forward = functools.partial(plain_losses, model, padded=padding_of(config))  # type: ignore[method-assign]
    train = train_of(way, config.train)
    accumulation = train.accumulation(config.data)
    trainer = trainer_of(model, train, config.optim, device)
    batches = batches_for(config, model, static=bool(train.compile))
    if device.type == "cuda":
        batches = [batch.pin_memory() for batch in batches]
    stepper = Stepper(trainer, batches, accumulation)
    alone = trainer.parallel.no_sync if isinstance(trainer.parallel, DistributedDataParallel) else nullcontext
    stepper.milliseconds(flags.warm_up or _warm_up(train, flags.small), nullcontext)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    together = stepper.milliseconds(flags.rounds, nullcontext)
    apart = stepper.milliseconds(flags.rounds, alone) if alone is not nullcontext else together
    phases = [statistics.median(column) for column in zip(*together, strict=True)]
    communication = max(0.0, phases[2] - statistics.median(row[2] for row in apart))
    whole_s = statistics.median(sum(row) for row in together) / 1000
    work = sum((model.work(batch) for batch in batches), Work())
    share = accumulation / len(batches)
    each = Work(samples=work.samples * share, flops=work.flops * share)
    return _tell(way, train, device, each, (phases, communication, whole_s))


def train_of(way: str, train: TrainConfig) -> TrainConfig:
    """A config's section as a way has it. The released algebra computes nothing anew, and is compiled as little as ours as it
    is."""
    changed: dict[str, Any] = {"compile": (train.compile or True) if way == "compiled" else False}
    if way == "plain":
        changed["recompute"] = []
    return train.model_copy(update=changed)


def _warm_up(train: TrainConfig, small: bool) -> int:
    """Steps before the clock runs: until each batch was seen, which compiles all that there is to compile, and seen again, in
    which graphs are recorded, and once more, in which they run."""
    if small:
        return len(LONGER) if train.compile else 1
    return len(LONGER) * (3 if train.records_graphs else 2)


def _tell(
    way: str, train: TrainConfig, device: torch.device, work: Work, times: tuple[list[float], float, float]
) -> float:
    """Print a way's line; ``work`` of a step on average."""
    phases, communication, whole_s = times
    speed = work.samples * distributed.world_size() / whole_s
    tflops = work.flops / whole_s / 1e12
    peak = train.peak_tflops or peak_of(device, train.precision)
    split = ", ".join(f"{name} {value:.1f}" for name, value in zip(PHASES, phases, strict=True))
    line = f"{way}: {speed:.1f} samples/s, {1000 * whole_s:.1f} ms a step ({split}, communication {communication:.1f})"
    if device.type == "cuda":
        line += f", {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB"
    _print(f"{line}, {_utilisation(tflops, peak)}")
    return speed


def _utilisation(tflops: float, peak: float | None) -> str:
    if math.isnan(tflops):
        return "utilisation unknown: the operations of this text encoder are not counted"
    return f"{tflops:.2f} TFLOP/s, " + (
        f"utilisation {100 * tflops / peak:.1f} %" if peak else "utilisation unknown: no peak of this device"
    )


def _print(line: str) -> None:
    """By rank 0, at once."""
    if distributed.rank() == 0:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _clean_up() -> None:
    """Free the memory of one way before the next is measured."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def ways(text: str) -> list[str]:
    """Names with commas between them, for argparse; each once."""
    names = text.split(",")
    for name in names:
        if name not in WAYS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {','.join(WAYS)}")
        if names.count(name) > 1:
            raise argparse.ArgumentTypeError(f"{name!r} is given twice")
    return names


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; a wrong one ends the program with a line and status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=positive, default=20, help="steps that are timed")
    parser.add_argument(
        "--warm-up",
        type=positive,
        help=f"steps before the clock runs (default: {2 * len(LONGER)}, or {3 * len(LONGER)} where graphs are recorded; with "
        f"--small 1, or {len(LONGER)} compiled); in the first {len(LONGER)} all is compiled",
    )
    parser.add_argument("--config", type=Path, help=f"of pre-training (default: {CONFIG})")
    parser.add_argument(
        "--ways", type=ways, default=list(WAYS), metavar="WAY,...", help=f"in this order (default: {','.join(WAYS)})"
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="a small model and batch: a check that it runs; on a CPU it compiles for minutes (--ways plain,eager does not)",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="of the config, such as data.images.batch_size=64 train.recompute=[vision] train.compile=reduce-overhead",
    )
    flags = parser.parse_intermixed_args(argv)
    wrong = [text for text in flags.overrides if "=" not in text]
    if wrong:
        parser.error(f"{wrong[0]!r} is neither a flag nor of the form key=value")
    if flags.small and flags.config:
        parser.error("--small has a config of its own: leave out --config, or --small")
    small_config, small_overrides = SMALL
    if flags.small:
        flags.config, flags.overrides = small_config, [*small_overrides, *flags.overrides]
    flags.config = flags.config or CONFIG
    return flags


def run(flags: argparse.Namespace) -> int:
    """Measure every way and print the ratio.

    Raises:
        UserError: for a mistake in the config, or if no way fits into memory.
    """
    config = config_for(flags.config, flags.overrides)
    with distributed.process_group() as device:
        if device.type == "cuda":
            _print(f"{torch.cuda.get_device_name(device)}, {config.train.precision}, {flags.config}")
        speeds: dict[str, float] = {}
        wanted = ways_for(config, flags.ways)
        for line in filter(None, (step_of(config), steps_apart(config))):
            _print(line)
        for way in wanted:
            speed = attempt(way, config, flags, device)
            if speed is not None:
                speeds[way] = speed
            _clean_up()
        if not speeds:
            key, size = config.data.micro_batch
            raise UserError(f"no way fits: give smaller batches, such as {key}={max(1, size // 2)}")
        first, fastest = next(iter(speeds)), max(speeds, key=lambda way: speeds[way])
        _print(f"the fastest is {fastest}, and the ratio is to {first}")
        _print(f"ratio: {speeds[fastest] / speeds[first]:.2f}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; a user's mistake is one line on stderr and status 2."""
    flags = parse(argv)
    let_segments_grow()
    return one_line_errors(lambda: run(flags))()


if __name__ == "__main__":
    sys.exit(main())
