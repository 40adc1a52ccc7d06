"""Metrics as a text table, measured beside chance, and their mean over splits."""

from __future__ import annotations

from collections.abc import Mapping

SCORES = ("BLEU", "ROUGE", "CIDEr", "METEOR", "SPICE")
"""Starts of metrics that are no shares: they are shown times 100, as papers do, without a sign."""


def table(metrics: dict[str, float], title: str = "held-out") -> str:
    """The shares among ``metrics``, those with a ``<name>/chance`` beside it, and the sizes of the sets (integers) below.

    Without any metric, one line that says so.
    """
    shares = {name: value for name, value in _shares(metrics).items() if not name.endswith("/chance")}
    if not shares:
        return f"{title}: nothing to measure"
    width = max(len(name) for name in (*shares, title))
    lines = [f"{title:{width}}  measured  chance"]
    for name, value in shares.items():
        chance = metrics.get(f"{name}/chance")
        sign = " " if name.startswith(SCORES) else "%"
        beside = "" if chance is None else f"{100 * chance:5.1f}{sign}"
        lines.append(f"{name:{width}}  {100 * value:6.1f}{sign}  {beside}".rstrip())
    sizes = [f"{value} {name}" for name, value in metrics.items() if isinstance(value, int)]
    return "\n".join([*lines, f"({', '.join(sizes)})"] if sizes else lines)


def mean_of_splits(results: Mapping[str, dict[str, float]]) -> dict[str, float]:
    """The mean of every share that all measured splits have, languages for instance; none where fewer than two are measured."""
    measured = [shares for shares in map(_shares, results.values()) if shares]
    if len(measured) < 2:
        return {}
    names = [name for name in measured[0] if all(name in shares for shares in measured)]
    return {name: sum(shares[name] for shares in measured) / len(measured) for name in names}


def _shares(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without the sizes of the sets."""
    return {name: value for name, value in metrics.items() if isinstance(value, float)}
