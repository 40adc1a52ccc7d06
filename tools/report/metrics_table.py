"""Tables of the final metrics: next to chance and published numbers, or of several runs side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from tasks.image_blind import ADVICE, not_beaten
from tools.report.ticks import written
from tools.runs.reading import Run

LOWER = re.compile(r"loss|error|perplexity|(median|mean) rank|distance", re.I)
"""Names of metrics for which lower is better; for all others, higher is better."""

Metric = Mapping[str, Any]


def table_of(run: Run) -> str:
    """The metrics of one run, one table per split."""
    if not run.evaluation:
        return '<p class="faint">No evaluation: the run has no readable evaluation.json.</p>'
    parts = []
    for split, metrics in run.evaluation.items():
        shown = {name: metric for name, metric in metrics.items() if metric.get("unit") != "count"}
        sizes = [f"{_count(m.get('value'))} {name}" for name, m in metrics.items() if m.get("unit") == "count"]
        parts.append(f"<h3>{escape(split)}</h3>")
        if shown:
            parts.append(_table(shown))
        values = {name: number_of(metric.get("value")) for name, metric in metrics.items()}
        if facts := not_beaten(values):
            parts.append(f'<p><span class="remark">{escape(", and ".join(facts))}; {escape(ADVICE)}</span></p>')
        parts.append(
            f'<p class="faint">{escape("; ".join([", ".join(sizes), *_facts(metrics.values())]).strip("; "))}</p>'
        )
    return "".join(parts)


def _table(metrics: Mapping[str, Metric]) -> str:
    columns: list[tuple[str, Callable[[Metric], str]]] = [("measured", lambda metric: value_of(metric, "value"))]
    if any("interval" in metric for metric in metrics.values()):
        columns.append(("95 % interval", _interval))
    for key in ("chance", "published"):
        if any(isinstance(metric.get(key), int | float) for metric in metrics.values()):
            columns.append((key, lambda metric, key=key: value_of(metric, key)))  # type: ignore[misc]
    head = "".join(f"<th>{title}</th>" for title, _ in columns)
    rows = []
    for name, metric in metrics.items():
        cells = "".join(f"<td>{escape(text(metric))}</td>" for _, text in columns)
        rows.append(f"<tr><th>{escape(name)}</th>{cells}<td>{_bar(metric)}</td></tr>")
    return f'<div class="scroll"><table><tr class="head"><th></th>{head}<th></th></tr>{"".join(rows)}</table></div>'


def comparison(runs: Sequence[Run]) -> str:
    """The metrics of several runs, one row per metric and one column per run, the best value in bold; then loss and speed."""
    columns = "".join(f'<th><i class="c{number % 8}"></i> {escape(run.name)}</th>' for number, run in enumerate(runs))
    parts = [f'<div class="scroll"><table><tr class="head"><th></th>{columns}<th>chance</th></tr>']
    splits = dict.fromkeys(split for run in runs for split in run.evaluation)
    for split in splits:
        names = dict.fromkeys(name for run in runs for name in run.evaluation.get(split, {}))
        parts.append(f'<tr class="split"><th colspan="{len(runs) + 2}">{escape(split)}</th></tr>')
        for name in names:
            metrics = [run.evaluation.get(split, {}).get(name, {}) for run in runs]
            parts.append(_row(name, metrics))
    parts.append(f'<tr class="split"><th colspan="{len(runs) + 2}">training</th></tr>')
    for title, name, lower in (
        ("loss, mean of the last 5 %", "loss", True),
        ("samples per second", "samples_per_s", False),
    ):
        series = [run.metrics.series.get(name) for run in runs]
        values = [None if s is None else s.mean_of_end() if lower else s.median() for s in series]
        if any(value is not None for value in values):
            texts = ["" if value is None else written(value) for value in values]
            parts.append(_cells(title, values, texts, lower, ""))
    steps = "".join(f"<td>{run.metrics.last_step or 0:,}</td>" for run in runs)
    parts.append(f"<tr><th>steps</th>{steps}<td></td></tr></table></div>")
    note = (
        "Bold: best in its row; lower is better for losses, errors, ranks and perplexity, higher for everything else."
    )
    if any(_test_sets_differ(runs, split) for split in splits):
        note += " Rows whose runs were measured on different files have no best value."
    return "".join(parts) + f'<p class="faint">{note}</p>'


def _row(name: str, metrics: Sequence[Metric]) -> str:
    """A row of the comparison. If the runs were measured on different files, each value shows its own chance level."""
    counts = next(metric for metric in metrics if metric).get("unit") == "count"
    values = [None if counts else number_of(metric.get("value")) for metric in metrics]
    texts = [_count(m["value"]) if counts and "value" in m else value_of(m, "value") for m in metrics]
    chances = [value_of(metric, "chance") for metric in metrics]
    same = len(_splits(metrics)) <= 1
    if not same:
        texts = [f"{text} (chance {chance})" if chance else text for text, chance in zip(texts, chances, strict=True)]
    chance = next(filter(None, chances), "") if same else ""
    return _cells(name, values, texts, bool(LOWER.search(name)), chance, comparable=same)


def _test_sets_differ(runs: Sequence[Run], split: str) -> bool:
    return len({fact for run in runs for fact in _splits(run.evaluation.get(split, {}).values())}) > 1


def _cells(
    name: str,
    values: Sequence[float | None],
    texts: Sequence[str],
    lower: bool,
    chance: str,
    *,
    comparable: bool = True,
) -> str:
    """A row. The best value is marked if the values are comparable and still differ after rounding."""
    known = {text: value for text, value in zip(texts, values, strict=True) if value is not None}
    best = None
    if comparable and len(known) > 1:
        best = (min if lower else max)(known, key=lambda text: known[text])
    cells = "".join(f"<td{' class=best' if text == best else ''}>{escape(text)}</td>" for text in texts)
    return f"<tr><th>{escape(name)}</th>{cells}<td>{escape(chance)}</td></tr>"


def value_of(metric: Metric, key: str) -> str:
    """A number of a metric as tables show it: a fraction in percent, a score times 100."""
    if key == "value" and "value" in metric and metric["value"] is None:
        return "none"
    value = number_of(metric.get(key))
    if value is None:
        return ""
    return f"{100 * value:.1f}" + (" %" if metric.get("unit", "share") == "share" else "")


def number_of(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _interval(metric: Metric) -> str:
    ends = metric.get("interval")
    if not isinstance(ends, list) or not all(isinstance(end, int | float) for end in ends):
        return ""
    return f"[{', '.join(f'{100 * end:.1f}' for end in ends)}]"


def _bar(metric: Metric) -> str:
    """The value as a bar from 0 to 100 %, with a line at chance."""
    value, chance = number_of(metric.get("value")), number_of(metric.get("chance"))
    if value is None or metric.get("unit") != "share" or not 0 <= value <= 1:
        return ""
    line = "" if chance is None else f'<b style="left:{100 * min(1.0, max(0.0, chance)):.1f}%"></b>'
    return f'<span class="bar"><i style="width:{100 * value:.1f}%"></i>{line}</span>'


def _facts(metrics: Any) -> list[str]:
    """The rules, files and weights behind a split's metrics, each listed once."""
    texts: dict[str, None] = {}
    for metric in metrics:
        if metric.get("unit") != "count":
            texts |= dict.fromkeys(
                str(metric[key]) for key in ("rule", "split", "weights", "training") if metric.get(key)
            )
    return list(texts)


def _splits(metrics: Any) -> set[str]:
    return {str(metric["split"]) for metric in metrics if "split" in metric}
