"""Re-ranking: matching scores of many texts with few images (A.1).

To save work, an image's keys and values are projected once for all its texts, the texts are packed without padding, and the last
block computes [CLS] alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.fusion import FusionEncoder, FusionPass
from models.losses import at_least_float32
from models.packing import PackedTexts
from models.vision import Concepts
from utils.accelerator import send

RerankingScore = Literal["matching", "sum"]
RERANKING_SCORE = (
    "what re-ranked pairs are ordered by. matching: the logit of the matching head (published); sum: its log-odds plus the "
    "cosine divided by the temperature"
)
"""Description of the key in configs."""
RULES: dict[RerankingScore, str] = {
    "matching": "",
    "sum": " by the matching head's log-odds plus the cosine over the temperature",
}
"""How candidates are ordered, for tables; nothing of the published way."""


@dataclass(frozen=True)
class TextBank:
    """Many encoded texts: text t is number ``numbers[t]`` of ``texts`` and has ``lengths[t]`` tokens.

    ``numbers`` and ``lengths`` are on the CPU, which plans the calls.
    """

    texts: PackedTexts
    numbers: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, parts: Sequence[PackedTexts]) -> TextBank:
        """The bank of all texts of ``parts``, in order."""
        texts = PackedTexts.concat(parts)
        return cls(texts, torch.arange(texts.packing.count), texts.packing.lengths.cpu())

    def reordered(self, order: Tensor) -> TextBank:
        """The bank whose text t is this one's ``order[t]``; nothing is copied."""
        return TextBank(self.texts, self.numbers[order], self.lengths[order])

    def select(self, texts: Tensor) -> PackedTexts:
        """Texts ``texts`` (M,) of the bank, int64 on the CPU; attention pads them to the longest of them."""
        lengths, numbers = self.lengths[texts], send(self.numbers[texts], self.texts.states.device)
        return self.texts.select(numbers, int(lengths.sum()), int(lengths.max()))


class Margin(nn.Module):
    """The matching head as one logit, that of "matched" less that of "not": its sigmoid is the probability."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, cls: Tensor) -> Tensor:
        """(N, D) -> (N, 2), of which :func:`score_pairs` reads the second column."""
        logits = at_least_float32(self.head(cls))
        margin = logits[:, 1] - logits[:, 0]
        return torch.stack([-margin, margin], dim=1)


def score_pairs(
    fusion: FusionEncoder,
    matching_head: nn.Module,
    images: Concepts,
    texts: Sequence[Tensor],
    bank: TextBank,
    tokens_per_call: int | None = None,
) -> list[Tensor]:
    """Compute the matching logits of images with their candidate texts.

    Args:
        fusion: the fusion encoder.
        matching_head: the head whose class 1 is "matched".
        images: B whole images.
        texts: per image, the numbers of its texts in ``bank`` (int64, on the CPU).
        bank: the encoded texts.
        tokens_per_call: texts of one image with more tokens than this, padding counted, are split into several calls; None: as
            many as a CPU's caches hold, or enough to fill a GPU.

    Returns:
        Per image the logits of class "matched", at least float32, in the order of its texts.
    """
    memories = fusion.concept_memory(images).split([1] * len(texts))

    def score(image: int, candidates: PackedTexts) -> Tensor:
        (cls,) = fusion.fuse([FusionPass.cls(candidates, memories[image])])
        return at_least_float32(matching_head(cls)[:, 1])

    return score_each(score, texts, bank, tokens_per_call)


def score_each(
    score: Callable[[int, PackedTexts], Tensor],
    texts: Sequence[Tensor],
    bank: TextBank,
    tokens_per_call: int | None = None,
) -> list[Tensor]:
    """Compute scores of images with their candidate texts, of similar lengths in a call.

    Args:
        score: from the number of an image and M texts to their scores (M,), at least float32.
        texts: see :func:`score_pairs`, which returns the same.
        bank: see there.
        tokens_per_call: see there.
    """
    device = bank.texts.states.device
    if tokens_per_call is None:
        tokens_per_call = 1536 if device.type == "cpu" else 16384
    scores = []
    for image, candidates in enumerate(texts):
        of_image = at_least_float32(bank.texts.states.new_empty(len(candidates)))
        for part in _similar_lengths(bank.lengths[candidates], tokens_per_call):
            of_image[send(part, device)] = score(image, bank.select(candidates[part]))
        scores.append(of_image)
    return scores


def _similar_lengths(lengths: Tensor, tokens_per_call: int) -> Iterator[Tensor]:
    """Split texts, sorted by length, into calls of at most ``tokens_per_call`` tokens, padding counted; yield their indices."""
    order = lengths.argsort(stable=True)
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * int(lengths[order[end]]) <= tokens_per_call:
            end += 1
        yield order[start:end]
        start = end
