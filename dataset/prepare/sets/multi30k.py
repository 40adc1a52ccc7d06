"""Multi30K: captions of Flickr30K in English, German, French and Czech.

English and German have five independently written captions per image (task 2). French and Czech have one translated caption (task
1), as do English and German if the files of task 2 are missing. The test split dates from 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataset.prepare.counts import Counts
from dataset.prepare.declarations import DataSet, Files, Splits
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFile, RawFolder
from utils.errors import UserError

LANGUAGES = ("en", "de", "fr", "cs")
DESCRIBED = ("en", "de")
"""Languages of task 2."""

CAPTIONS = 5
SPLITS = {"train": ("train", "train"), "val": ("val", "val"), "test": ("test_2016_flickr", "test_2016")}
"""Our name for each split, and its names in task 1 and task 2."""

TASK_1, TASK_2 = "task1", "task2"


def _files(raw: RawFolder) -> Files:
    """Finds the official files by their paths, such as ``task1/train.en``. Task 2 may be missing, but only as a whole."""
    names: dict[str, list[str]] = {TASK_1: [], TASK_2: []}
    for translated, described in SPLITS.values():
        names[TASK_1] += [f"{translated}.txt", *(f"{translated}.{language}" for language in LANGUAGES)]
        captions = [f"{described}.{n}.{language}" for language in DESCRIBED for n in range(1, CAPTIONS + 1)]
        names[TASK_2] += [f"{described}_images.txt", *captions]
    found: dict[str, RawFile] = {}
    for task, file_names in names.items():
        files = {f"{task}/{name}": raw.find(name, below=task) for name in file_names}
        existing = {name: file for name, file in files.items() if file is not None}
        if len(existing) < len(files) and (existing or task == TASK_1):
            missing = ", ".join(name for name in files if name not in existing)
            roots = ", ".join(map(str, raw.roots))
            raise UserError(
                f"missing files of Multi30K, plain or gzipped: {missing}",
                where=roots,
                remedy="set --raw to a copy of multi30k/dataset",
            )
        found |= existing
    return found


def _read(files: Files, folder: Path, options: Options, counts: Counts) -> Mapping[str, Iterator[dict[str, Any]]]:
    return {split: _records(files, split) for split in SPLITS}


def _records(files: Files, split: str) -> Iterator[dict[str, Any]]:
    """Yields ``image``, ``caption`` (lists by language) and ``image_id`` of each image of a split, in the order of task 1.

    Raises:
        UserError: a file has a different number of lines than there are images.
    """
    translated, described = SPLITS[split]
    images = _images(files[f"{TASK_1}/{translated}.txt"])
    captions: dict[str, dict[str, list[str]]] = {image: {} for image in images}
    listed = files.get(f"{TASK_2}/{described}_images.txt")
    for language in LANGUAGES:
        if language in DESCRIBED and listed is not None:
            order = _images(listed)
            columns = [
                _captions(files[f"{TASK_2}/{described}.{n}.{language}"], len(order)) for n in range(1, CAPTIONS + 1)
            ]
            by_image = {image: list(texts) for image, *texts in zip(order, *columns, strict=True)}
        else:
            lines = _captions(files[f"{TASK_1}/{translated}.{language}"], len(images))
            by_image = {image: [line] for image, line in zip(images, lines, strict=True)}
        for image in images:
            if image not in by_image:
                raise UserError(
                    f"{image} of task 1's {translated}.txt is missing",
                    where=listed,
                    remedy="are both from the same version?",
                )
            captions[image][language] = by_image[image]
    for image, by_language in captions.items():
        yield {"image": image, "caption": by_language, "image_id": image}


def _images(file: RawFile) -> list[str]:
    return [line.split("#")[0].strip() for _, line in file.lines() if line.strip()]


def _captions(file: RawFile, count: int) -> list[str]:
    captions = []
    for location, line in file.lines():
        if not line.strip():
            raise UserError("an empty caption", where=location)
        captions.append(line.strip())
    if len(captions) != count:
        raise UserError(
            f"{file} has {len(captions)} lines for {count} images", remedy="is it truncated, or from another version?"
        )
    return captions


MULTI30K = DataSet(
    name="multi30k",
    title="Multi30K",
    home="github.com/multi30k/dataset",
    licence="none known; images under the terms of Flickr",
    files={
        "data/task1/": "translations in four languages, and the images of each split",
        "data/task2/": "five captions in English and German; optional",
    },
    sizes={},
    makes=Splits(
        "multi30k",
        "an image of Flickr30K and its captions by language",
        files=_files,
        read=_read,
    ),
    read_by="configs/retrieval/multi30k_{base,large}.yaml",
)
