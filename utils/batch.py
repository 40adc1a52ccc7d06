"""The batches in which data and models meet, and the losses that a model gives back.

``models`` and ``dataset`` never import each other: what one makes and the other takes is defined here. Masks are boolean,
True = attend or True = counts. Batches hold tensors only beside the ``records`` that say where each row came from.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

B = TypeVar("B")

IGNORE = -100
"""Label of a masked position that does not count."""

_KEY_FACTOR, _KEY_OFFSET = 6364136223846793005, 1442695040888963407


class MicroBatch(NamedTuple):
    """Examples of the leading stream in a micro-batch of one rank, and the config key that sets their number."""

    key: str
    size: int


@dataclass(frozen=True)
class Text:
    """Texts padded on the right to the longest of the batch: ``ids`` (N, L) int64; ``mask`` (N, L) bool, True = token.
    ``tokens``: how many there are in all, or a few more, where the host knows."""

    ids: Tensor
    mask: Tensor
    tokens: int | None = None


@dataclass(frozen=True)
class MaskedText:
    """Texts and a masked copy of each (X²-VLM, section 3.3, eq. 3), padded to the longest of the batch.

    ``ids`` (N, L) int64 token ids; ``mask`` (N, L) bool, True = token, False = padding (every row has at least one token);
    ``masked_ids`` (N, L) the ids after masking; ``positions`` (N, M) int64 masked positions, 0 where unused;
    ``labels`` (N, M) int64 original ids, :data:`IGNORE` where unused (behind the used ones, and everywhere in rows that do not
    count); ``key`` (N,) int64, equal exactly for equal texts. ``tokens`` of all texts and ``masked`` ones among them, or a few
    more, where the host knows: a GPU need not be asked.
    """

    ids: Tensor
    mask: Tensor
    masked_ids: Tensor
    positions: Tensor
    labels: Tensor
    key: Tensor
    tokens: int | None = None
    masked: int | None = None

    def plain(self) -> Text:
        """The texts as they are."""
        return Text(self.ids, self.mask, self.tokens)

    def masked_copy(self) -> Text:
        """The masked copies."""
        return Text(self.masked_ids, self.mask, self.tokens)


@dataclass(frozen=True)
class ImageTextBatch:
    """Image-text pairs. ``pixels`` (N, 3, H, W) uint8 (or float, already normalised); ``valid`` (N,) bool: rows that count."""

    pixels: Tensor
    text: MaskedText
    valid: Tensor


@dataclass(frozen=True)
class VideoTextBatch:
    """Video-text pairs. ``pixels`` (N, F, 3, H, W) uint8 (or float, already normalised), F frames of each video in order;
    ``valid`` (N,) bool: rows that count."""

    pixels: Tensor
    text: MaskedText
    valid: Tensor


@dataclass(frozen=True)
class RegionBatch:
    """Texts of regions, objects or whole images that share I images (one backbone pass per image, section 3.2).

    ``pixels`` (I, 3, H, W) uint8 (or float, already normalised); ``image_index`` (R,) int64 into I, **ascending** so that
    the rows of one image lie together; ``patch_mask`` (R, P) bool, patches row-major, at least one True in each row;
    ``boxes_cxcywh`` (R, 4) float32 relative to the input, centre and size; ``is_image`` (R,) bool: the text describes the
    whole image, so that no box is learned from the row; ``valid`` (R,) bool: rows that count.
    """

    pixels: Tensor
    image_index: Tensor
    patch_mask: Tensor
    boxes_cxcywh: Tensor
    is_image: Tensor
    text: MaskedText
    valid: Tensor


@dataclass(frozen=True)
class TextBatch:
    """Texts without an image; ``valid`` (N,) bool: rows that count."""

    text: MaskedText
    valid: Tensor


@dataclass(frozen=True)
class TextPairBatch:
    """Texts and their translations, ``other``; ``valid`` (N,) bool: rows that count."""

    text: MaskedText
    other: Text
    valid: Tensor


@dataclass(frozen=True)
class BrokenRecord:
    """A record that could not be used: kind (``bad json``, …), ``file:line``, what was wrong; of a surprise, its traceback."""

    kind: str
    place: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What every micro-batch tells of its making.

    ``records``: where the rows came from; ``broken``: records that were skipped; ``read``: how many were asked for."""

    records: tuple[str, ...] = ()
    broken: tuple[BrokenRecord, ...] = ()
    read: int = 0

    def pin_memory(self: B) -> B:
        """The same batch in page-locked memory (called by torch's ``DataLoader``)."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class PretrainBatch(Batch):
    """One micro-batch of every stream of pre-training; a stream that the run does not have is None. ``unmatched`` names the
    streams that have no matching loss in this step, the same on all ranks."""

    images: ImageTextBatch | None
    regions: RegionBatch | None
    texts: TextBatch | None
    videos: VideoTextBatch | None = None
    pairs: TextPairBatch | None = None
    unmatched: tuple[str, ...] = ()

    def streams(self) -> dict[str, Any]:
        """The batch of each stream that the micro-batch has, by name."""
        names = [field.name for field in fields(self) if field.name not in {*Batch.__dataclass_fields__, "unmatched"}]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class RetrievalBatch(Batch):
    """Image-text pairs of retrieval. ``pixels`` (N, 3, H, W) uint8, or of videos (N, F, 3, H, W); ``group`` (N,) int64, equal
    exactly for captions of one image, which are positives of each other; ``valid`` (N,) bool: rows that count."""

    pixels: Tensor
    text: Text
    group: Tensor
    valid: Tensor


@dataclass(frozen=True)
class PairBatch(Batch):
    """Statements about K images, mostly two. ``pixels`` (K N, 3, H, W) uint8, all first (left) images before all second
    (right) ones; ``label`` (N,) int64, 1 = true or entailed; ``valid`` (N,) bool: rows that count."""

    pixels: Tensor
    text: Text
    label: Tensor
    valid: Tensor


@dataclass(frozen=True)
class GroundingBatch(Batch):
    """Phrases with the box they refer to. ``pixels`` (N, 3, H, W) uint8; ``boxes_cxcywh`` (N, 4) float32 relative to the
    input, centre and size; ``valid`` (N,) bool: rows that count."""

    pixels: Tensor
    text: Text
    boxes_cxcywh: Tensor
    valid: Tensor


@dataclass(frozen=True)
class QuestionBatch(Batch):
    """Questions about images, with answers. ``pixels`` (N, 3, H, W) uint8; ``text`` N questions; ``answers`` A answers with
    [CLS] and [SEP]; ``question_of_answer`` (A,) int64; ``weights`` (A,) float32 of the answers' losses; ``valid`` (N,)
    bool: questions that count."""

    pixels: Tensor
    text: Text
    answers: Text
    question_of_answer: Tensor
    weights: Tensor
    valid: Tensor


@dataclass(frozen=True)
class ClassifiedBatch(Batch):
    """Questions about images or videos, each with the candidates that answer it. ``pixels`` (N, 3, H, W) or (N, F, 3, H, W)
    uint8; ``text`` N questions; ``labels`` (A,) int64, places in the list of candidates, :data:`IGNORE` for an answer that is
    none of them; ``question_of_answer`` (A,) int64; ``weights`` (A,) float32 of the answers' losses; ``valid`` (N,) bool:
    questions that count."""

    pixels: Tensor
    text: Text
    labels: Tensor
    question_of_answer: Tensor
    weights: Tensor
    valid: Tensor


@dataclass(frozen=True)
class LeftToRightText:
    """Texts whose tokens see only what is before them, with the places at which a token has to be said (captioning).

    Before each token that has to be said stands a [MASK]: it shares the token's position, sees the tokens before it and itself,
    and nothing else sees it (X²-VLM, section 4.3, after Zeng and Nie). So the model predicts in training what it predicts when
    it generates.

    ``ids`` (N, L) int64; ``mask`` (N, L, L) bool, row = the token that attends; ``positions`` (N, L) int64, counted from 0;
    ``places`` (N, M) int64 where the [MASK]s stand, 0 where unused; ``labels`` (N, M) int64 the tokens to be said,
    :data:`IGNORE` where unused.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    places: Tensor
    labels: Tensor

    @staticmethod
    def of(texts: Sequence[Sequence[int]], said: Sequence[Sequence[int]], mask_id: int, pad_id: int) -> LeftToRightText:
        """Texts of token ids, each with the ascending places of the tokens that have to be said."""
        ids, positions, places, labels = [], [], [], []
        for text, chosen in zip(texts, said, strict=True):
            order = sorted([*((place, 1) for place in range(len(text))), *((place, 0) for place in chosen)])
            ids.append([text[place] if real else mask_id for place, real in order])
            positions.append([place for place, _ in order])
            places.append([index for index, (_, real) in enumerate(order) if not real])
            labels.append([text[place] for place in chosen])
        padded, most = stack_rows(ids, pad_id), max(1, *(len(chosen) for chosen in said), 0)
        length = padded.shape[1]
        where = stack_rows(places, length, most)
        unseen = torch.zeros(len(texts), length + 1, dtype=torch.bool).scatter_(1, where, True)[:, :length]
        seen = torch.ones(length, length, dtype=torch.bool).tril() & ~unseen.unsqueeze(1)
        return LeftToRightText(
            ids=padded,
            mask=seen | torch.eye(length, dtype=torch.bool),
            positions=stack_rows(positions, 0, length),
            places=where.masked_fill(where == length, 0),
            labels=stack_rows(labels, IGNORE, most),
        )


