"""Defines the plan of a run, and formats the plan as the table that ``run.py plan`` prints."""

from __future__ import annotations

from dataclasses import dataclass

from tools.plan.rows import aligned, gigabytes, or_unknown
from tools.plan.scaling import Scale, scaling_lines


@dataclass(frozen=True)
class Setting:
    """A micro-batch and its accumulation. Unknown values are None.

    Attributes:
        sizes: config keys that set sizes, with their values.
        memory: bytes per GPU, by purpose.
        step_s: time of an optimiser step in seconds.
        samples_per_s: number of examples per second, of all streams and on all GPUs.
        tflop_per_gpu: FLOPs per GPU in an optimiser step, in units of 1e12.
    """

    sizes: dict[str, int]
    accumulation: int
    memory: dict[str, int]
    step_s: float | None
    samples_per_s: float | None
    tflop_per_gpu: float | None


@dataclass(frozen=True)
class Plan:
    """The plan of a run; its fields are the keys of ``run.py plan --json``.

    Attributes:
        global_batch: number of examples of the leading stream per step.
        requested_batch: the requested global batch.
        largest: the largest micro-batch that fits.
        chosen: the micro-batch that the global batch is divided into.
        overrides: config keys and values for the chosen micro-batch.
        steps: number of steps in the run; None if unknown.
        gpus: total number of GPUs on all nodes.
        scaling: with ``nodes``, a step on this number of GPUs and on other numbers of GPUs.
        refused: with ``nodes``, the unsupported numbers of GPUs, each with the reason.
    """

    config: str
    gpus: int
    nodes: int | None
    memory_gb: float
    precision: str
    measured_on: str | None
    global_batch: int
    requested_batch: int
    largest: Setting
    chosen: Setting
    overrides: dict[str, int]
    steps: int | None
    assumptions: list[str]
    scaling: list[Scale]
    refused: dict[int, str]


def as_table(plan: Plan) -> str:
    """Returns the plan as text."""
    how = f"measured on {plan.measured_on}" if plan.measured_on else "estimated without a GPU"
    each = plan.gpus // (plan.nodes or 1)
    gpus = "1 GPU" if each == 1 else f"{each} GPUs"
    if plan.nodes is not None:
        gpus = f"{'1 node' if plan.nodes == 1 else f'{plan.nodes} nodes'} with {gpus}"
    notes = [f"assumed: {assumption}" for assumption in plan.assumptions]
    if plan.global_batch != plan.requested_batch:
        change = f"{plan.global_batch:,} examples per step instead of {plan.requested_batch:,}"
        notes.append(f"note: {change}, which cannot be divided into equal micro-batches of about this size")
    return "\n".join(
        [
            f"{plan.config}: {gpus} of {plan.memory_gb:g} GB, {plan.precision}; {how}",
            "",
            *aligned(_rows(plan)),
            "",
            *([*scaling_lines(plan.scaling, plan.refused, plan.gpus), ""] if plan.scaling else []),
            *notes,
            f"run with: {' '.join(f'{key}={value}' for key, value in plan.overrides.items())}",
        ]
    )


def _rows(plan: Plan) -> list[tuple[str, ...]]:
    largest, chosen, steps = plan.largest, plan.chosen, plan.steps
    time_label = "the whole run" if steps is None else f"time of all {steps:,} steps"
    return [
        ("", "largest that fits", f"{plan.global_batch:,} examples per step"),
        *((key, f"{largest.sizes[key]:,}", f"{chosen.sizes[key]:,}") for key in chosen.sizes),
        ("accumulation", f"{largest.accumulation:,}", f"{chosen.accumulation:,}"),
        *((use, gigabytes(largest.memory[use]), gigabytes(chosen.memory[use])) for use in chosen.memory),
        ("memory per GPU", gigabytes(sum(largest.memory.values())), gigabytes(sum(chosen.memory.values()))),
        (
            "FLOPs per GPU per step",
            *(or_unknown(setting.tflop_per_gpu, "{:.1f} TFLOP") for setting in (largest, chosen)),
        ),
        ("step time", *(or_unknown(setting.step_s, "{:.3g} s") for setting in (largest, chosen))),
        ("samples per second", *(or_unknown(setting.samples_per_s, "{:,.0f}") for setting in (largest, chosen))),
        ("time of 1,000 steps", "", _duration(chosen.step_s, 1000)),
        (time_label, "", "in epochs: pass --records" if steps is None else _duration(chosen.step_s, steps)),
    ]


def _duration(step_s: float | None, steps: int) -> str:
    """Formats the time of ``steps`` steps, in a suitable unit."""
    if step_s is None:
        return "unknown"
    seconds = step_s * steps
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
