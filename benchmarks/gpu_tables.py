"""Formats the receipt of ``make gpu`` as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def as_markdown(receipt: dict[str, Any]) -> str:
    """Formats the JSON values of a receipt as Markdown."""
    where, code = receipt["machine"], receipt["code"]
    lines = [f"# {where['device']}", ""]
    if receipt["cpu"]:
        lines += ["Run on the CPU at small sizes to check that everything works; the numbers are meaningless.", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in where.items() if not isinstance(value, dict)]
    lines.append(f"| packages | {', '.join(f'{name} {release}' for name, release in where['packages'].items())} |")
    lines.append(
        f"| code | version {code['version']}, commit {code['commit'][:12] or 'unknown'}{', changed' * code['changed']} |"
    )
    lines += [f"| made | {receipt['made']} |", "", "| step | seconds | |", "|---|---|---|"]
    lines += [f"| {each['step']} | {each['seconds']:.0f} | {each['failure'] or 'done'} |" for each in receipt["steps"]]
    lines += [f"| {name} | | not run |" for name in receipt["not_run"]]
    by_name = {each["step"]: each["numbers"] for each in receipt["steps"] if each["numbers"]}
    for name, (title, table) in TABLES.items():
        if name in by_name:
            lines += ["", f"## {title}", "", *table(by_name[name])]
    if speeds := {name: rows for name, rows in by_name.items() if name.startswith("speed")}:
        lines += ["", "## Speed", "", *_speeds(speeds)]
    if demo := [number for name, numbers in by_name.items() if name.startswith("demo") for number in numbers]:
        lines += ["", "## Demo", "", *_demo(demo)]
    return "\n".join(lines) + "\n"


def _tests(groups: dict[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {each['passed']} | {each['skipped']} | {len(each['failed'])} |" for name, each in groups.items()
    ]
    failed = [f"- `{name}`" for each in groups.values() for name in each["failed"]]
    return ["| | passed | skipped | failed |", "|---|---|---|---|", *rows, "", *failed]


def _demo(numbers: list[dict[str, Any]]) -> list[str]:
    rows = []
    for each in numbers:
        measured = ", ".join(f"{value:.1f}" for value in each["measured"])
        rows.append(f"| {each['cell']} | {each['metric']} | {each['published']} | {measured} |")
    return ["| cell | metric | on the CPU | here |", "|---|---|---|---|", *rows]


def _speeds(speeds: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = ["| | way | samples/s | ms/step | forward, backward, optimiser | GB | TFLOP/s | utilisation |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, rows in speeds.items():
        _, size, side = name.split("-")
        for row in rows:
            if "failure" in row:
                lines.append(f"| {size}, {side} px | {row['way']} | {row['failure']} | | | | | |")
                continue
            phases = ", ".join(f"{row['phases'][phase]:.1f}" for phase in ("forward", "backward", "optimiser"))
            numbers = [
                _formatted(row["memory_gb"], ".1f"),
                _formatted(row["tflops_per_s"], ".2f"),
                _formatted(row["utilisation"], ".1%"),
            ]
            lines.append(
                f"| {size}, {side} px | {row['way']} | {row['samples_per_s']:.1f} | "
                f"{row['milliseconds_per_step']:.1f} | {phases} | {' | '.join(numbers)} |"
            )
    return lines


def _profile(found: dict[str, Any]) -> list[str]:
    idle = [] if found["idle"] is None else [f"- idle {found['idle']:.0%} of the time"]
    attention = [f"- attention: {count:g} calls per step, {name}" for name, count in found["attention"].items()]
    rows = [
        f"| `{each['name'][:100].replace('|', ' ')}` | {each['share']:.1%} | {each['milliseconds_per_step']:.2f} |"
        for each in found["kernels"][:15]
    ]
    return [*idle, *attention, "", "| kernel | share | ms/step |", "|---|---|---|", *rows]


def _planned(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| | examples | GB planned | GB measured | s planned | s measured |", "|---|---|---|---|---|---|"]
    for row in rows:
        numbers = [_formatted(row[side]["memory"], ".2f", 1e9) for side in ("planned", "measured")]
        numbers += [_formatted(row[side]["seconds"], ".3f") for side in ("planned", "measured")]
        lines.append(f"| {row['case']} | {row['examples']} | {' | '.join(numbers)} |")
    return lines


def _two_processes(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['losses']} losses over {found['steps']} steps differ from a single process by at most "
        f"{found['largest_difference']:.1e} ({found['backend']})."
    ]


def _formatted(number: float | None, form: str, unit: float = 1) -> str:
    return "unknown" if number is None else format(number / unit, form)


TABLES: dict[str, tuple[str, Callable[[Any], list[str]]]] = {
    "tests-models": ("Tests of models", _tests),
    "tests-others": ("Other tests", _tests),
    "profile": ("Profile", _profile),
    "step-memory": ("Planned and measured", _planned),
    "two-processes": ("Two processes", _two_processes),
}
"""Maps the names of steps to the titles and functions of their tables."""
