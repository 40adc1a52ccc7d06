"""Re-ranking: matching scores of many texts with few images (A.1), at the least cost.

An image's keys and values are projected once, all texts that look at it are joined along the query axis, texts keep their
true lengths, and the last layer computes [CLS] alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.encoded import Concepts, Encoded
from models.fusion import FusionEncoder, ImageMemory, LayerMemory, Look
from models.losses import at_least_float32


@dataclass(frozen=True)
class TextBank:
    """States of many texts without padding: ``states`` (all tokens, D); text t has ``lengths[t]`` rows from ``starts[t]``.

    Lengths and starts are on the CPU, where the calls are planned.
    """

    states: Tensor
    starts: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, parts: Sequence[Encoded]) -> TextBank:
        """Pack padded texts, in order."""
        lengths = torch.cat([part.mask.sum(dim=1).cpu() for part in parts])
        packed = torch.cat([part.states[part.mask] for part in parts])
        return cls(packed, lengths.cumsum(dim=0) - lengths, lengths)

    def reordered(self, order: Tensor) -> TextBank:
        """The bank whose text t is this one's ``order[t]``; nothing is copied."""
        return TextBank(self.states, self.starts[order], self.lengths[order])

    def rows(self, texts: Tensor) -> Encoded:
        """The texts named by ``texts`` (M,), padded to the longest of them (with the state of their own first token)."""
        lengths = self.lengths[texts]
        place = torch.arange(int(lengths.max()))
        mask = place < lengths.unsqueeze(1)
        index = (self.starts[texts].unsqueeze(1) + place * mask).to(self.states.device)
        states = self.states.index_select(0, index.flatten()).view(*index.shape, -1)
        return Encoded(states, mask.to(self.states.device))


def score_pairs(
    fusion: FusionEncoder,
    matching_head: nn.Module,
    images: Concepts,
    texts: Sequence[Tensor],
    bank: TextBank,
    tokens_per_call: int | None = None,
) -> list[Tensor]:
    """The matching logit of each image with each of its texts.

    Args:
        images: B whole images.
        texts: for each image, which texts of ``bank`` (int64, on the CPU).
        tokens_per_call: texts of one image beyond so many tokens, padding counted, go through in several calls; None: what
            a CPU's caches hold, or on a GPU enough to fill it.

    Returns:
        For each image the logits of class "matched", at least float32, in the order of its texts.
    """
    if tokens_per_call is None:
        tokens_per_call = 1536 if bank.states.device.type == "cpu" else 16384
    memory = fusion.remember(images)
    scores = []
    for image, wanted in enumerate(texts):
        found = at_least_float32(bank.states.new_empty(len(wanted)))
        alone = _one_image(memory, image)
        for part in _similar_lengths(bank.lengths[wanted], tokens_per_call):
            rows = torch.zeros(len(part), dtype=torch.int64, device=found.device)
            fused = fusion(bank.rows(wanted[part]), Look(alone, rows, len(part)), cls_only=True)
            found[part.to(found.device)] = at_least_float32(matching_head(fused.cls)[:, 1])
        scores.append(found)
    return scores


def _one_image(memory: ImageMemory, image: int) -> ImageMemory:
    layers = tuple(LayerMemory((k[image : image + 1], v[image : image + 1]), None) for k, v in _patches(memory))
    return ImageMemory(layers, None, None)


def _patches(memory: ImageMemory) -> Iterator[tuple[Tensor, Tensor]]:
    for layer in memory.layers:
        assert layer.concepts is None, "re-ranking looks at whole images"
        yield layer.patches


def _similar_lengths(lengths: Tensor, tokens_per_call: int) -> Iterator[Tensor]:
    """Indexes of texts, each once, shortest first, in parts of equal lengths where they are many, of similar ones else."""
    order = lengths.argsort(stable=True)
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * int(lengths[order[end]]) <= tokens_per_call:
            end += 1
        yield order[start:end]
        start = end
