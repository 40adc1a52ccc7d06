"""Compares adapters with full fine-tuning on the demo's tasks: ``python -m benchmarks.adapters``, after ``make demo``."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands.sweep import sweep
from dataset.text.loading import load_tokenizer
from launch.placement import Placement
from tasks.base import set_up_training
from tasks.binding import bind_run
from tasks.finetune import FineTuneTask
from tasks.kinds import find_task
from tools.plan.synthetic import synthetic_batch
from tools.reproduce.runs import Seeds
from tools.steps.fake import FakeSteps, StepMemory
from utils.commands import call
from utils.errors import one_line_errors

TASKS = ("retrieval", "nlvr", "grounding", "vqa", "captioning")
VARIANTS = {
    "all weights": [],
    "adapters of rank 8": ["optim.lora={rank: 8, lr: 3e-3}"],
    "frozen vision and text": ["optim.freeze={vision: true, text: true}"],
}
FULL_SIZE_CONFIG = "configs/retrieval/coco_base_4m.yaml"
"""A published config, for which the benchmark also estimates the memory of a step."""


def memory_of(path: str, overrides: Sequence[str]) -> StepMemory:
    """Estimates the memory of a step of a config on a GPU."""
    run = bind_run(path, list(overrides))
    config, task = run.config, run.source.load().task

    text = config.model.text
    vocabulary = None if text.knows_vocabulary else len(load_tokenizer(text.encoder, "model.text.encoder"))

    def build() -> Any:
        model = task.build_model(config, vocabulary)
        set_up_training(config, model)
        return model

    steps = FakeSteps(build(), config.train, config.optim, as_on_gpu=True)
    return steps.memory(lambda model: synthetic_batch(config, model), gradients_stay=False)


def metric_of(task: str) -> str:
    """Returns the metric that selects the weights of a task."""
    kind = find_task(task).load().task
    assert issubclass(kind, FineTuneTask)
    return kind.measure


def main(*tasks: str, seeds: Seeds = (0, 1, 2), output: Path = Path("runs/adapters")) -> int:
    """Compares adapters with full fine-tuning on the demo's tasks; run make demo first.

    Each task is fine-tuned from the demo's pre-trained model for the same number of steps in three ways: all weights, low-rank
    adapters, and all weights except the vision and text encoders. run.py sweep starts and resumes the runs. The benchmark prints
    the selection metric (the one by which a run selects its weights) on the test split, and the planned memory of a step.
    docs/finetuning.md shows the results.

    Args:
        tasks: the tasks (default: all).
        seeds: seeds of the runs.
        output: folder of the runs.

    Examples:
        python -m benchmarks.adapters
    """
    named = tuple(f"{name}: {' '.join(map(quoted, overrides))}" for name, overrides in VARIANTS.items())
    status, rows = 0, []
    for task in tasks or TASKS:
        folder = output / task
        code = one_line_errors(sweep)(
            config=f"configs/demo/{task}.yaml", variant=named, seeds=seeds, output=folder, placement=Placement(cpu=1)
        )
        status |= code
        if code == 2:  # nothing was measured; the sweep has printed the error
            continue
        measured, metric = json.loads((folder / "sweep.json").read_text(encoding="utf-8")), metric_of(task)
        entries = [mean_and_spread([run[metric] for run in measured[name]]) for name in VARIANTS]
        rows.append(f"| `{task}`: {metric} | {' | '.join(entries)} |")
    lines = [f"| | {' | '.join(VARIANTS)} |", f"|---|{'---|' * len(VARIANTS)}", *rows]
    for path in (*(f"configs/demo/{task}.yaml" for task in tasks or TASKS), FULL_SIZE_CONFIG):
        sizes = [f"{memory_of(path, overrides).total / 1e6:,.0f} MB" for overrides in VARIANTS.values()]
        lines.append(f"| memory of a step, `{path}` | {' | '.join(sizes)} |")
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    return status


def quoted(override: str) -> str:
    """Quotes an override for a shell."""
    return f"'{override}'"


def mean_and_spread(values: Sequence[float]) -> str:
    """Formats the mean and standard deviation of several runs."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.adapters"))
