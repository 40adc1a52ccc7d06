"""Re-ranking: computes the matching scores of a few images with many texts each (appendix A.1 of the paper).

To save work, an image's keys and values are projected once for all its texts, the texts are packed without padding, and the last
block computes only the [CLS] state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import RankingScore
from models.core.fusion import FusionEncoder
from models.core.losses import at_least_float32
from models.core.packing import PackedTexts
from models.core.vision import Concepts
from models.pretraining.model import PretrainModel
from models.tasks.retrieval import RetrievalModel
from utils.accelerator import send

AligningModel = PretrainModel | RetrievalModel
"""A model with a contrastive and a matching head."""

ORDER_NOTES: dict[RankingScore, str] = {
    "cosine": "",
    "matching": "",
    "sum": " by the matching head's weighted log-odds plus the cosine divided by the temperature",
}
"""How candidates are sorted, as a note in tables. The published order needs no note."""


@dataclass(frozen=True)
class TextBank:
    """Many encoded texts.

    Attributes:
        texts: the encoded texts.
        index: (N,) int64, the index in ``texts`` of each text in the bank. Both ``index`` and ``lengths`` are on the CPU, where
            the calls of the fusion encoder are planned.
        lengths: (N,) int64, the number of tokens of each text in the bank.
    """

    texts: PackedTexts
    index: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, parts: Sequence[PackedTexts]) -> TextBank:
        """A bank of all texts in ``parts``, in order."""
        texts = PackedTexts.concat(parts)
        return cls(texts, torch.arange(texts.packing.count), texts.packing.lengths.cpu())

    def reordered(self, order: Tensor) -> TextBank:
        """A bank whose text n is text ``order[n]`` of this bank, without copying any states."""
        return TextBank(self.texts, self.index[order], self.lengths[order])

    def select(self, texts: Tensor) -> PackedTexts:
        """Returns the texts with the indices ``texts`` (M,), which are int64 and on the CPU. Attention pads the texts to the
        longest selected text."""
        lengths, index = self.lengths[texts], send(self.index[texts], self.texts.states.device)
        return self.texts.select(index, int(lengths.sum()), int(lengths.max()))


def log_odds(logits: Tensor) -> Tensor:
    """The log-odds (...) that pairs match, from their logits (..., 2) of :func:`score_pairs`. The sigmoid of the log-odds is the
    probability."""
    return logits[..., 1] - logits[..., 0]


def score_pairs(
    fusion: FusionEncoder,
    matching_head: Callable[[Tensor], Tensor],
    images: Concepts,
    texts: Sequence[Tensor],
    bank: TextBank,
    tokens_per_call: int | None = None,
) -> list[Tensor]:
    """Computes the matching logits of images and their candidate texts.

    Args:
        fusion: the fusion encoder.
        matching_head: the head whose class 1 is "matched".
        images: I whole images.
        texts: for each image, the indices of its texts in ``bank`` (int64, on the CPU).
        bank: the encoded texts.
        tokens_per_call: maximum number of tokens per call, including padding; if the texts of an image have more tokens, they are
            split into several calls. If None, the number fits into a CPU's caches or fills a GPU.

    Returns:
        For each image, the logits (M, 2) of the classes "not matched" and "matched" of its M texts, in order and in float32 or
        higher precision.
    """
    keys_values = fusion.project_concepts(images).split([1] * len(texts))

    def score(image: int, candidates: PackedTexts) -> Tensor:
        return at_least_float32(matching_head(fusion.cls(candidates, keys_values[image])))

    return score_each(score, texts, bank, tokens_per_call)


def score_each(
    score: Callable[[int, PackedTexts], Tensor],
    texts: Sequence[Tensor],
    bank: TextBank,
    tokens_per_call: int | None = None,
) -> list[Tensor]:
    """Computes the scores of images and their candidate texts. Texts of similar lengths are scored in the same call.

    Args:
        score: function that maps the index of an image and M texts to their scores, (M,) or (M, C).
        texts, bank, tokens_per_call: see :func:`score_pairs`.

    Returns:
        For each image, the scores of its texts, in order.
    """
    device = bank.texts.states.device
    if tokens_per_call is None:
        tokens_per_call = 1536 if device.type == "cpu" else 16384
    scores = []
    for image, candidates in enumerate(texts):
        parts = list(_similar_lengths(bank.lengths[candidates], tokens_per_call))
        found = torch.cat([score(image, bank.select(candidates[part])) for part in parts])
        scores.append(torch.empty_like(found).index_copy_(0, send(torch.cat(parts), device), found))
    return scores


def _similar_lengths(lengths: Tensor, tokens_per_call: int) -> Iterator[Tensor]:
    """Sorts texts by length, splits them into calls of at most ``tokens_per_call`` tokens including padding, and yields the
    indices of each call's texts."""
    order = lengths.argsort(stable=True)
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * int(lengths[order[end]]) <= tokens_per_call:
            end += 1
        yield order[start:end]
        start = end
