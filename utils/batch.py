"""The batches that data loading makes and models take, and the losses that models return.

``models`` and ``dataset`` never import each other; both import these types. Axes: N examples, L tokens, I images, R regions,
F frames, A answers, P patches, H and W pixels. Masks are boolean: True = attend, or True = counts. A batch holds tensors, and
``records`` with the origin of each example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from utils.accelerator import send
from utils.sequences import stack_rows

B = TypeVar("B")
TokenIds = Sequence[Sequence[int]]

IGNORE = -100
"""Label of a position that no loss counts."""


class MicroBatch(NamedTuple):
    """The size of one rank's micro-batch: examples of the leading stream, and the config key that sets their number."""

    key: str
    size: int


@dataclass(frozen=True)
class Text:
    """Texts padded on the right to the longest of the batch: ``ids`` (N, L) int64; ``mask`` (N, L) bool, True = token.
    ``tokens``: number of tokens in all texts, or a little more; None: the host does not know it."""

    ids: Tensor
    mask: Tensor
    tokens: int | None = None


@dataclass(frozen=True)
class MaskedText:
    """Texts and a masked copy of each (X²-VLM, section 3.3, eq. 3), padded on the right to the longest of the batch.

    ``ids`` (N, L) int64: token ids. ``mask`` (N, L) bool: True = token, False = padding; every text has at least one token.
    ``masked_ids`` (N, L) int64: the ids after masking. ``positions`` (N, W) int64: masked positions, unused ones last and 0.
    ``labels`` (N, W) int64: the original ids; :data:`IGNORE` where unused, and everywhere in examples that do not count.
    ``text_id`` (N,) int64: equal exactly for equal texts. ``tokens``, ``masked``: number of tokens and of masked tokens in all
    texts, or a little more; None: unknown to the host. With them, no step waits for a GPU to count.
    """

    ids: Tensor
    mask: Tensor
    masked_ids: Tensor
    positions: Tensor
    labels: Tensor
    text_id: Tensor
    tokens: int | None = None
    masked: int | None = None

    def plain(self) -> Text:
        """The unmasked texts."""
        return Text(self.ids, self.mask, self.tokens)

    def masked_copy(self) -> Text:
        """The masked copies."""
        return Text(self.masked_ids, self.mask, self.tokens)


@dataclass(frozen=True)
class ImageTextBatch:
    """Image-text pairs. ``pixels`` (N, 3, H, W) uint8 (or float, normalised); ``valid`` (N,) bool: examples that count."""

    pixels: Tensor
    text: MaskedText
    valid: Tensor


@dataclass(frozen=True)
class VideoTextBatch:
    """Video-text pairs. ``pixels`` (N, F, 3, H, W) uint8 (or float, normalised): the frames of each video in order;
    ``valid`` (N,) bool: examples that count."""

    pixels: Tensor
    text: MaskedText
    valid: Tensor


