"""A step of pre-training on a GPU, split into its parts: ``python -m benchmarks.gpu``, or with ``torchrun``.

Three ways to the same losses: the released algebra (:mod:`benchmarks.plain_path`), ours as it is, ours with compiled encoders.
Each takes the same steps on the same batch; printed are samples per second, the milliseconds of data (the copy to the device,
which the trainer makes beside the step before), forward, backward, optimiser and, of several processes, communication (what the
sum of gradients adds to the backward pass; contrastive rows are gathered beside the fusion), memory, and the utilisation: the
least operations that the losses need (:mod:`models.flops`) over the device's dense peak. The last line is the ratio of the
fastest way to the first. Without a GPU the same runs on the CPU, in float32 unless told.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.plain_path import PlainPath
from benchmarks.synthetic import pretrain_batch
from engine.devices import peak_of
from engine.parallel import data_parallel
from engine.precision import Precision
from models.pretrain import PretrainModel
from optim import OptimConfig, build_optimizer, parameter_groups
from tasks.pretrain import PretrainConfig, PretrainTask
from utils import distributed
from utils.batch import PretrainBatch, to_device
from utils.config import load_config
from utils.launcher import positive

VOCABULARY = 30522
"""Words, where the config leaves their number to a tokenizer."""

PHASES = ("data", "forward", "backward", "optimiser")


class Clock:
    """Marks between the phases of a step, read when all is over: the device is not waited for in between."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Between neighbouring marks."""
        pairs = list(itertools.pairwise(self.marks))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [first.elapsed_time(second) for first, second in pairs]
        return [1000 * (second - first) for first, second in pairs]


class Stepper:
    """Takes steps one way.

    Args:
        model: its weights are trained.
        losses: of a batch on the device, in DDP where there are several processes.
        batch: on the host, in pinned memory where there is a GPU.
    """

    def __init__(
        self,
        model: PretrainModel,
        losses: nn.Module,
        batch: PretrainBatch,
        precision: Precision,
    ):
        self.model, self.losses, self.batch, self.precision = model, losses, batch, precision
        config = OptimConfig(lr=1e-4)
        self.optimizer = build_optimizer(parameter_groups(model.named_parameters(), config, ()), config)

    def step(self, context: AbstractContextManager[Any]) -> list[float]:
        """Milliseconds of the phases; in ``context`` is the part in which ranks meet."""
        clock = Clock(self.precision.device)
        self.optimizer.zero_grad()
        clock.mark()
        batch = to_device(self.batch, self.precision.device)
        clock.mark()
        with context:
            with self.precision.autocast():
                terms = self.losses(batch)
            counts = self.model.counts(batch)
            loss = torch.stack(
                [term.weight * term.total / counts[name].clamp(min=1) for name, term in terms.items()]
            ).sum()
            clock.mark()
            self.precision.scaler.scale(loss).backward()
        clock.mark()
        self.precision.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        clock.mark()
        return clock.milliseconds()


def batch_for(config: PretrainConfig, model: PretrainModel) -> PretrainBatch:
    """Of the config's sizes, with captions and regions' texts of real lengths."""
    images, regions = config.data.images, config.data.regions
    assert images is not None and regions is not None, "the config has images and regions"
    return pretrain_batch(
        images.batch_size,
        regions.batch_size,
        min(regions.max_images, regions.batch_size),
        image_size=config.model.vision.image_size,
        patch_size=model.vision.patch_size,
        vocab_size=len(model.text.word_embeddings),
    )


def measure(way: str, flags: argparse.Namespace, device: torch.device) -> float:
    """Run one way, print its line, and return its samples per second over all ranks."""
    config = load_config(flags.config, flags.overrides, PretrainConfig)
    torch.manual_seed(0)
    model = PretrainTask.build_model(config, VOCABULARY).to(device).train()
    batch = batch_for(config, model)
    batch = batch.pin_memory() if device.type == "cuda" else batch
    if way == "compiled":
        model.compile_encoders()
    losses = data_parallel(PlainPath(model) if way == "plain" else model, device)
    stepper = Stepper(model, losses, batch, Precision(flags.precision, device))
    alone = losses.no_sync if isinstance(losses, DistributedDataParallel) else nullcontext
    for _ in range(flags.warm_up):
        stepper.step(nullcontext())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    together = [stepper.step(nullcontext()) for _ in range(flags.rounds)]
    apart = [stepper.step(alone()) for _ in range(flags.rounds)] if alone is not nullcontext else together
    phases = [statistics.median(column) for column in zip(*together, strict=True)]
    communication = max(0.0, phases[2] - statistics.median(row[2] for row in apart))
    whole_s = statistics.median(sum(row) for row in together) / 1000
    return _tell(way, flags, device, model, batch, (phases, communication, whole_s))


def _tell(
    way: str,
    flags: argparse.Namespace,
    device: torch.device,
    model: PretrainModel,
    batch: PretrainBatch,
    times: tuple[list[float], float, float],
) -> float:
    phases, communication, whole_s = times
    work = model.work(batch)
    speed = work.samples * distributed.world_size() / whole_s
    tflops = work.flops / whole_s / 1e12
    peak = flags.peak_tflops or peak_of(device, flags.precision)
    split = ", ".join(f"{name} {value:.1f}" for name, value in zip(PHASES, phases, strict=True))
    line = f"{way}: {speed:.1f} samples/s, {1000 * whole_s:.1f} ms a step ({split}, communication {communication:.1f})"
    if device.type == "cuda":
        line += f", {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB"
    line += f", {tflops:.2f} TFLOP/s"
    line += f", utilisation {100 * tflops / peak:.1f} %" if peak else ", utilisation unknown: no peak of this device"
    if distributed.rank() == 0:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return speed


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=20, help="steps that are timed")
    parser.add_argument("--warm-up", type=positive, default=5, help="steps before the clock runs")
    parser.add_argument("--config", type=Path, default=Path("configs/pretrain/base_4m.yaml"), help="of pre-training")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), help="bf16 on a GPU, else fp32")
    parser.add_argument("--peak-tflops", type=float, help="the device's dense peak, where it is not known")
    parser.add_argument(
        "--ways", nargs="+", choices=("plain", "eager", "compiled"), default=["plain", "eager", "compiled"]
    )
    parser.add_argument("--small", action="store_true", help="a small model and batch: a check that it runs")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of the config, such as data.images.batch_size=64"
    )
    flags = parser.parse_args(argv)
    if flags.small:
        flags.config, flags.warm_up = Path("configs/demo/pretrain.yaml"), 1
        flags.overrides = ["data.images.batch_size=4", "data.regions.batch_size=6", "data.regions.max_images=2"]
    with distributed.process_group() as device:
        flags.precision = flags.precision or ("bf16" if device.type == "cuda" else "fp32")
        if device.type == "cuda" and distributed.rank() == 0:
            sys.stdout.write(f"{torch.cuda.get_device_name(device)}, {flags.precision}, {flags.config}\n")
        speeds = {way: measure(way, flags, device) for way in flags.ways}
        ratio = max(speeds.values()) / speeds[flags.ways[0]]
        if distributed.rank() == 0:
            sys.stdout.write(f"ratio: {ratio:.2f}\n")


if __name__ == "__main__":
    main()
