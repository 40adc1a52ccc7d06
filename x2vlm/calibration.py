"""Calibrates the scores of boxes and phrases on held-out records, and stores the calibration with the model."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dataset.config import TextDataConfig
from dataset.records.schema import ImageKeys
from dataset.tasks.held_out import HeldOutRecord, read_held_out
from dataset.text.processors import TextProcessor
from metrics.box_sets import pixel_boxes
from metrics.calibration import Calibration, Fitted, ModelCalibration, fit
from metrics.grounding import iou
from utils.errors import UserError
from utils.files import read_json, write_text
from utils.progress import progress_bar
from x2vlm.inputs import View
from x2vlm.matching import probabilities
from x2vlm.scoring import evidence

if TYPE_CHECKING:
    from torch import nn

    from x2vlm.base import LoadedModel

CALIBRATION_FILE = "calibration.json"
"""File with the calibration, in the folder of a run or of a saved model."""

MIN_IOU = 0.5
"""Minimum intersection over union at which a box counts as a box of a phrase."""

logger = logging.getLogger(__name__)


class Examples(NamedTuple):
    """N pairs whose truth is known.

    Attributes:
        scores: log-odds of the matching head, and cosine, (N, 2).
        labels: whether the pair is true, (N,) 0 or 1.
        images: number of the image of each pair, (N,).
    """

    scores: np.ndarray
    labels: np.ndarray
    images: np.ndarray

    @property
    def matching(self) -> np.ndarray:
        """The probabilities of the matching head, (N,)."""
        return probabilities(self.scores[:, 0])


@dataclass(frozen=True)
class Calibrated:
    """The examples to which a calibration was fitted, and what was fitted to them.

    Attributes:
        pairs: the pairs of a box and a phrase.
        phrases: phrases in whole images; a phrase is true if the image shows what it describes.
    """

    pairs: tuple[Examples, Fitted]
    phrases: tuple[Examples, Fitted]

    @property
    def calibration(self) -> ModelCalibration:
        return ModelCalibration(self.pairs[1].calibration, self.phrases[1].calibration)


def calibrate(model: LoadedModel, files: Sequence[str], *, limit: int | None = None, seed: int = 0) -> Calibrated:
    """Fits a calibration to held-out records with boxes.

    Half of the pairs of a box and a phrase are true. For each, another phrase is drawn for the same box: a phrase of another box
    of the image, or a phrase that is absent from it. For each phrase of an image, an absent phrase is drawn as well: one whose
    record lists no boxes if there is any, otherwise a phrase of another image.

    Args:
        model: a model that scores boxes.
        files: files of records (docs/records.md).
        limit: maximum number of records to read.
        seed: seed of the drawn phrases.

    Raises:
        UserError: the model does not score boxes, a record is broken, or the records have too few phrases with a box.
    """
    pairs, phrases = examples(model, read_records(model, files, limit), np.random.default_rng(seed))
    try:
        fitted = [fit(found.scores, found.labels, found.images.tolist()) for found in (pairs, phrases)]
    except ValueError as error:
        raise UserError(
            f"they have too few phrases with one box: {error}", where=", ".join(files), remedy="pass more records"
        ) from None
    return Calibrated((pairs, fitted[0]), (phrases, fitted[1]))


def read_records(model: LoadedModel, files: Sequence[str], limit: int | None = None) -> list[HeldOutRecord]:
    """Reads the records that have phrases with a box, for a model that scores boxes; see :func:`calibrate`."""
    model.require("score")
    processor = TextProcessor(model.tokenizer, TextDataConfig(max_tokens=model.settings.data.text.max_tokens))
    size, max_pixels = model.settings.model.vision.image_size, model.settings.data.max_pixels
    records = read_held_out(
        files, processor, image_size=size, keys=ImageKeys(), max_pixels=max_pixels, limit=limit, config_key="--records"
    )
    return [record for record in records if record.elements]


def view_and_boxes(record: HeldOutRecord) -> tuple[View, np.ndarray]:
    """Returns the image of a record and the boxes of its phrases, (B, 4), as x, y, width and height in fractions."""
    boxes = np.array([element.box for element in record.elements])
    return View(record.pixels, record.size or (1, 1), record.location), pixel_boxes(boxes, np.ones(2))


def examples(
    model: LoadedModel, records: Sequence[HeldOutRecord], rng: np.random.Generator
) -> tuple[Examples, Examples]:
    """Scores true and false pairs of a box and a phrase, and present and absent phrases; see :func:`calibrate`."""
    everything = sorted({element.caption for record in records for element in record.elements})
    pairs: list[tuple[np.ndarray, bool, int]] = []
    phrases: list[tuple[np.ndarray, bool, int]] = []
    bar = progress_bar(total=len(records), desc="scoring", unit="image", leave=False)
    for start in range(0, len(records), model.batch_size):
        batch = records[start : start + model.batch_size]
        shown = [list(dict.fromkeys(element.caption for element in record.elements)) for record in batch]
        absent = [
            list(_absent(record, len(texts), everything, rng)) for record, texts in zip(batch, shown, strict=True)
        ]
        views, boxes = zip(*map(view_and_boxes, batch), strict=True)
        texts = [own + other for own, other in zip(shown, absent, strict=True)]
        for number, (record, found) in enumerate(
            zip(batch, evidence(model, views, boxes, texts, "fractions"), strict=True), start
        ):
            all_boxes = np.array([element.box for element in record.elements])
            for index, element in enumerate(record.elements):
                overlaps = iou(np.tile(element.box, (len(all_boxes), 1)), all_boxes)
                pairs_of_box = zip(record.elements, overlaps, strict=True)
                fits = {each.caption for each, overlap in pairs_of_box if overlap >= MIN_IOU}
                pairs.append((found.boxes[index, found.phrases.index(element.caption)], True, number))
                if others := [column for column, text in enumerate(found.phrases) if text not in fits]:
                    pairs.append((found.boxes[index, rng.choice(others)], False, number))
            own = {element.caption for element in record.elements}
            phrases += [(row, text in own, number) for row, text in zip(found.present, found.phrases, strict=True)]
        bar.update(len(batch))
    bar.close()
    return _stacked(pairs), _stacked(phrases)


def _stacked(rows: Sequence[tuple[np.ndarray, bool, int]]) -> Examples:
    scores = np.array([scores for scores, _, _ in rows]).reshape(-1, 2)
    return Examples(scores, np.array([float(label) for _, label, _ in rows]), np.array([image for *_, image in rows]))


def _absent(record: HeldOutRecord, count: int, everything: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Yields up to ``count`` phrases that are absent from a record's image."""
    known = {element.caption for element in record.elements}
    candidates = list(dict.fromkeys(record.absent)) or everything
    for index in rng.permutation(len(candidates))[: count + len(known)]:
        if candidates[index] not in known and count:
            yield candidates[index]
            count -= 1


