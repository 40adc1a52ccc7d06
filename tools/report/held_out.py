"""Reads the held-out data of a finished run again, without the run's model. The data provide images and annotations for the
run's predictions."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from PIL import Image

from dataset.config import ImageRecordsConfig
from dataset.media.encoded import FORMATS
from dataset.media.views import EvaluationView
from dataset.records.schema import ImageKeys, parse_region_record
from dataset.shards.readers import Shards
from tasks import TASKS
from tasks.drawing import BOX_LEGEND, DrawnImage, ImageReader, Line, Panel, colours, pair_of_boxes, spread
from tasks.finetune import FineTuneTask
from tasks.kinds import find_task
from tasks.pretrain_evaluation import MAX_BOXES
from tools.report.judging import rank_lines
from tools.runs.reading import Run
from utils.config import Config, bind
from utils.errors import UserError

MAX_RECORDS = 200_000
"""Maximum number of held-out pre-training records that are searched for the predicted records."""
IDENTITIES = {"phrase": "text", "sentence": "sentence", "question_id": "question_id"}
"""Maps keys of predictions to the fields of items that must have the same values."""

Prediction = Mapping[str, Any]
Draw = Callable[[int, Prediction], Panel | None]
"""Function that builds the panel of a prediction, given its index and the prediction. It raises an error if an image cannot be
read."""


class HeldOutSplit:
    """The data of a split, which are needed to show the split's predictions.

    Attributes:
        items: the items as the task reads them; None for pre-training, whose predictions contain everything except the images.
        legend: explanation of the panels.
    """

    def __init__(self, items: Any | None, draw: Draw, legend: str):
        self.items, self.draw, self.legend = items, draw, legend


def read_split(run: Run, split: str, predictions: Sequence[Prediction]) -> HeldOutSplit:
    """Returns the held-out data of a run's split.

    Raises:
        UserError: if the data cannot be read on this machine, or no longer match the predictions.
    """
    if run.config is None or run.task not in TASKS:
        raise UserError(f"task {run.task!r} is not one of {', '.join(TASKS)}")
    kind = find_task(str(run.task)).load()
    config = bind(run.config, kind.config)
    if not issubclass(kind.task, FineTuneTask):
        return HeldOutSplit(None, _records(config), f"{BOX_LEGEND} · a record is right if all its boxes and ranks are")
    section = cast(Any, config).evaluation.test.get(split)
    if section is None:
        raise UserError(f"evaluation.test has no split {split!r}")
    items = kind.task.read_split(config, section, f"evaluation.test.{split}")
    _require_same(items, predictions, split)
    task = _without_model(kind.task, config)
    read = ImageReader(kind.task.evaluation_view(config))
    legend = kind.task.legend_for(config)
    return HeldOutSplit(items, lambda number, prediction: task.panel(items, number, prediction, read), legend)


def _without_model(kind: type[FineTuneTask[Any, Any, Any]], config: Config) -> FineTuneTask[Any, Any, Any]:
    """Returns a task that can only draw panels, from the split and the config. Its constructor is skipped, because it would build
    the model."""
    task = kind.__new__(kind)
    task.config = config
    return task


def _require_same(items: Any, predictions: Sequence[Prediction], split: str) -> None:
    """Raises a :class:`UserError` if the predictions belong to different items."""
    captions = getattr(items, "captions", None)
    sizes = {len(items.images), len(items.images) + len(captions)} if captions is not None else {len(items)}
    if len(predictions) not in sizes:
        raise UserError(
            f"split {split!r} has changed: its data now need {max(sizes):,} predictions, but the run has "
            f"{len(predictions):,}",
            remedy="evaluate the run again with --resume --evaluate",
        )
    for key, field in IDENTITIES.items():
        for number in spread(len(predictions), 50):
            prediction = predictions[number]
            if (
                captions is None
                and key in prediction
                and getattr(items[number], field, prediction[key]) != prediction[key]
            ):
                raise UserError(f"split {split!r} has changed: example {number} has a different {key}")


def _records(config: Config) -> Draw:
    """Draws predictions of pre-training, whose images are in shards."""
    evaluation, data = cast(Any, config).evaluation, cast(Any, config).data
    if evaluation is None:
        raise UserError("the config has no section evaluation")
    records_by_location: dict[str, tuple[Shards, int, Any]] = {}
    for key in ("files", "region_files"):
        if not (files := getattr(evaluation, key)):
            continue
        shards = Shards(files, key=f"evaluation.{key}", index_folder=data.cache_index, remote=data.remote)
        regions = data.regions if key == "region_files" or data.images is None else None
        stream = regions or data.images or ImageRecordsConfig(files=[], batch_size=1)
        count = min(len(shards), evaluation.limit or len(shards), MAX_RECORDS)
        records_by_location |= {shards.exact_location(number): (shards, number, stream) for number in range(count)}
    view = EvaluationView(cast(Any, config).model.vision.image_size, data.max_pixels, pixels=data.pixels)
    return partial(_record_panel, records_by_location, ImageReader(view))


def _record_panel(
    records_by_location: Mapping[str, tuple[Shards, int, Any]], read: ImageReader, number: int, prediction: Prediction
) -> Panel | None:
    if prediction["place"] not in records_by_location:  # such as a video
        return None
    shards, row, stream = records_by_location[prediction["place"]]
    record = parse_region_record(shards.read(row), ImageKeys.of(stream), stream.caption_key)
    boxes = sorted(prediction.get("boxes", ()), key=lambda box: box["iou"])[:MAX_BOXES]
    pairs, lines = [], []
    size = _size_of(record.image.load()) if boxes else None
    for number_on_image, (box, colour) in enumerate(zip(boxes, colours(len(boxes)), strict=True), start=1):
        label = str(number_on_image) if len(boxes) > 1 else ""
        pairs.append(pair_of_boxes(box, size, colour, label))
        lines.append(Line(f"IoU {box['iou']:.2f} · {box['phrase']}", box["iou"] >= 0.5, (colour, label)))
    if more := len(prediction.get("boxes", ())) - len(boxes):
        lines.append(Line(f"and {more} more phrases, whose boxes overlap more", faint=True))
    return Panel((DrawnImage(read(record.image, size=size), tuple(pairs)),), (*rank_lines(prediction), *lines))


def _size_of(encoded: bytes) -> tuple[int, int]:
    """Returns the width and height of an image as stored in its file. Boxes refer to this size."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        return image.size
