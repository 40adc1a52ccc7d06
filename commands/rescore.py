"""``python run.py rescore``: measure one file of predicted boxes by several annotations."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.kinds import choose
from utils.config import load_config
from utils.errors import UserError
from utils.flags import File, Override

if TYPE_CHECKING:
    from metrics.box_sets import ScoredBoxes


def rescore(
    *overrides: Override,
    config: File,
    predictions: File,
    threshold: float = 0.5,
    bootstrap: int = 1000,
    out: Path | None = None,
) -> int:
    """Measure one file of predicted boxes by the annotations of several held-out splits: RefCOCO, RefCOCO+, RefCOCOg and
    gRefCOCO, original or reviewed. A model predicts once, and every number is of the same boxes.

    Predictions are what a grounding run writes to predictions_<split>.json, or another program in this form: a JSON list of
    objects with image (file name), phrase, boxes (lists of x, y, width, height in pixels) and scores (a probability for each
    box). They are found by file name and phrase. Phrases without a prediction are counted and not measured.

    Args:
        overrides: values that replace the config's, as key=value.
        config: YAML file of a grounding run, whose evaluation.test names the splits.
        predictions: JSON list of predictions.
        threshold: probability from which a box counts as predicted.
        bootstrap: draws of the 95 % intervals; 0 for none.
        out: JSON file to write all numbers to.

    Examples:
        python run.py rescore --config my/refcoco_family.yaml --predictions runs/grounding/predictions_testA.json

    Returns:
        0 every phrase has a prediction; 1 some have none; 2 the files cannot be used
    """
    choice = choose(config, overrides, "grounding")
    choice.check_keys()
    import numpy as np

    from dataset.tasks.grounding import read_phrases
    from metrics.box_sets import ScoredBoxes
    from tasks.finetune import name_of
    from tasks.grounding import GroundingConfig, evaluate_phrases

    found, sets = read_predictions(predictions)
    settings = load_config(choice.config, overrides, GroundingConfig)
    numbers: dict[str, Any] = {}
    missing = 0
    for name, split in settings.evaluation.test.items():
        items = read_phrases(split, f"evaluation.test.{name}", 0.0, range(10**6) if sets else range(1, 2))
        keys = [(Path(name_of(item.image)).name, item.text) for item in items]
        known = [(item, found[key]) for item, key in zip(items, keys, strict=True) if key in found]
        missing += len(items) - len(known)
        if not known:
            raise UserError(
                f"{predictions}: has no prediction for any of the {len(items):,} phrases of evaluation.test.{name}, such as "
                f"{keys[0][1]!r} in {keys[0][0]}; predict them, or remove the split"
            )
        relative = [ScoredBoxes(boxes.boxes / np.tile(item.size, 2), boxes.scores) for item, boxes in known]
        evaluation = evaluate_phrases([item for item, _ in known], relative, threshold if sets else None)
        evaluation = evaluation.with_intervals(bootstrap, settings.seed)
        numbers[name] = {**evaluation.as_json(), "phrases without a prediction": len(items) - len(known)}
        sys.stdout.write(f"{evaluation.table(name)}\n")
        if len(known) < len(items):
            sys.stdout.write(f"{len(items) - len(known):,} of {len(items):,} phrases have no prediction\n")
        sys.stdout.write("\n")
    if out is not None:
        out.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return 1 if missing else 0


def read_predictions(path: File) -> tuple[dict[tuple[str, str], ScoredBoxes], bool]:
    """Reads predictions by file name of the image and phrase; boxes stay in pixels.

    Returns:
        The predictions, and whether any of them is a set of boxes.

    Raises:
        UserError: if the file has another form.
    """
    import numpy as np

    from metrics.box_sets import ScoredBoxes
    from utils.files import read_json

    try:
        listed = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a JSON list of predictions") from None
    found: dict[tuple[str, str], ScoredBoxes] = {}
    sets = False
    for number, each in enumerate(listed if isinstance(listed, list) else [None]):
        try:
            single = "boxes" not in each
            boxes = np.array([each["predicted"]] if single else each["boxes"], dtype=np.float64).reshape(-1, 4)
            scores = np.array([1.0] if single else each["scores"], dtype=np.float64)
            key = (Path(each["image"]).name, str(each["phrase"]))
            if len(boxes) != len(scores):
                raise ValueError(f"{len(boxes)} boxes, but {len(scores)} scores")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: entry {number} is not a prediction ({type(error).__name__}: {error}); it needs image, phrase, boxes "
                "and scores"
            ) from None
        sets |= not single
        found[key] = ScoredBoxes(np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1), scores)
    return found, sets
