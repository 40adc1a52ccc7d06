"""A plan, and the table that ``run.py plan`` prints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """A micro-batch and how often it is accumulated. ``sizes``: the config's keys; ``memory``: bytes of a GPU by their use;
    ``samples_per_s``: of all streams and GPUs."""

    sizes: dict[str, int]
    accumulation: int
    memory: dict[str, int]
    step_s: float | None
    samples_per_s: float | None
    tflop_per_gpu: float | None


@dataclass(frozen=True)
class Plan:
    """``global_batch``: examples of the leading stream per step, ``asked_batch``: how many were asked for; ``overrides``: the
    config's keys for ``chosen``; ``steps`` of the whole run, None: unknown."""

    config: str
    gpus: int
    memory_gb: float
    precision: str
    measured_on: str | None
    global_batch: int
    asked_batch: int
    largest: Setting
    chosen: Setting
    overrides: dict[str, int]
    steps: int | None
    assumptions: list[str]


def as_table(plan: Plan) -> str:
    """The plan as text."""
    how = f"measured on {plan.measured_on}" if plan.measured_on else "estimated without a GPU"
    gpus = "1 GPU" if plan.gpus == 1 else f"{plan.gpus} GPUs"
    notes = [f"assumed: {each}" for each in plan.assumptions]
    if plan.global_batch != plan.asked_batch:
        more = f"{plan.global_batch:,} examples per step instead of {plan.asked_batch:,}"
        notes.append(f"note: {more}, which equal micro-batches of about this size cannot make")
    return "\n".join(
        [
            f"{plan.config}: {gpus} of {plan.memory_gb:g} GB, {plan.precision}; {how}",
            "",
            *_aligned(_rows(plan)),
            "",
            *notes,
            f"run with: {' '.join(f'{key}={value}' for key, value in plan.overrides.items())}",
        ]
    )


def _rows(plan: Plan) -> list[tuple[str, ...]]:
    largest, chosen, steps = plan.largest, plan.chosen, plan.steps
    whole = "the whole run" if steps is None else f"time of all {steps:,} steps"
    return [
        ("", "largest that fits", f"{plan.global_batch:,} examples per step"),
        *((key, f"{largest.sizes[key]:,}", f"{chosen.sizes[key]:,}") for key in chosen.sizes),
        ("accumulation", f"{largest.accumulation:,}", f"{chosen.accumulation:,}"),
        *((use, _gigabytes(largest.memory[use]), _gigabytes(chosen.memory[use])) for use in chosen.memory),
        ("memory of a GPU", _gigabytes(sum(largest.memory.values())), _gigabytes(sum(chosen.memory.values()))),
        ("work of a GPU per step", *(_known(each.tflop_per_gpu, "{:.1f} TFLOP") for each in (largest, chosen))),
        ("time of a step", *(_known(each.step_s, "{:.3g} s") for each in (largest, chosen))),
        ("samples per second", *(_known(each.samples_per_s, "{:,.0f}") for each in (largest, chosen))),
        ("time of 1,000 steps", "", _duration(chosen.step_s, 1000)),
        (whole, "", "in epochs: give --records" if steps is None else _duration(chosen.step_s, steps)),
    ]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    first, second, third = (max(len(row[column]) for row in rows) for column in range(3))
    return [f"{a:{first}}  {b:>{second}}  {c:>{third}}".rstrip() for a, b, c in rows]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _known(value: float | None, form: str) -> str:
    return "unknown" if value is None else form.format(value)


def _duration(step_s: float | None, steps: int) -> str:
    """The time of so many steps, in the unit that suits it."""
    if step_s is None:
        return "unknown"
    seconds = step_s * steps
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
