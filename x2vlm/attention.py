"""Where in an image a model looks for each word of a text: gradient-weighted cross-attention.

The attention from a word to the patches, in one block of the fusion encoder, is weighted by its gradient, that is, by how much
the matching score would rise if the attention rose. Heads whose attention does not affect the score therefore contribute little
(as in Grad-CAM; for vision-language fusion: Li et al. 2021, ALBEF, section 6.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.core.blocks import Attention
from models.core.losses import at_least_float32
from models.core.vision import Concepts
from models.inference.reranking import AligningModel
from tasks.inference import evaluating
from utils.errors import UserError
from x2vlm.base import LoadedModel
from x2vlm.inputs import Image


@dataclass(frozen=True)
class WordMap:
    """A map of where in an image a model looks for a ``word``: nonnegative ``weights`` (rows, columns) float32 of the patches."""

    word: str
    weights: np.ndarray


def word_maps(model: LoadedModel, image: Image, text: str, layer: int | None = None) -> list[WordMap]:
    """Returns an attention map over the image for each word of a text, averaged over the tokens of the word.

    Args:
        model: a model with a matching head.
        image: an image.
        text: a text.
        layer: index of a block of the fusion encoder; if None, the last block in the first half. The last block of the encoder
            has no word maps, because the score depends only on the attention of its [CLS] token.

    Raises:
        UserError: the text has no word, the model is a video model, or no word maps are available for the layer.
    """
    network, view = model.network, model.read(image)
    assert isinstance(network, AligningModel)
    if view.pixels.dim() == 4:
        raise UserError(f"{view.name} is a video", where="explain", remedy="maps are available only for images")
    last = len(network.fusion.blocks) - 1
    index = max(0, (last + 1) // 2 - 1) if layer is None else layer
    if not 0 <= index < last:
        available = f"0 to {last - 1}" if last else "none: the fusion encoder has only one block"
        raise UserError(
            f"layer {index}: word maps exist only for the fusion blocks before the last ({available})", where="explain"
        )
    # Gradients of attention underflow in 16 bits, and a single image takes little time in 32 bits.
    with evaluating(network, "fp32"), torch.enable_grad():
        concepts = network.vision(model.pixels([view]))
        weights = _weighted_attention(model, network, concepts, text, index)
    grid = network.vision.grid if concepts.grids is None else concepts.grids[0]
    maps = (
        weights.detach()[:, 1 : 1 + math.prod(grid)].unflatten(1, grid).cpu().numpy()
    )  # the first key is the image's mean
    return [
        WordMap(word, maps[start + 1 : end + 1].mean(axis=0))  # [CLS] is the first token
        for word, start, end in _words(model, text, len(maps) - 2)
    ]


def _weighted_attention(model: LoadedModel, network: AligningModel, image: Concepts, text: str, layer: int) -> Tensor:
    """Returns the attention (L, K) of the tokens to the keys, multiplied by the positive part of its gradient and averaged over
    heads."""
    block = network.fusion.blocks[layer]
    assert block.crossattention is not None
    texts, keys_values = model.encoded([text]), network.fusion.project_concepts(image)
    with _recording(block.crossattention) as recorded:
        fused = network.fusion.tokens(texts, keys_values)
    logits = at_least_float32(network.matching_head(fused.cls))
    (attention,) = recorded
    (gradient,) = torch.autograd.grad(logits[0, 1], attention)
    return (attention * gradient.clamp(min=0)).mean(dim=1)[0]


@contextmanager
def _recording(attention: Attention) -> Iterator[list[Tensor]]:
    """Context manager that computes attention explicitly and records its weights (N, H, L, K)."""
    recorded: list[Tensor] = []

    def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
        weights = (scores if bias is None else scores + bias).softmax(dim=-1)
        recorded.append(weights)
        return (weights @ values).transpose(1, 2).flatten(2)

    vars(attention)["attend"] = attend
    try:
        yield recorded
    finally:
        del vars(attention)["attend"]


def _words(model: LoadedModel, text: str, count: int) -> list[tuple[str, int, int]]:
    """Returns the words in the first ``count`` tokens of a text, each with the index of its first token and the index after its
    last token."""
    cleaned = model.cleaned(text)
    ids, continues = model.text.pieces(cleaned)
    starts = [index for index, continues_word in enumerate(continues[:count]) if not continues_word]
    ends = [*starts[1:], min(count, len(ids))]
    return [(_decoded(model, ids[start:end]), start, end) for start, end in zip(starts, ends, strict=True)]


def _decoded(model: LoadedModel, ids: Sequence[int]) -> str:
    return str(model.tokenizer.decode(list(ids))).strip()
