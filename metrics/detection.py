"""Average precision of detected boxes, as COCO and LVIS define it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

COCO_NAMES = {
    "AP": "AP_all",
    "AP50": "AP_50",
    "AP75": "AP_75",
    "APs": "AP_small",
    "APm": "AP_medium",
    "APl": "AP_large",
}
LVIS_NAMES = {**COCO_NAMES, "APr": "APr", "APc": "APc", "APf": "APf"}
"""The names in papers, and the names in faster-coco-eval."""

LVIS_DETECTIONS = 300
"""Maximum number of detections of an image in LVIS; in COCO, it is 100."""


def is_lvis(annotations: Mapping[str, Any]) -> bool:
    """Returns True if the categories of an annotation file have a frequency, as in LVIS."""
    return any("frequency" in category for category in annotations["categories"])


def average_precisions(annotations: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the average precision of boxes in 0..1: over the IoUs 0.50, 0.55, ... 0.95 (AP), at 0.50 and 0.75, and by the area
    of the object. For LVIS, a category only counts in the images that were checked for it, and there are also the averages over
    rare, common and frequent categories.

    Args:
        annotations: the content of an annotation file of COCO or LVIS.
        results: a list of results: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels), ``score``.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    lvis = is_lvis(annotations)
    names = LVIS_NAMES if lvis else COCO_NAMES
    if not results:
        return dict.fromkeys(names, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints a table
        reference = COCO(dict(annotations))
        found = reference.loadRes([dict(result) for result in results])
        evaluation = COCOeval_faster(reference, found, "bbox", print_function=lambda *_: None, lvis_style=lvis)
        if lvis:
            evaluation.params.maxDets = [LVIS_DETECTIONS]
        evaluation.run()
    return {name: float(evaluation.stats_as_dict[theirs]) for name, theirs in names.items()}
