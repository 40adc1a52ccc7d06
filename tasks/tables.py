"""Metrics as a text table, measured beside chance."""

from __future__ import annotations


def table(metrics: dict[str, float], title: str = "held-out") -> str:
    """The shares among ``metrics``, those with a ``<name>/chance`` beside it, and the sizes of the sets (integers) below.

    Without any metric, one line that says so.
    """
    shares = {
        name: value for name, value in metrics.items() if isinstance(value, float) and not name.endswith("/chance")
    }
    if not shares:
        return f"{title}: nothing to measure"
    width = max(len(name) for name in (*shares, title))
    lines = [f"{title:{width}}  measured  chance"]
    for name, value in shares.items():
        chance = metrics.get(f"{name}/chance")
        lines.append(f"{name:{width}}  {value:7.1%}  {'' if chance is None else f'{chance:6.1%}'}".rstrip())
    sizes = [f"{value} {name}" for name, value in metrics.items() if isinstance(value, int)]
    return "\n".join([*lines, f"({', '.join(sizes)})"] if sizes else lines)
