"""Average precision of detected boxes, as COCO and LVIS define it."""

from __future__ import annotations

import contextlib
import io
import math
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

GROUPS = 20
"""Number of groups of images for the jackknife."""


def is_lvis(annotations: Mapping[str, Any]) -> bool:
    """Returns True if the categories of an annotation file have a frequency, as in LVIS."""
    return any("frequency" in category for category in annotations["categories"])


def average_precisions(annotations: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the average precision of boxes in 0..1: over the IoUs 0.50, 0.55, ... 0.95 (AP), at 0.50 and 0.75, and by the area
    of the object; NaN if there are no such objects. For LVIS, a category only counts in the images that were checked for it,
    and there are also the averages over rare, common and frequent categories.

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
    found = {name: float(evaluation.stats_as_dict[theirs]) for name, theirs in names.items()}
    return {name: value if value >= 0 else math.nan for name, value in found.items()}


def standard_errors(annotations: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the standard errors of the average precisions over the draw of images, by the delete-a-group jackknife (Kott 2001):
    the images are divided into groups, and the precisions are computed without each group. There are :data:`GROUPS` groups, or
    as many as there are images. With less than two images, the errors are NaN.

    Args:
        annotations, results: as in :func:`average_precisions`.
    """
    ids = sorted(image["id"] for image in annotations["images"])
    groups = min(GROUPS, len(ids))
    without = []
    for group in range(groups):
        left_out = set(ids[group::groups])
        parts = {
            key: [row for row in annotations[key] if row[id_key] not in left_out]
            for key, id_key in (("images", "id"), ("annotations", "image_id"))
        }
        rest = [result for result in results if result["image_id"] not in left_out]
        without.append(average_precisions({**annotations, **parts}, rest))
    names = LVIS_NAMES if is_lvis(annotations) else COCO_NAMES
    return {name: _jackknife([each[name] for each in without]) for name in names}


def _jackknife(values: Sequence[float]) -> float:
    """Returns the standard error from the values without each group."""
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return math.sqrt((len(values) - 1) / len(values) * sum((value - mean) ** 2 for value in values))
