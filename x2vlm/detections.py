"""Files of detected boxes, in the forms of COCO, LVIS, supervision and FiftyOne: reads them, scores their boxes again with a
model, and writes them in the same form."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from dataset.broken import BrokenRecordError
from metrics.detection import average_precisions, is_lvis, standard_errors
from utils.errors import UserError, reason_of
from utils.files import read_json, read_text, replacing, write_text
from utils.suffixes import IMAGE_SUFFIXES
from x2vlm.scoring import BoxScores, Unit, evidence, relative_box

if TYPE_CHECKING:
    from x2vlm.base import LoadedModel
    from x2vlm.inputs import View

Combine = Literal["replace", "multiply"]

IMAGE_COLUMNS = ("image", "image_path", "image_name", "file_name", "filename", "path")
"""Columns in which a file of supervision may name the image. supervision itself does not write one, so the user adds it."""

FORMS = "a list of COCO or LVIS results, JSON or CSV written by supervision, or labels.json of a FiftyOneImageDetectionDataset"


class Detection(NamedTuple):
    """A detected box.

    Attributes:
        image: path of the image, relative to the folder of the images; for FiftyOne, without the suffix.
        box: x and y of the upper left corner, width and height.
        label: what the detector says is in the box.
        score: score of the detector; 1 if it gives none.
    """

    image: str
    box: tuple[float, float, float, float]
    label: str
    score: float


@dataclass(frozen=True)
class Detections:
    """The contents of a file of detections.

    Attributes:
        boxes: the detections.
        unit: unit of the boxes.
        write: function that writes a file of the same form with other scores, one for each detection, and nothing else changed.
        truth: the true boxes, if they are known.
    """

    boxes: Sequence[Detection]
    unit: Unit
    write: Callable[[Path, Sequence[float]], None]
    truth: TrueBoxes | None = None


@dataclass(frozen=True)
class TrueBoxes:
    """The true boxes in an annotation file of COCO or LVIS, for a list of results.

    Attributes:
        file: the annotation file.
        annotations: its content.
        results: the results in the same form.
    """

    file: Path
    annotations: Mapping[str, Any]
    results: Sequence[Mapping[str, Any]]

    def precisions(self, scores: Sequence[float]) -> dict[str, float]:
        """Returns the average precisions of the results with these scores (:func:`~metrics.detection.average_precisions`).

        Raises:
            UserError: the true boxes are malformed.
        """
        return self._measured(average_precisions, scores)

    def errors(self, scores: Sequence[float]) -> dict[str, float]:
        """Returns the standard errors of these precisions (:func:`~metrics.detection.standard_errors`)."""
        return self._measured(standard_errors, scores)

    def _measured(self, measure: Callable[..., dict[str, float]], scores: Sequence[float]) -> dict[str, float]:
        scored = [{**row, "score": score} for row, score in zip(self.results, scores, strict=True)]
        try:
            return measure(self.annotations, scored)
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise UserError(
                f"its true boxes cannot be used: {error!r}", where=self.file, remedy="pass the official file"
            ) from None


def read_detections(file: Path, annotations: Path | None = None) -> Detections:
    """Reads a file of detections, whose form is recognised from its content.

    Args:
        file: the file; see :data:`FORMS`.
        annotations: for COCO and LVIS, the annotation file with the names of images and categories.

    Raises:
        UserError: the file has another form, or an entry is incomplete.
    """
    if file.suffix.lower() == ".csv":
        try:
            rows = list(csv.DictReader(read_text(file, "utf-8-sig").splitlines()))
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"cannot be read: {reason_of(error)}", where=file, remedy=f"pass {FORMS}") from None
        return _of_supervision(rows, file, _write_csv)
    content = _read(file)
    if isinstance(content, Mapping) and isinstance(content.get("labels"), Mapping):
        return _of_fiftyone(content, file)
    if isinstance(content, list) and content and all(isinstance(row, Mapping) for row in content):
        if "x_min" in content[0]:
            return _of_supervision(content, file, _write_json)
        if "image_id" in content[0]:
            return _of_coco(content, file, annotations)
    raise UserError("its form is not known", where=file, remedy=f"pass {FORMS}")


def _read(file: Path) -> Any:
    """Reads a JSON file; raises :class:`UserError` if it cannot be read."""
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as JSON: {reason_of(error)}", where=file, remedy="check the path") from None


def _of_coco(rows: list[dict[str, Any]], file: Path, annotations: Path | None) -> Detections:
    if annotations is None:
        raise UserError(
            "contains results of COCO or LVIS, which name images and categories by number",
            where=file,
            remedy="pass --annotations with the file that lists them",
        )
    listed = _read(annotations)
    try:
        # LVIS has the URLs of COCO's images, which end with the folder and the name.
        lvis = is_lvis(listed)
        images = {
            each["id"]: "/".join(each["coco_url"].split("/")[-2:]) if lvis and "coco_url" in each else each["file_name"]
            for each in listed["images"]
        }
        names = {each["id"]: str(each["name"]) for each in listed["categories"]}
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            "lists no images and categories", where=annotations, remedy="pass an annotation file of COCO or LVIS"
        ) from None

    def detection(row: dict[str, Any]) -> Detection:
        return Detection(
            images[row["image_id"]], _box(row["bbox"]), names[row["category_id"]], float(row.get("score", 1))
        )

    truth = TrueBoxes(annotations, listed, rows) if listed.get("annotations") else None
    return Detections(_parsed(rows, file, detection), "pixels", _with_key(rows, "score", _write_json), truth)


def _of_supervision(
    rows: list[dict[str, Any]], file: Path, write: Callable[[Path, list[dict[str, Any]]], None]
) -> Detections:
    column = next((name for name in IMAGE_COLUMNS if rows and name in rows[0]), None)
    if column is None or "class_name" not in rows[0]:
        raise UserError(
            f"its rows lack {'class_name' if column else 'the image'}",
            where=file,
            remedy=f"add it to custom_data of the sink; the image may be named {', '.join(IMAGE_COLUMNS)}",
        )

    def detection(row: dict[str, Any]) -> Detection:
        left, top, right, bottom = (float(row[name]) for name in ("x_min", "y_min", "x_max", "y_max"))
        confidence = row.get("confidence")
        score = 1.0 if confidence in (None, "") else float(str(confidence))
        return Detection(str(row[column]), (left, top, right - left, bottom - top), str(row["class_name"]), score)

    return Detections(_parsed(rows, file, detection), "pixels", _with_key(rows, "confidence", write))


def _of_fiftyone(content: Mapping[str, Any], file: Path) -> Detections:
    classes = content.get("classes") or []
    rows = [(image, entry) for image, entries in content["labels"].items() for entry in entries or ()]

    def detection(row: tuple[str, dict[str, Any]]) -> Detection:
        image, entry = row
        label = entry["label"] if isinstance(entry["label"], str) else classes[entry["label"]]
        score = entry.get("confidence")
        return Detection(image, _box(entry["bounding_box"]), label, 1.0 if score is None else float(score))

    def write(path: Path, scores: Sequence[float]) -> None:
        for (_, entry), score in zip(rows, scores, strict=True):
            entry["confidence"] = score
        write_text(path, json.dumps(content) + "\n")

    return Detections(_parsed(rows, file, detection), "fractions", write)


def _box(values: Sequence[Any]) -> tuple[float, float, float, float]:
    x, y, width, height = map(float, values)
    return x, y, width, height


def _parsed(rows: Sequence[Any], file: Path, parse: Callable[[Any], Detection]) -> list[Detection]:
    found = []
    for number, row in enumerate(rows):
        try:
            detection = parse(row)
            if not all(map(math.isfinite, (*detection.box, detection.score))):
                raise ValueError
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise UserError(
                f"entry {number} is incomplete, or names an unknown image or category: {str(row)[:200]}",
                where=file,
                remedy="each needs an image, a box of four numbers, a label and, if it has a score, a number",
            ) from None
        found.append(detection)
    return found


def _with_key(
    rows: list[dict[str, Any]], key: str, write: Callable[[Path, list[dict[str, Any]]], None]
) -> Callable[[Path, Sequence[float]], None]:
    """Returns a function that writes the rows with scores under ``key``."""
    return lambda path, scores: write(path, [row | {key: score} for row, score in zip(rows, scores, strict=True)])


def _write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, json.dumps(rows) + "\n")


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def phrase_of(label: str, template: str = "{}") -> str:
    """Returns the phrase for a detector's label: underscores become spaces, as in ``air_conditioner``, and ``template`` is put
    around it."""
    return template.replace("{}", label.replace("_", " "))


class Rescored(NamedTuple):
    """What a model thinks of N detections.

    Attributes:
        match: (N,) the probability that the label describes the box; NaN if the image cannot be read or the box is outside it.
        present: (N,) the probability that the image shows what the label describes at all; NaN likewise.
        broken: the reasons why images cannot be read.
    """

    match: np.ndarray
    present: np.ndarray
    broken: list[str]

    def scores(self, detections: Detections, combine: Combine = "replace", none: bool = False) -> list[float]:
        """Returns the new score of each detection. A detection that could not be scored keeps the detector's score.

        Args:
            detections: the detections.
            combine: "replace" the detector's score with the probability that the label describes the box, or "multiply" both.
            none: whether to multiply by the probability that the image shows what the label describes, too.
        """
        before = np.array([detection.score for detection in detections.boxes])
        new = self.match * (self.present if none else 1) * (before if combine == "multiply" else 1)
        kept: list[float] = np.where(np.isnan(new), before, new).tolist()
        return kept


def score_again(
    model: LoadedModel,
    detections: Detections,
    images: Path,
    partial: Path,
    *,
    template: str = "{}",
    progress: Callable[[int], object] = lambda count: None,
) -> Rescored:
    """Scores detections with a model.

    Args:
        model: a model that scores boxes.
        detections: the detections.
        images: folder of the images.
        partial: file for the scores of finished images, from which an interrupted run continues; removed at the end.
        template: see :func:`phrase_of`.
        progress: function that is called with the number of images that have been finished.

    Raises:
        UserError: a label contains no words, or no image can be read.
    """
    for label in dict.fromkeys(detection.label for detection in detections.boxes):
        model.cleaned(phrase_of(label, template))
    groups: dict[str, list[int]] = {}
    for number, detection in enumerate(detections.boxes):
        groups.setdefault(detection.image, []).append(number)
    work = (model.origin, images, template, model.calibration, *detections.boxes)
    digest = hashlib.sha256("\n".join(map(str, work)).encode("utf-8", "surrogatepass")).hexdigest()
    found = np.full((len(detections.boxes), 2), np.nan)
    done = _read_partial(partial, digest)
    for image, finished_scores in done.items():
        found[groups[image]] = finished_scores
    progress(len(done))
    broken: list[str] = []
    remaining = [image for image in groups if image not in done]
    with partial.open("w", encoding="utf-8") as log:
        finished = ({"image": image, "scores": scores} for image, scores in done.items())
        log.writelines(json.dumps(line) + "\n" for line in ({"work": digest}, *finished))
        for start in range(0, len(remaining), model.batch_size):
            batch: list[tuple[str, View]] = []
            for image in remaining[start : start + model.batch_size]:
                try:
                    batch.append((image, model.read(_file_of(images, image))))
                except (UserError, BrokenRecordError) as error:
                    broken.append(str(error))
            for image, numbers, scores in _scored(model, batch, groups, detections, template):
                found[numbers] = scores
                log.write(json.dumps({"image": image, "scores": found[groups[image]].tolist()}) + "\n")
            log.flush()
            progress(min(model.batch_size, len(remaining) - start))
    partial.unlink()
    if broken and len(broken) == len(groups):
        raise UserError(
            f"no image can be read, for example {broken[0]}", where=images, remedy="pass the folder of the images"
        )
    return Rescored(found[:, 0], found[:, 1], broken)


def _scored(
    model: LoadedModel,
    batch: Sequence[tuple[str, View]],
    groups: Mapping[str, Sequence[int]],
    detections: Detections,
    template: str,
) -> Iterator[tuple[str, list[int], np.ndarray]]:
    """Yields each image, the numbers of its n detections that have an area in the image, and (n, 2) the probabilities that the
    label describes the box, and that the image shows what it describes."""
    found, unit = detections.boxes, detections.unit
    inside, phrases, labels = [], [], []
    for image, view in batch:
        numbers = [n for n in groups[image] if relative_box(found[n].box, view.size, unit) is not None]
        texts = {number: phrase_of(found[number].label, template) for number in groups[image]}
        inside.append(numbers)
        phrases.append(list(dict.fromkeys(texts.values())))
        labels.append([phrases[-1].index(texts[number]) for number in numbers])
    boxes = [[found[number].box for number in numbers] for numbers in inside]
    evidences = evidence(model, [view for _, view in batch], boxes, phrases, unit, labels) if batch else []
    for (image, _), numbers, chosen, each in zip(batch, inside, labels, evidences, strict=True):
        scores = BoxScores.of(each, model.calibration)
        yield image, numbers, np.stack([scores.fit[:, 0], 1 - scores.absent[chosen]], axis=1)


def _read_partial(partial: Path, digest: str) -> dict[str, list[list[float]]]:
    """Returns the scores of finished images in a partial file of the same work; the last line may be cut off."""
    if not partial.is_file():
        return {}
    done: dict[str, list[list[float]]] = {}
    for number, line in enumerate(read_text(partial).splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if number == 0 and entry.get("work") != digest:
            return {}
        if number:
            done[entry["image"]] = entry["scores"]
    return done


def _file_of(folder: Path, image: str) -> Path:
    """Returns the file of an image. FiftyOne's names have no suffix, and their images may be in ``data``."""
    path = folder / image
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return path
    candidates = (parent / f"{image}{suffix}" for parent in (folder, folder / "data") for suffix in IMAGE_SUFFIXES)
    return next((candidate for candidate in candidates if candidate.is_file()), path)
