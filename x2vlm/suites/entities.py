"""Flickr30K Entities: find the boxes of the phrases in captions, with a model that was not fine-tuned for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.broken import BrokenRecordError
from dataset.image_ids import id_number
from dataset.prepare.counts import Counts
from dataset.prepare.sets.flickr30k_entities import NOT_VISUAL, chain_corners, merged, parsed_sentences
from metrics.grounding import pixel_iou
from utils.errors import UserError
from utils.files import read_text
from x2vlm.base import LoadedModel
from x2vlm.suites.refcoco import MIN_IOU, SCORE, Question, locate
from x2vlm.suites.suite import (
    CONDITIONS,
    Judged,
    Published,
    Suite,
    chosen_kinds,
    require_files,
    require_images,
    unreadable_note,
)

LIST, IMAGES = "test.txt", "flickr30k-images"
PARTS = {"Annotations": "xml", "Sentences": "txt"}
"""The folders with a file for each image, and the suffix of these files."""

RANKS = (1, 5, 10)
PROTOCOLS = ("merged", "any box")
"""How a phrase with several boxes is judged: by the box around all of them, or by any one of them."""


class EntityPhrase(NamedTuple):
    """A phrase and its boxes (T, 4), as x, y, width and height in pixels; ``whole`` (1, 4) is the box around them."""

    question: Question
    boxes: np.ndarray
    whole: np.ndarray


@dataclass(frozen=True, kw_only=True)
class EntitiesSuite(Suite[tuple[list[str], list[EntityPhrase]]]):
    """Measures the fraction of phrases for which one of the first K boxes has an IoU of at least 0.5 with a box of the phrase."""

    measures: tuple[str, ...] = tuple(f"R@{rank}" for rank in RANKS)

    def files(self, folder: Path, kinds: Sequence[str]) -> list[str]:
        return [LIST, *(f"{part}/{number}.{PARTS[part]}" for number in _ids(folder / LIST) for part in PARTS)]

    def read(self, folder: Path, kinds: Sequence[str]) -> tuple[list[str], list[EntityPhrase]]:
        protocols = chosen_kinds(PROTOCOLS, kinds, self)
        (listed,) = require_files(folder, [LIST], self)
        files = require_files(folder, self.files(folder, kinds)[1:], self)
        phrases = []
        for annotated, sentences in zip(files[::2], files[1::2], strict=True):
            image, counts = folder / IMAGES / f"{annotated.stem}.jpg", Counts()
            try:
                size, corners = chain_corners(annotated.read_bytes(), str(annotated), counts)
            except BrokenRecordError as error:
                raise UserError(str(error), where=annotated, remedy=f"see {self.published_at}") from None
            if counts.skipped:
                raise UserError(next(counts.lines()), where=annotated, remedy=f"see {self.published_at}")
            for chain, texts in parsed_sentences(sentences.read_bytes())[1].items():
                if chain == NOT_VISUAL or chain not in corners:
                    continue
                boxes, whole = (_sizes(np.array(each)) for each in (corners[chain], [merged(corners[chain])]))
                phrases += [EntityPhrase(Question(str(image), text, size), boxes, whole) for text in texts]
        if not phrases:
            raise UserError(
                "lists no image with a phrase that has a box", where=listed, remedy="pass the official file"
            )
        require_images([Path(phrase.question.image) for phrase in phrases], self)
        return protocols, phrases

    def judge(self, model: LoadedModel, content: tuple[list[str], list[EntityPhrase]]) -> Judged:
        protocols, phrases = content
        located = locate(model, [phrase.question for phrase in phrases], max(RANKS))
        kept = [phrases[index] for index in located.kept]
        values = {
            condition: np.array(
                [
                    _hits(boxes, phrase.whole if protocol == "merged" else phrase.boxes)
                    for protocol in protocols
                    for boxes, phrase in zip(located.boxes[condition], kept, strict=True)
                ]
            )
            for condition in CONDITIONS
        }
        kinds = [protocol for protocol in protocols for _ in kept]
        examples = [
            {
                "kind": kind,
                "image": phrase.question.image,
                "phrase": phrase.question.text,
                "right": {SCORE: dict(zip(self.measures, right.tolist(), strict=True))},
            }
            for kind, phrase, right in zip(kinds, kept * len(protocols), values["model"], strict=True)
        ]
        groups = [phrase.question.image for phrase in kept] * len(protocols)
        return Judged(kinds, groups, {SCORE: values}, {}, examples=examples, notes=unreadable_note(located.broken))


def _ids(listed: Path) -> list[str]:
    """Returns the ids of the images in the official list.

    Raises:
        UserError: an entry is not a number.
    """
    numbers = read_text(listed).split()
    if wrong := [number for number in numbers if id_number(number) is None]:
        raise UserError(f"{wrong[0][:40]!r} is not an id of Flickr30K", where=listed, remedy="use the official file")
    return numbers


def _sizes(corners: np.ndarray) -> np.ndarray:
    """Converts left, top, right and bottom to x, y, width and height."""
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _hits(boxes: np.ndarray, true: np.ndarray) -> list[float]:
    """Returns, for each of :data:`RANKS`, whether one of the first boxes overlaps one of the true boxes."""
    first = boxes[: max(RANKS)]
    right = pixel_iou(np.repeat(first, len(true), axis=0), np.tile(true, (len(first), 1))) >= MIN_IOU
    right = right.reshape(len(first), len(true))
    return [float(right[:rank].any()) for rank in RANKS]


PUBLISHED = {
    "MDETR-R101": {"any box": (83.4, 93.5, 95.3), "merged": (83.8, 92.7, 94.4)},
    "MDETR-ENB5": {"any box": (84.3, 93.9, 95.8)},
}
"""Results on the test split of models that were trained on Flickr30K Entities, by protocol, in the order of :data:`RANKS`."""

SUITE = EntitiesSuite(
    title="Flickr30K Entities",
    paper="Plummer et al., ICCV 2015 (arXiv:1505.04870)",
    published_at=f"github.com/BryanPlummer/flickr30k_entities ({LIST}, and annotations.zip, unpacked to Sentences and "
    f"Annotations), and the images of Flickr30K in the folder {IMAGES}",
    published=tuple(
        Published(
            model,
            {
                f"{protocol}: R@{rank}": value
                for protocol, values in by_protocol.items()
                for rank, value in zip(RANKS, values, strict=True)
            },
            ".github/flickr.md of github.com/ashkamath/mdetr",
        )
        for model, by_protocol in PUBLISHED.items()
    ),
    note="each phrase is located alone, without its caption. The first box is the box head's; the others are boxes of regions "
    "that match the phrase. Phrases without a box are skipped. The published models were "
    "trained on Flickr30K Entities, and read the whole caption",
)
