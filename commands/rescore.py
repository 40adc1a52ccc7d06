"""``python run.py rescore``: scores predicted boxes against several sets of annotations."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tasks.binding import bind_run
from utils.errors import UserError
from utils.flags import File, Fraction, OutputFile, Override, named, read_by, whole_number

if TYPE_CHECKING:
    from metrics.box_sets import ScoredBoxes

EXPECTED_FORMAT = (
    "each entry needs image, phrase, boxes (a list of x, y, width, height in pixels) and scores (a probability in 0..1 for "
    "each box)"
)


def rescore(
    *overrides: Override,
    config: File,
    predictions: Annotated[tuple[str, ...], named("FILE")],
    threshold: Fraction | None = None,
    bootstrap: Annotated[int, read_by(whole_number(0))] | None = None,
    out: OutputFile | None = None,
) -> int:
    """Score the same predicted boxes against the annotations of several held-out splits: RefCOCO, RefCOCO+, RefCOCOg and
    gRefCOCO, original or reviewed.

    The predictions are files predictions_<split>.json of grounding runs, or files of another program in the same format: a JSON
    list of objects with image, phrase, boxes (lists of x, y, width, height in pixels) and scores (a probability for each box).
    Images are matched by the last components of their paths, as many as are needed to distinguish the images in the config.
    Phrases without a prediction are counted, but not scored.

    Args:
        overrides: values that replace the config's, as key=value.
        config: YAML file of a grounding run, whose evaluation.test names the splits; the images of the splits must exist.
        predictions: JSON list of predictions; may be repeated.
        threshold: minimum probability at which a box counts as predicted (default: evaluation.threshold).
        bootstrap: number of bootstrap draws for the 95% intervals; 0 for no intervals (default: evaluation.bootstrap).
        out: JSON file to write all numbers to.

    Examples:
        python run.py rescore --config my/refcoco_family.yaml --predictions runs/grounding/predictions_testA.json

    Returns:
        0 every phrase has a prediction; 1 some have none; 2 the files cannot be used
    """
    settings = bind_run(config, overrides, "grounding").config
    if out is not None and not out.parent.is_dir():
        raise UserError(
            f"the folder {out.parent} does not exist", where=f"--out {out}", remedy="create it, or use another file"
        )
    import numpy as np

    from dataset.tasks.grounding import ANY_NUMBER, read_phrases
    from metrics.box_sets import ScoredBoxes
    from tasks.finetune import name_of
    from tasks.grounding import evaluate_phrases

    evaluation = settings.evaluation
    splits = {
        name: read_phrases(split, f"evaluation.test.{name}", 0.0, ANY_NUMBER) for name, split in evaluation.test.items()
    }
    depth = distinguishing_depth(name_of(item.image) for items in splits.values() for item in items)
    found = read_predictions(predictions, depth)
    numbers: dict[str, Any] = {}
    for name, items in splits.items():
        keys = [(end_of(name_of(item.image), depth), item.text) for item in items]
        known = [(item, found[key]) for item, key in zip(items, keys, strict=True) if key in found]
        without = len(items) - len(known)
        numbers[name] = {"phrases without a prediction": without}
        if known:
            relative = [ScoredBoxes(boxes.boxes / np.tile(item.size, 2), boxes.scores) for item, boxes in known]
            single = all(len(item.boxes) == len(boxes.boxes) == 1 for item, boxes in known)
            min_score = None if single else threshold or evaluation.threshold
            measured = evaluate_phrases([item for item, _ in known], relative, min_score)
            measured = measured.with_intervals(evaluation.bootstrap if bootstrap is None else bootstrap, settings.seed)
            numbers[name] |= measured.as_json()
            sys.stdout.write(f"{measured.table(name)}\n")
        if without:
            sys.stdout.write(f"{name}: {without:,} of {len(items):,} phrases have no prediction, such as ")
            first = next(key for key in keys if key not in found)
            sys.stdout.write(f"{first[1]!r} in {first[0]}\n")
        sys.stdout.write("\n")
        if out is not None:
            out.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return 1 if any(each["phrases without a prediction"] for each in numbers.values()) else 0


def distinguishing_depth(paths: Iterable[str]) -> int:
    """Returns the number of last components (at least 1) that are needed to distinguish the paths."""
    different = {Path(path).parts for path in paths}
    longest = max((len(parts) for parts in different), default=1)
    return next((n for n in range(1, longest) if len({parts[-n:] for parts in different}) == len(different)), longest)


def end_of(path: str, count: int) -> str:
    """Returns the last ``count`` components of a path."""
    return "/".join(Path(path).parts[-count:])


def read_predictions(paths: Sequence[str], depth: int) -> dict[tuple[str, str], ScoredBoxes]:
    """Returns the predictions, by phrase and by the last ``depth`` components of the image path. Boxes are centre and size in
    pixels.

    Raises:
        UserError: if a file has the wrong format, or two predictions for the same phrase differ.
    """
    import numpy as np

    from metrics.box_sets import ScoredBoxes
    from utils.files import read_json

    found: dict[tuple[str, str], ScoredBoxes] = {}
    for path in paths:
        try:
            listed = read_json(Path(path))
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot be read ({getattr(error, 'strerror', None) or error})",
                where=path,
                remedy="pass a JSON list of predictions",
            ) from None
        if not isinstance(listed, list):
            raise UserError("is not a JSON list", where=path, remedy=f"pass a list of predictions: {EXPECTED_FORMAT}")
        for index, each in enumerate(listed):
            fault = fault_of(each)
            if fault is not None:
                raise UserError(f"entry {index}: {fault}", where=path, remedy=EXPECTED_FORMAT)
            boxes = np.array(boxes_of(each), dtype=np.float64).reshape(-1, 4)
            scores = np.array(each.get("scores", [1.0]), dtype=np.float64)
            key = (end_of(each["image"], depth), each["phrase"])
            scored = ScoredBoxes(np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1), scores)
            first = found.setdefault(key, scored)
            if not (np.array_equal(first.boxes, scored.boxes) and np.array_equal(first.scores, scored.scores)):
                raise UserError(
                    f"entry {index}: {key[1]!r} in {key[0]} also has a different prediction",
                    where=path,
                    remedy="remove one of them",
                )
    return found


def boxes_of(prediction: dict[str, Any]) -> Any:
    """Returns the boxes of a prediction. A model with one box per phrase writes the box under the key ``predicted``."""
    return prediction["boxes"] if "boxes" in prediction else [prediction.get("predicted")]


def fault_of(prediction: Any) -> str | None:
    """Returns what is wrong with an entry of a prediction file, or None if the entry is valid."""
    if not isinstance(prediction, dict) or not all(isinstance(prediction.get(key), str) for key in ("image", "phrase")):
        return "image or phrase is missing"
    boxes, scores = boxes_of(prediction), prediction.get("scores", [1.0])
    if not isinstance(boxes, list) or not all(isinstance(box, list) and len(box) == 4 for box in boxes):
        return "boxes is not a list of boxes with four numbers each"
    if not isinstance(scores, list) or len(scores) != len(boxes):
        return f"{len(boxes)} boxes, but scores is not a list of {len(boxes)} numbers"
    if not all(is_number(value, -1e9, 1e9) for box in boxes for value in box) or any(min(box[2:]) < 0 for box in boxes):
        return "a box has a negative side, or a value that is not a number of pixels"
    if not all(is_number(score, 0, 1) for score in scores):
        return "a score is not a number in 0..1"
    return None


def is_number(value: Any, minimum: float, maximum: float) -> bool:
    """Returns True if a value is a number from ``minimum`` to ``maximum``. Returns False for NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value <= maximum