@dataclass(frozen=True)
class CaptioningBatch(Batch):
    """Images with a caption each. ``pixels`` (N, 3, H, W) uint8; ``references``: all captions of each image, as they were
    written; ``valid`` (N,) bool: rows that count."""

    pixels: Tensor
    text: LeftToRightText
    references: tuple[tuple[str, ...], ...]
    valid: Tensor


class Term(NamedTuple):
    """One loss before it is divided: ``total`` the sum over the rows or tokens that count, ``weight`` its factor in the sum
    of equation 6. The number to divide by comes from ``counts(batch)``, since it spans ranks and micro-batches."""

    total: Tensor
    weight: float


Losses = dict[str, Term]


@dataclass(frozen=True)
class Work:
    """What a step takes in and does: ``samples`` rows that count, ``images`` pictures and frames, ``tokens`` of the texts without
    padding, a masked copy not counted, and ``flops``, the least operations forward and backward (see :mod:`models.flops`).
    NaN: not known before the step, or not counted."""

    samples: float = 0
    images: float = 0
    tokens: float = 0
    flops: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in WORK))


WORK = tuple(field.name for field in fields(Work))


def to_device(batch: B, device: torch.device) -> B:
    """The same batch with every tensor on ``device``; copies do not block where memory is pinned."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def map_tensors(value: Any, function: Any) -> Any:
    """A batch, or a part of one, with ``function`` of each of its tensors in their place."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: map_tensors(getattr(value, field.name), function) for field in fields(value)}
        return replace(value, **changed)
    return value