@dataclass(frozen=True)
class RegionBatch:
    """Texts of regions, objects or whole images that share I images (one backbone pass per image, section 3.2).

    ``pixels`` (I, 3, H, W) uint8 (or float, normalised). ``image_index`` (R,) int64 into I: **ascending**, so that the regions
    of an image are neighbours. ``patch_mask`` (R, P) bool: the patches of each region, row-major, at least one.
    ``boxes_cxcywh`` (R, 4) float32: centre and size relative to the image. ``is_image`` (R,) bool: the text describes the whole
    image, and the box loss leaves it out. ``valid`` (R,) bool: examples that count.
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
    """Texts without an image. ``valid`` (N,) bool: examples that count."""

    text: MaskedText
    valid: Tensor


@dataclass(frozen=True)
class TranslationBatch:
    """Texts and their translations ``other``. ``valid`` (N,) bool: examples that count."""

    text: MaskedText
    other: Text
    valid: Tensor


@dataclass(frozen=True)
class BrokenRecord:
    """A record that could not be used: the kind of its fault (``bad json``, ``missing key``, …), ``file:line``, and a message.
    ``traceback``: of an unforeseen exception."""

    kind: str
    place: str
    message: str
    traceback: str = ""


class RecordCount(NamedTuple):
    """Records of a stream that were ``read`` for a batch, and those of them that an example was made of."""

    read: int
    usable: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Base of all micro-batches: where their examples come from.

    ``records``: the record of each example; ``broken``: records that were skipped while the batch was made; ``counts``: how many
    records of each stream were read.
    """

    records: tuple[str, ...] = ()
    broken: tuple[BrokenRecord, ...] = ()
    counts: Mapping[str, RecordCount] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """Number of records that were read, broken ones among them."""
        return sum(count.read for count in self.counts.values())

    def pin_memory(self: B) -> B:
        """A copy of the batch in page-locked memory (called by torch's ``DataLoader``)."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class PretrainBatch(Batch):
    """One micro-batch of every stream of pre-training; None for a stream that the run does not have. ``unmatched``: names of the
    streams without matching loss in this step, equal on all ranks."""

    images: ImageTextBatch | None
    regions: RegionBatch | None
    texts: TextBatch | None
    videos: VideoTextBatch | None = None
    translations: TranslationBatch | None = None
    unmatched: tuple[str, ...] = ()

    def streams(self) -> dict[str, Any]:
        """The batch of each stream of the run, by the name of the stream."""
        batches = {
            "images": self.images,
            "regions": self.regions,
            "texts": self.texts,
            "videos": self.videos,
            "translations": self.translations,
        }
        return {name: batch for name, batch in batches.items() if batch is not None}


@dataclass(frozen=True)
class RetrievalBatch(Batch):
    """Image-text pairs of retrieval. ``pixels`` (N, 3, H, W) uint8, of videos (N, F, 3, H, W); ``group`` (N,) int64: equal
    exactly for captions of one image, which are positives of each other; ``valid`` (N,) bool: examples that count."""

    pixels: Tensor
    text: Text
    group: Tensor
    valid: Tensor


@dataclass(frozen=True)
class StatementBatch(Batch):
    """Statements about K images, mostly two. ``pixels`` (K N, 3, H, W) uint8: all first (left) images, then all second (right)
    ones; ``label`` (N,) int64: 1 = true or entailed; ``valid`` (N,) bool: examples that count."""

    pixels: Tensor
    text: Text
    label: Tensor
    valid: Tensor


@dataclass(frozen=True)
class GroundingBatch(Batch):
    """Phrases with the box they refer to. ``pixels`` (N, 3, H, W) uint8; ``boxes_cxcywh`` (N, 4) float32: centre and size
    relative to the image; ``valid`` (N,) bool: examples that count."""

    pixels: Tensor
    text: Text
    boxes_cxcywh: Tensor
    valid: Tensor


@dataclass(frozen=True)
class QuestionBatch(Batch):
    """Questions about images, with answers. ``pixels`` (I, 3, H, W) uint8; ``text``: N questions; ``answers``: A answers with
    [CLS] and [SEP]; ``question_of_answer`` (A,) int64 into N; ``weights`` (A,) float32: weights of the answers' losses;
    ``valid`` (N,) bool: questions that count; ``image_of_question`` (N,) int64 into I, None: question n asks about image n."""

    pixels: Tensor
    text: Text
    answers: Text
    question_of_answer: Tensor
    weights: Tensor
    valid: Tensor
    image_of_question: Tensor | None = None


@dataclass(frozen=True)
class ClassifiedBatch(Batch):
    """Questions about images or videos, with answers as classes. ``pixels`` (I, 3, H, W) or (I, F, 3, H, W) uint8; ``text``: N
    questions; ``labels`` (A,) int64: index of each answer in the candidate list, :data:`IGNORE` if it is not in the list;
    ``question_of_answer`` (A,) int64 into N; ``weights`` (A,) float32: weights of the answers' losses; ``valid`` (N,) bool:
    questions that count; ``image_of_question`` (N,) int64 into I, None: question n asks about image or video n."""

    pixels: Tensor
    text: Text
    labels: Tensor
    question_of_answer: Tensor
    weights: Tensor
    valid: Tensor
    image_of_question: Tensor | None = None


@dataclass(frozen=True)
class LeftToRightText:
    """Texts under a causal mask, with [MASK] tokens where the model predicts a word (captioning).

    A [MASK] stands before each token to predict. It shares the token's position and attends to itself and the tokens before it;
    no other token attends to it (X²-VLM, section 4.3, after Zeng and Nie). Training and generation so predict a word alike.

    ``ids`` (N, L) int64. ``mask`` (N, L, L) bool: first L = the token that attends. ``positions`` (N, L) int64 from 0.
    ``places`` (N, W) int64: indices of the [MASK]s, 0 where unused. ``labels`` (N, W) int64: the tokens to predict,
    :data:`IGNORE` where unused.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    places: Tensor
    labels: Tensor

    @staticmethod
    def of(texts: TokenIds, targets: TokenIds, mask_id: int, pad_id: int) -> LeftToRightText:
        """The batch of ``texts`` (token ids) and ``targets``: ascending indices of the tokens to predict in each text."""
        ids, positions, places, labels = [], [], [], []
        for text, indices in zip(texts, targets, strict=True):
            # Pairs (index, is it the token?): a [MASK] sorts before the token of the same index.
            order = sorted([*((index, 1) for index in range(len(text))), *((index, 0) for index in indices)])
            ids.append([text[index] if is_token else mask_id for index, is_token in order])
            positions.append([index for index, _ in order])
            places.append([place for place, (_, is_token) in enumerate(order) if not is_token])
            labels.append([text[index] for index in indices])
        padded, most = stack_rows(ids, pad_id), max(1, *(len(indices) for indices in targets), 0)
        length = padded.shape[1]
        where = stack_rows(places, length, most)
        is_mask = torch.zeros(len(texts), length + 1, dtype=torch.bool).scatter_(1, where, True)[:, :length]
        causal = torch.ones(length, length, dtype=torch.bool).tril() & ~is_mask.unsqueeze(1)
        return LeftToRightText(
            ids=padded,
            mask=causal | torch.eye(length, dtype=torch.bool),
            positions=stack_rows(positions, 0, length),
            places=where.masked_fill(where == length, 0),
            labels=stack_rows(labels, IGNORE, most),
        )


