"""The floating-point operations of a step, counted from sizes alone: no tensor is looked at but masks, on the host.

What is counted is the least work by which the losses and their gradients can be had:

- a picture, or a frame of a video, goes through the backbone once, and is projected to keys and values once a layer;
- texts have their true length, without padding; rows that do not count are left out;
- where only [CLS] is wanted (matching, boxes, classes), or only masked words are, the last layer computes nothing else but keys
  and values;
- words are predicted at masked positions only.

A multiply-accumulate is two operations. Matrix products, convolutions and attention count; norms, activations, softmax,
lookups, masks and the optimiser, some percent of the time and of no tensor core, do not. A mask within a sequence (causal, or
the patches of a region) saves nothing. Backward costs twice the forward pass: a product as large for each of the two factors,
but for the patch embedding and the mean of a region's patches, which have one factor without gradient. No parameter that
takes part is frozen. What is computed twice to save memory (gradient checkpointing, the recomputation inside fused attention)
is not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from models.align import AligningModel
from models.blocks import Block as Layer
from models.blocks import BlockStack as LayerStack
from models.contrastive import ContrastiveHead
from models.fusion import FusionEncoder
from models.heads import WordHead
from models.hub_text import HubTextEncoder
from models.text import TextEncoder
from models.vision import VisionEncoder
from models.xvlm import XVLM
from utils import distributed
from utils.batch import Work

Lengths = npt.NDArray[np.int64]
"""A number for each text: of its tokens, or of the keys that it looks at."""


@dataclass(frozen=True)
class Flops:
    """Operations of a part, forward and backward."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.forward * times, self.backward * times)


def products(macs: float, factors: int = 2) -> Flops:
    """Of ``macs`` multiply-accumulates; ``factors`` of the two have a gradient."""
    return Flops(2 * macs, 2 * macs * factors)


def weights(*modules: nn.Module | None) -> int:
    """Multiply-accumulates for each state that goes through all linear layers of ``modules``."""
    linear = (part for module in modules if module is not None for part in module.modules())
    return sum(part.weight.numel() for part in linear if isinstance(part, nn.Linear))


def lengths(mask: Tensor, valid: Tensor) -> Lengths:
    """Tokens of the texts that count: ``mask`` (N, L) bool, ``valid`` (N,) bool, both on the host."""
    return mask[valid].sum(dim=1).numpy()


def frames_of(pixels: Tensor) -> int:
    """Pictures of a row: 1 of images (N, 3, H, W), F of videos (N, F, 3, H, W)."""
    return pixels.shape[1] if pixels.dim() == 5 else 1


def see(vision: VisionEncoder, pictures: int) -> Flops:
    """Pictures, or frames, to patches."""
    backbone, (rows, columns) = vision.backbone, vision.grid
    tokens = rows * columns + backbone.num_prefix_tokens
    embedding = products(pictures * rows * columns * backbone.patch_embed.proj.weight.numel(), factors=1)
    attention = len(backbone.blocks) * 2 * tokens**2 * vision.width
    return embedding + products(pictures * (tokens * weights(backbone.blocks) + attention))


def seen_keys(vision: VisionEncoder, frames: int = 1) -> int:
    """Keys of an image, or of a video of so many frames: its patches, and its concept token before them."""
    video = vision.config.video
    kept = frames if video is not None and video.pooling == "tokens" else 1
    return 1 + kept * vision.grid[0] * vision.grid[1]


def read(text: TextEncoder | HubTextEncoder, tokens: Lengths) -> Flops:
    """Texts to states. NaN for encoders that are not our own, whose inside is not known here."""
    if isinstance(text, HubTextEncoder):
        return Flops(math.nan, math.nan)
    layers = (_layer(layer, tokens, tokens, None) for layer in _layers(text.encoder))
    return sum(layers, products(int(tokens.sum()) * weights(text.projection)))


def remember(fusion: FusionEncoder, states: int) -> Flops:
    """Keys and values, in every layer, of so many states that are looked at."""
    project = [layer.crossattention.self for layer in _layers(fusion) if layer.crossattention is not None]
    return products(states * sum(weights(part.key, part.value) for part in project))


def fuse(fusion: FusionEncoder, tokens: Lengths, keys: Lengths | None, wanted: Lengths | int | None = None) -> Flops:
    """Texts through layers in which each looks at its ``keys`` (None: the cross-attention is skipped). ``wanted``: how many
    states of each, None: all; the last layer computes no others."""
    done, last = Flops(), len(fusion.layer) - 1
    for index, layer in enumerate(_layers(fusion)):
        asking = tokens if wanted is None or index < last else np.broadcast_to(wanted, tokens.shape)
        done += _layer(layer, tokens, asking, keys)
    return done


def _layers(stack: LayerStack | FusionEncoder) -> list[Layer]:
    return cast("list[Layer]", list(stack.layer))


def _layer(layer: Layer, tokens: Lengths, asking: Lengths, keys: Lengths | None) -> Flops:
    """``asking``: how many states of each text are computed; all of its ``tokens`` are attended to."""
    own, cross = layer.attention, layer.crossattention if keys is not None else None
    answering = int(tokens.sum()) * weights(own.self.key, own.self.value)
    asked = weights(own.self.query, own.output, layer.intermediate, layer.output)
    attention = 2 * int((asking * tokens).sum()) * own.self.query.out_features
    if cross is not None and keys is not None:
        asked += weights(cross.self.query, cross.output)
        attention += 2 * int((asking * keys).sum()) * cross.self.query.out_features
    return products(answering + int(asking.sum()) * asked + attention)


def head(module: nn.Module, rows: int) -> Flops:
    """A head of linear layers on so many states."""
    return products(rows * weights(module))


def words(module: WordHead, table: Tensor, places: int) -> Flops:
    """Logits over the vocabulary at so many places; ``table``: the (V, D) words, where the head has none of its own."""
    own = 0 if module.decoder is not None else table.numel()
    return products(places * (weights(module) + own))


def contrast(module: ContrastiveHead, images: int, texts: int) -> Flops:
    """Embeddings, and the similarities of this rank's rows with those of all ranks, both ways. Negatives are drawn from the
    same similarities."""
    pairs = (images + texts) // 2
    width = module.text_proj.out_features
    similarity = 2 * pairs * pairs * distributed.world_size() * width
    return products(images * weights(module.vision_proj) + texts * weights(module.text_proj) + similarity)


def match(model: AligningModel, tokens: Lengths, keys: Lengths) -> Flops:
    """Each text with its image, a wrong text with the image, and the text with a wrong image. Which wrong text, and of what
    length, is drawn in the step: it counts as long as the right one, which is so on average."""
    return fuse(model.fusion, tokens, keys, wanted=1) * 3 + head(model.matching_head, 3 * len(tokens))


def look_once(
    model: XVLM, tokens: Lengths, frames: int, onto: nn.Module | None, wanted: Lengths | int | None = 1
) -> Work:
    """Rows that each fuse one text with one image or video; ``onto``: a head on its [CLS]; ``wanted``: see :func:`fuse`."""
    rows, keys = len(tokens), np.full_like(tokens, seen_keys(model.vision, frames))
    done = see(model.vision, rows * frames) + read(model.text, tokens) + remember(model.fusion, int(keys.sum()))
    done += fuse(model.fusion, tokens, keys, wanted)
    done += Flops() if onto is None else head(onto, rows)
    return Work(rows, rows * frames, int(tokens.sum()), done.total)
