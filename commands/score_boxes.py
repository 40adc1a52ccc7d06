"""``run.py score-boxes DETECTIONS``: scores the boxes of a detector again with a model."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

from commands.models import ModelFlags, report_broken
from utils.errors import UserError
from utils.flags import ModelName, OutputFile, named, non_blank, read_by
from utils.printing import counted
from utils.progress import progress_bar


def score_boxes(
    detections: Path,
    /,
    *,
    model: ModelName,
    images: Annotated[Path, named("FOLDER")],
    out: OutputFile,
    annotations: Path | None = None,
    combine: Literal["replace", "multiply"] = "replace",
    none: bool = False,
    template: Annotated[str, read_by(non_blank)] = "{}",
    running: ModelFlags = ModelFlags(),
) -> int:
    """Score the boxes of a detector again: how well does the content of each box fit its label?

    The file is a list of COCO or LVIS results, a JSON or CSV file written by supervision with the columns image and class_name,
    or labels.json of a FiftyOneImageDetectionDataset. A file of the same form is written, in which only the scores differ. To
    get probabilities, calibrate the model first. If --annotations lists the true boxes, the average precision before and after
    is printed. If the command is interrupted, run it again to continue.

    Args:
        detections: file of the detected boxes.
        model: a pre-training or retrieval run, a weight file, or hub:owner/name.
        images: folder of the images.
        out: file to write.
        annotations: for COCO and LVIS results, the annotation file with the names of images and categories.
        combine: replace each score with the model's probability, or multiply both.
        none: also multiply by the probability that the image shows what the label describes at all.
        template: the phrase for a label, such as "a photo of a {}".

    Examples:
        python run.py score-boxes results.json --model runs/x --annotations instances.json --images val2017 --out again.json
        python run.py score-boxes detections.csv --model runs/x --images photos --combine multiply --out again.csv

    Returns:
        0 all boxes were scored; 1 some images could not be read, and their boxes keep their scores; 2 nothing was written
    """
    if not images.is_dir():
        raise UserError("is not a folder", where=f"--images {images}", remedy="pass the folder of the images")
    if out.exists() and detections.exists() and out.samefile(detections):
        raise UserError("is the file of the detections", where=f"--out {out}", remedy="pass another file")
    if "{}" not in template:
        raise UserError("has no {} for the label", where=f"--template {template!r}", remedy='pass, for example, "a {}"')
    from x2vlm.detections import read_detections, score_again

    found = read_detections(detections, annotations)
    before = None if found.truth is None else found.truth.precisions([detection.score for detection in found.boxes])
    loaded = running.load(model)
    loaded.require("score")
    if loaded.calibration is None:
        sys.stderr.write(
            f"{model} is not calibrated, so its scores only rank the boxes; for probabilities, run `calibrate`\n"
        )
    count = len({detection.image for detection in found.boxes})
    with progress_bar(total=count, desc="scoring", unit="image", leave=False) as bar:
        partial = out.with_name(f"{out.name}.partial.jsonl")
        rescored = score_again(loaded, found, images, partial, template=template, progress=bar.update)
    scores = rescored.scores(found, combine, none)
    found.write(out, scores)
    if found.truth is not None and before is not None:
        after = found.truth.precisions(scores)
        sys.stdout.write(f"{'average precision, %':20}{'before':>8}{'after':>8}\n")
        for name, value in after.items():
            if not math.isnan(value):  # NaN: there are no such objects
                sys.stdout.write(f"{name:20}{100 * before[name]:8.1f}{100 * value:8.1f}\n")
    boxes, of_images = counted(len(scores), "box", "boxes"), counted(count, "image", "images")
    sys.stdout.write(f"{out}: {boxes} in {of_images}\n")
    return report_broken(rescored.broken, count)
