"""Checks that two processes on one device compute the same losses as one process: ``python -m benchmarks.two_processes``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from benchmarks.harness import write_results
from benchmarks.ranks import on_two_ranks
from benchmarks.step_config import CONFIG, SMALL, build, config_for
from benchmarks.synthetic import pretrain_batch
from engine.steps import trainer_of
from tasks.config import PretrainConfig
from utils import accelerator, distributed
from utils.commands import call
from utils.flags import Override, Positive

DETERMINISTIC = (
    *("model.text.dropout=0", "model.text.attention_dropout=0", "model.vision.drop_path=0", "train.precision=fp32"),
    *("train.global_batch=null", "optim.lr=0.001"),
)
MAX_DIFFERENCE = 1e-4
"""Maximum relative difference between losses, which are not exactly equal, because kernels of different sizes sum in different
orders."""


def random_negatives(similarity: Tensor, allowed: Tensor) -> Tensor:
    """Samples negatives independently of similarities, which are affected by rounding."""
    noise = torch.rand(allowed.shape, generator=torch.Generator().manual_seed(0)).to(allowed.device)
    return (noise * allowed).argmax(dim=1)


def losses(config: PretrainConfig, device: torch.device, steps: int) -> list[dict[str, float]]:
    """Returns the losses of some steps on this rank's micro-batch. A single process trains on both micro-batches."""
    torch.manual_seed(0)
    model = build(config)
    model.matching_head.draw_negatives = random_negatives  # type: ignore[method-assign]
    trainer = trainer_of(model, config.train, config.optim, device)
    vocabulary = len(model.text.word_embeddings)
    both = [pretrain_batch(config.data, model.vision, vocabulary, seed=seed) for seed in range(2)]
    mine = [both[distributed.rank()]] if distributed.is_distributed() else both
    found = [trainer.train_step(mine).read() for _ in range(steps)]
    return [{name: value for name, value in step.metrics.items() if "/" in name} for step in found]


def losses_of_rank(path: Path, overrides: Sequence[str], steps: int) -> list[dict[str, float]]:
    """Returns the losses on this rank; both ranks use the same device."""
    return losses(config_for(path, overrides), accelerator.best_device(0), steps)


def main(
    *overrides_: Override,
    steps: Positive = 5,
    backend: Literal["gloo", "nccl"] = "gloo",
    small_: bool = False,
    json_: Path | None = None,
) -> int:
    """Checks that two processes on one device compute the same losses as one process.

    The two processes share each step of pre-training (DDP, gathered embeddings, summed counts), in float32 and without dropout.
    The single process runs the same micro-batches, with contrastive losses that span both (model.contrastive.chunks). All losses
    of all steps must agree. The default backend is gloo, because NCCL does not support two processes on one GPU; some releases of
    gloo lack collectives for CUDA tensors.

    Args:
        steps: number of steps per run.
        backend: backend of torch.distributed.
        small_: smoke test with a small model and batch.
        overrides_: config values to override.
        json_: also write the results to a JSON file.

    Examples:
        python -m benchmarks.two_processes
    """
    path, small = SMALL if small_ else (CONFIG, [])
    overrides = [*small, *DETERMINISTIC, *overrides_]
    two = on_two_ranks(losses_of_rank, path, overrides, steps, backend=backend)
    spanning = [*overrides, "train.accumulate=2", "model.contrastive.chunks=2"]
    one = losses(config_for(path, spanning), accelerator.best_device(), steps)
    worst = max(
        abs(ours[name] - theirs[name]) / max(1.0, abs(theirs[name]))
        for ours, theirs in zip(two, one, strict=True)
        for name in theirs
    )
    write_results(json_, {"backend": backend, "steps": steps, "losses": len(one[0]), "largest_difference": worst})
    sys.stdout.write(f"{len(one[0])} losses over {steps} steps differ by at most {worst:.1e}\n")
    return 0 if worst <= MAX_DIFFERENCE else 1


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.two_processes"))