@dataclass(frozen=True)
class CaptioningBatch(Batch):
    """Images with one caption each. ``pixels`` (N, 3, H, W) uint8; ``references``: all captions of each image, unedited;
    ``valid`` (N,) bool: examples that count."""

    pixels: Tensor
    text: LeftToRightText
    references: tuple[tuple[str, ...], ...]
    valid: Tensor


class Term(NamedTuple):
    """One loss before division. ``total``: scalar sum over the examples or tokens that count; ``weight``: its factor in equation
    6 (:func:`weighted_sum`)."""

    total: Tensor
    weight: float


Losses = dict[str, Term]


def weighted_sum(losses: Losses, divisors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Equation 6: the loss of a step is the sum of weight * total / divisor over all losses.

    Args:
        losses: of a micro-batch.
        divisors: for each loss, how many examples or tokens count: the model's ``counts(batch)``, summed over the ranks and
            micro-batches of the step, at least 1.

    Returns:
        The divided losses, (K,) for K losses, and their weighted sum, a scalar.

    Raises:
        ValueError: if a loss has no divisor, or the other way round.
    """
    if losses.keys() != divisors.keys():
        raise ValueError(f"forward() gives the losses {list(losses)}, but counts() gives {list(divisors)}")
    totals = torch.stack([loss.total for loss in losses.values()])
    averages = totals / torch.stack([divisors[name] for name in losses])
    weights = send(torch.tensor([loss.weight for loss in losses.values()]), averages.device)
    return averages, (averages * weights).sum()


@dataclass(frozen=True)
class Work:
    """Size of a step: ``samples``, the examples that count; ``images``, frames included; ``tokens``, without padding and masked
    copies; ``flops`` forward and backward (:mod:`models.core.flops`). NaN: unknown before the step, or not counted."""

    samples: float = 0
    images: float = 0
    tokens: float = 0
    flops: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in WORK))


WORK = tuple(field.name for field in fields(Work))


def to_device(batch: B, device: torch.device) -> B:
    """A copy of the batch with every tensor on ``device``. Copies from pinned memory do not block."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def map_tensors(value: Any, function: Any) -> Any:
    """A copy of a batch, or of a part of it, whose tensors are replaced by ``function(tensor)``."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: map_tensors(getattr(value, field.name), function) for field in fields(value)}
        return replace(value, **changed)
    return value