def read_calibration(folder: Path, network: nn.Module) -> ModelCalibration | None:
    """Returns the calibration in the folder of a run or a saved model. Returns None if the file does not exist, or was
    fitted to other weights, which is logged.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / CALIBRATION_FILE
    if not file.is_file():
        return None
    try:
        values = read_json(file)
        found = ModelCalibration(*(_from_json(values[name]) for name in ("match", "present")))
        fingerprint = values["weights"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError("is not a calibration", where=file, remedy="remove it, and run `calibrate` again") from None
    if fingerprint != fingerprint_of(network):
        logger.warning("%s was fitted to other weights, and is ignored: run `calibrate` again", file)
        return None
    return found


def write_calibration(folder: Path, calibration: ModelCalibration, network: nn.Module) -> Path:
    """Writes a calibration to the folder of a run or a saved model, and returns the file."""
    file = folder / CALIBRATION_FILE
    write_text(file, json.dumps({"weights": fingerprint_of(network), **asdict(calibration)}, indent=1) + "\n")
    return file


def fingerprint_of(network: nn.Module) -> str:
    """Returns a digest of the weights of the matching head, which change in every step of a training."""
    digest = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        if name.startswith("matching_head."):
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _from_json(values: dict[str, Any]) -> Calibration:
    weights, offset, knots = values["weights"], values["offset"], values["knots"]
    return Calibration(
        tuple(map(float, weights)), float(offset), tuple((float(score), float(value)) for score, value in knots)
    )
