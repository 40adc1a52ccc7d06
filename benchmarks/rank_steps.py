"""Compares steps on two ranks between checkouts or strategies: ``python -m benchmarks.rank_steps``."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.step_config import CONFIG, SMALL, build, config_for
from benchmarks.synthetic import pretrain_batch
from engine.steps import trainer_of
from utils.commands import call
from utils.errors import UserError, one_line_errors
from utils.flags import Override, Positive

RANKS = 2
UNTIMED = 3
"""Number of steps that are not timed, since DDP rebuilds its buckets after the first step."""


def _rank(rank: int, port: int, overrides: list[str], small: bool, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    path, smaller = SMALL if small else (CONFIG, [])
    config: Any = config_for(path, [*smaller, "train.global_batch=null", "train.precision=fp32", *overrides])
    torch.manual_seed(0)
    model = build(config)
    trainer = trainer_of(model, config.train, config.optim, torch.device("cpu"))
    batch = pretrain_batch(config.data, model.vision, len(model.text.word_embeddings), seed=rank)
    seconds = []
    for _ in range(UNTIMED + steps):
        dist.barrier()
        started = time.perf_counter()
        trainer.train_step([batch])
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        sys.stdout.write(f"{statistics.median(seconds[UNTIMED:])}\n")
    dist.destroy_process_group()


def measured(folder: Path, words: list[str]) -> float:
    """Measures the median seconds of a step, with the code in ``folder``.

    Raises:
        UserError: if the benchmark fails in that folder.
    """
    command = [sys.executable, __file__, "--measure", *words]
    environment = os.environ | {"PYTHONPATH": str(folder.absolute())}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"{(done.stderr.strip().splitlines() or ['no message'])[-1]}",
            where=folder,
            remedy="use a checkout that runs",
        )
    return float(done.stdout.splitlines()[-1])


def main(
    *overrides_: Override,
    other: Path | None = None,
    rounds: Positive = 5,
    steps: Positive = 8,
    small_: bool = False,
    measure_: bool = False,
) -> int:
    """Compares pre-training steps on two ranks with one thread each.

    With --other, the benchmark compares DDP steps in this checkout and in another checkout; otherwise, it compares FSDP2 and DDP.
    The two alternate, each in new processes. The last line is the median ratio of the times: this checkout divided by the other,
    or FSDP2 over DDP.

    Args:
        other: folder of another checkout, which may be older.
        rounds: number of measurements of each.
        steps: number of steps per measurement, of which the median is used.
        small_: smoke test with a small model and batch.
        measure_: only print the seconds of a step, with the code in PYTHONPATH.
        overrides_: config values to override.

    Examples:
        python -m benchmarks.rank_steps --other ../before
    """

    @one_line_errors
    def run() -> int:
        if measure_:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = listener.getsockname()[1]
            mp.start_processes(_rank, (port, list(overrides_), small_, steps), nprocs=RANKS, start_method="spawn")
            return 0
        given = [*overrides_, f"--steps={steps}", *(["--small"] if small_ else [])]
        here = Path(__file__).resolve().parents[1]
        ways = [(here, "fsdp"), (here, "ddp")] if other is None else [(here, "ddp"), (other, "")]
        ratios = []
        for number in range(rounds):
            seconds = {}
            for folder, parallel in ways if number % 2 else ways[::-1]:
                words = [*given, *([f"train.parallel={parallel}"] if parallel else [])]
                seconds[folder, parallel] = measured(folder, words)
            one, base = (seconds[way] for way in ways)
            ratios.append(one / base)
            sys.stdout.write(f"round {number + 1}: {one:.3f} s over {base:.3f} s: {ratios[-1]:.3f}\n")
        sys.stdout.write(f"ratio: {statistics.median(ratios):.2f}\n")
        return 0

    return run()


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.rank_steps"))
