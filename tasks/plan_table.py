"""A plan, and how ``run.py plan`` shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """A micro-batch and how often it is accumulated: the keys that say so; memory of a GPU in bytes by what it is for; time and
    rows of all streams of a step."""

    overrides: dict[str, int]
    memory: dict[str, int]
    step_s: float | None
    samples_per_s: float | None
    tflop_per_gpu: float | None


@dataclass(frozen=True)
class Plan:
    """What ``run.py plan`` tells. ``global_batch``: rows of the leading stream, ``asked_batch``: how many were asked for;
    ``steps`` of the whole run, None: not known."""

    config: str
    gpus: int
    memory_gb: float
    precision: str
    measured_on: str | None
    global_batch: int
    asked_batch: int
    largest: Setting
    chosen: Setting
    steps: int | None
    assumptions: list[str]


def as_table(plan: Plan) -> str:
    """The plan as text."""
    how = f"measured on {plan.measured_on}" if plan.measured_on else "estimated: no GPU was asked"
    gpus = "1 GPU" if plan.gpus == 1 else f"{plan.gpus} GPUs"
    head = f"{plan.config}: {gpus} of {plan.memory_gb:g} GB, {plan.precision}; {how}"
    rows: list[tuple[str, ...]] = [("", "largest that fits", f"{plan.global_batch:,} rows a step")]
    both = (plan.largest, plan.chosen)
    rows += [(key, *(f"{each.overrides[key]:,}" for each in both)) for key in plan.chosen.overrides]
    rows += [(name, *(_gigabytes(each.memory[name]) for each in both)) for name in plan.chosen.memory]
    rows.append(("memory of a GPU", *(_gigabytes(sum(each.memory.values())) for each in both)))
    rows.append(("work of a GPU, a step", *(_or_none(each.tflop_per_gpu, "{:.1f} TFLOP") for each in both)))
    rows.append(("time of a step", *(_or_none(each.step_s, "{:.3g} s") for each in both)))
    rows.append(("samples a second", *(_or_none(each.samples_per_s, "{:,.0f}") for each in both)))
    rows.append(("time of 1,000 steps", "", _span(plan.chosen.step_s, 1000)))
    whole = "the whole run" if plan.steps is None else f"time of all {plan.steps:,} steps"
    rows.append((whole, "", "epochs: give --records" if plan.steps is None else _span(plan.chosen.step_s, plan.steps)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows]
    flags = " ".join(f"{key}={value}" for key, value in plan.chosen.overrides.items())
    notes = [f"assumed: {each}" for each in plan.assumptions]
    if plan.global_batch != plan.asked_batch:
        more = f"{plan.global_batch:,} rows a step for {plan.asked_batch:,}"
        notes.append(f"note: {more}, which equal micro-batches of about this size do not make exactly")
    return "\n".join([head, "", *lines, "", *notes, f"run with: {flags}"])


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _or_none(value: float | None, form: str) -> str:
    return "not known" if value is None else form.format(value)


def _span(step_s: float | None, steps: int) -> str:
    """The time of so many steps, in the unit that suits it."""
    if step_s is None:
        return "not known"
    seconds = step_s * steps
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
