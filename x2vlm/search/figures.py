"""Pictures of hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tasks.drawing import Line, Panel
from x2vlm import figures
from x2vlm.search.index import Hit, ImageIndex


def panels_of(index: ImageIndex, hits: Sequence[Hit], heading: str = "") -> list[Panel]:
    """Returns a panel for each hit, with the image, its scores, its box if it has one, and a ``heading`` above the image."""
    above = (Line(heading),) if heading else ()
    panels = []
    for hit in hits:
        score = "" if hit.score is None else f"probability {hit.score:.2f} · "
        ranked_by = "" if hit.sum is None else f"sum {hit.sum:+.1f} · "
        label = f"{ranked_by}{score}cosine {hit.cosine:+.2f}"
        if hit.box is None:
            panel = figures.described(index.model.read, hit.path, [label])
        else:
            panel = figures.located(index.model.read, hit.path, [hit.box], [hit.box.phrase])
            panel = replace(panel, lines=(Line(label), *panel.lines))
        panels.append(replace(panel, above=(*above, *panel.above)))
    return panels
