"""Pictures of hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tasks.drawing import Line, Panel
from x2vlm import figures
from x2vlm.search.index import Hit, ImageIndex

MIN_BOX_PROBABILITY = 0.1
"""Minimum probability at which a search draws the box of a phrase. Most hits of a search do not contain the phrase. On the demo's
validation scenes, 98% of the boxes with an IoU of at least 0.5 reach this probability, and 40% of the boxes of phrases about
objects that are not in the image."""


def is_improbable(hit: Hit) -> bool:
    """Returns True if a hit has a box that is not drawn, because its probability is below :data:`MIN_BOX_PROBABILITY`."""
    return hit.box is not None and (hit.box.score or 0.0) < MIN_BOX_PROBABILITY


def panels_of(index: ImageIndex, hits: Sequence[Hit], heading: str = "") -> list[Panel]:
    """Returns a panel for each hit, with the image, its scores, its box unless it is improbable, and a ``heading`` above the
    image."""
    above = (Line(heading),) if heading else ()
    panels = []
    for hit in hits:
        score = "" if hit.score is None else f"probability {hit.score:.2f} · "
        ranked_by = "" if hit.sum is None else f"sum {hit.sum:+.1f} · "
        label = f"{ranked_by}{score}cosine {hit.cosine:+.2f}"
        if hit.box is None or is_improbable(hit):
            panel = figures.described(index.model.read, hit.path, [label])
        else:
            panel = figures.located(index.model.read, hit.path, [hit.box], [hit.box.phrase])
            panel = replace(panel, lines=(Line(label), *panel.lines))
        panels.append(replace(panel, above=(*above, *panel.above)))
    return panels
