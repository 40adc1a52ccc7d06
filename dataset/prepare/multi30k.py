"""``run.py prepare multi30k``: records of Multi30K."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.prepare.official import OutputFlags, read_lines, write_splits
from utils.errors import UserError

LANGUAGES = ("en", "de", "fr", "cs")
DESCRIBED = ("en", "de")
"""Languages of task 2."""

CAPTIONS = 5
SPLITS = {"train": ("train", "train"), "val": ("val", "val"), "test": ("test_2016_flickr", "test_2016")}
"""Our name of a split -> its names in task 1 and task 2."""


def records(source: Path, split: str) -> Iterator[dict[str, Any]]:
    """``image``, ``caption`` (lists by language) and ``image_id`` of each image of a split, in the order of task 1.

    Raises:
        UserError: a file is missing, or the number of its lines differs from the number of images.
    """
    translated, described = SPLITS[split]
    tasks = source / "data"
    images = _images(tasks / "task1" / "image_splits" / f"{translated}.txt")
    captions: dict[str, dict[str, list[str]]] = {image: {} for image in images}
    for language in LANGUAGES:
        by_image = _described(tasks / "task2", described, language) if language in DESCRIBED else {}
        if not by_image:
            lines = _lines(tasks / "task1" / "raw" / f"{translated}.{language}", len(images))
            by_image = {image: [line] for image, line in zip(images, lines, strict=True)}
        for image in images:
            if image not in by_image:
                raise UserError(
                    f"{tasks}: {image} has no {language} caption in task 2, but is in task 1's {translated}"
                )
            captions[image][language] = by_image[image]
    for image, by_language in captions.items():
        yield {"image": image, "caption": by_language, "image_id": image}


def _described(task: Path, split: str, language: str) -> dict[str, list[str]]:
    """The five captions of each image; empty where the task is not there."""
    listed = task / "image_splits" / f"{split}_images.txt"
    if not task.is_dir():
        return {}
    images = _images(listed)
    columns = [_lines(task / "raw" / f"{split}.{number}.{language}", len(images)) for number in range(1, CAPTIONS + 1)]
    return {image: [column[place] for column in columns] for place, image in enumerate(images)}


def _images(path: Path) -> list[str]:
    return [line.split("#")[0].strip() for line in read_lines(path)]


def _lines(path: Path, count: int) -> list[str]:
    lines = [line.strip() for line in read_lines(path)]
    if len(lines) != count:
        raise UserError(f"{path} has {len(lines)} lines for {count} images; is it cut, or of another version?")
    if "" in lines:
        raise UserError(f"{path}:{lines.index('') + 1}: an empty caption")
    return lines


def multi30k(*, output: OutputFlags, source: Path) -> int:
    """Make records of Multi30K, with captions by language.

    --source is a copy of the official repository (multi30k/dataset). English and German have five captions of each image,
    written independently (task 2); French and Czech have one, a translation (task 1), and so have English and German without
    task 2. The test split is the one from 2016. Images are from Flickr30K, named relative to their own folder.

    Args:
        source: copy of multi30k/dataset.

    Examples:
        python run.py prepare multi30k --source dataset --out data/multi30k
    """
    arguments = {"source": str(source.resolve())}
    write_splits("multi30k", output, arguments, {split: records(source, split) for split in SPLITS})
    return 0