def text_keys(ids: Tensor, mask: Tensor) -> Tensor:
    """A number for each text, equal exactly where the attended token ids are equal (up to 64-bit collisions).

    ``ids`` and ``mask`` (N, L) -> (N,) int64. A polynomial in the ids modulo 2^64, so that padding changes nothing.
    """
    following = mask.sum(dim=1, keepdim=True) - mask.cumsum(dim=1)
    powers = (
        torch.full((ids.shape[1] + 1,), _KEY_FACTOR).cumprod(dim=0).roll(1)
    )  # wraps around at 2^64, as all that follows
    powers[:1] = 1
    return ((ids + _KEY_OFFSET) * powers[following] * mask).sum(dim=1)


def stack_rows(rows: Sequence[Sequence[int]], fill: int, length: int | None = None) -> Tensor:
    """Lists of integers as one (N, L) int64 tensor, padded on the right with ``fill`` to the longest (or to ``length``)."""
    lengths = np.array([len(row) for row in rows], np.int64)
    width = int(lengths.max(initial=0)) if length is None else length
    out = np.full((len(rows), width), fill, np.int64)
    out[np.arange(width) < lengths[:, None]] = np.fromiter(itertools.chain.from_iterable(rows), np.int64, lengths.sum())
    return torch.from_numpy(out)
