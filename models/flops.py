"""The FLOPs of a training step, counted on the host from sizes alone.

The sizes of a model's parts are read once, into coefficients: multiply-accumulates for each image, token, or pair of a query and
a key (:class:`ModelCost`). The FLOPs of a step are products of these with the counts of its micro-batch, such as the sum of the
lengths of texts.

Counted is the least arithmetic by which the losses and their gradients can be had:

- an image, or a frame of a video, goes through the backbone once, and is projected to keys and values once in each layer;
- texts have their true length, without padding; examples that do not count are left out;
- where only [CLS] is read (matching, boxes, classes), or only masked words in pre-training, the last layer computes the states of
  these query positions, and for the other tokens keys and values alone;
- words are predicted at masked positions only.

A multiply-accumulate is two FLOPs. Matrix products, convolutions and attention count; norms, activations, softmax, lookups, masks
and the optimiser, a few per cent of the time and of no tensor core, do not. A mask within a sequence (causal, or the patches of a
region) saves nothing. No parameter that takes part is frozen. Recomputation to save memory (gradient checkpointing, the backward
pass of fused attention) is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from utils import distributed
from utils.batch import Work

Lengths = npt.NDArray[np.int64]
"""A number for each text: of its tokens, of its query positions, or of the keys that it attends to."""

PER_MAC = 6
"""FLOPs of a multiply-accumulate in a step: two forward, and two for the gradient of each factor."""

PER_INPUT_MAC = 4
"""FLOPs of a multiply-accumulate where one of the factors, such as the pixels, has no gradient."""


def lengths(mask: Tensor, valid: Tensor) -> Lengths:
    """Number of True for each example that counts: ``mask`` (N, L) bool, ``valid`` (N,) bool, both on the host."""
    return np.count_nonzero(mask.numpy()[valid.numpy()], axis=1)


def frames_of(pixels: Tensor) -> int:
    """Images of an example: 1 for images (N, 3, H, W), F for videos (N, F, 3, H, W)."""
    return pixels.shape[1] if pixels.dim() == 5 else 1


def linear_macs(*modules: nn.Module | None) -> int:
    """Multiply-accumulates of a state that goes through all linear layers of ``modules``."""
    parts = (part for module in modules if module is not None for part in module.modules())
    return sum(part.weight.numel() for part in parts if isinstance(part, nn.Linear))


@dataclass(frozen=True)
class VisionCost:
    """Vision encoder. Multiply-accumulates of an image, or a frame: ``embedding`` of its pixels to patches, ``blocks`` of the
    rest. ``patches`` that each has, ``width`` of their states; ``keeps_frames``: a video has the patches of all its frames."""

    embedding: int
    blocks: int
    patches: int
    width: int
    keeps_frames: bool

    @staticmethod
    def of(vision: Any) -> VisionCost:
        """Coefficients of a :class:`models.vision.VisionEncoder`."""
        backbone, video, patches = vision.backbone, vision.config.video, math.prod(vision.grid)
        tokens = patches + backbone.num_prefix_tokens
        attention = len(backbone.blocks) * 2 * tokens**2 * vision.width
        return VisionCost(
            embedding=patches * backbone.patch_embed.proj.weight.numel(),
            blocks=tokens * linear_macs(backbone.blocks) + attention,
            patches=patches,
            width=vision.width,
            keeps_frames=video is not None and video.pooling == "tokens",
        )

    def encode(self, images: int) -> int:
        """FLOPs of encoding images, or frames, to patches."""
        return images * (PER_INPUT_MAC * self.embedding + PER_MAC * self.blocks)

    def pool_regions(self, regions: int) -> int:
        """FLOPs of the mean of each region's patches, whose weights have no gradient."""
        return PER_INPUT_MAC * regions * self.patches * self.width

    def keys(self, frames: int = 1) -> int:
        """Keys of an image, or of a video of so many frames: its patches, and their mean before them."""
        return 1 + self.patches * (frames if self.keeps_frames else 1)


@dataclass(frozen=True)
class BlockCost:
    """Multiply-accumulates of a transformer block, or of several together.

    ``token``: keys and values of the self-attention, for each token. ``query``: all else but attention itself, for each query
    position. ``pair``: for each pair of a query position and a token that it attends to. ``cross_query`` and ``cross_pair``: the
    same of the cross-attention. ``memory``: its keys and values, for each state that is attended to.
    """

    token: int = 0
    query: int = 0
    pair: int = 0
    cross_query: int = 0
    cross_pair: int = 0
    memory: int = 0

    @staticmethod
    def of(blocks: Iterable[Any]) -> BlockCost:
        """The sum over ``blocks``, each with the names of BERT's layer in Hugging Face's library, and with a cross-attention or
        None."""
        total = BlockCost()
        for block in blocks:
            attention, cross = block.attention, block.crossattention
            total += BlockCost(
                token=linear_macs(attention.self.key, attention.self.value),
                query=linear_macs(attention.self.query, attention.output, block.intermediate, block.output),
                pair=2 * attention.self.query.out_features,
            )
            if cross is not None:
                total += BlockCost(
                    cross_query=linear_macs(cross.self.query, cross.output),
                    cross_pair=2 * cross.self.query.out_features,
                    memory=linear_macs(cross.self.key, cross.self.value),
                )
        return total

    def __add__(self, other: BlockCost) -> BlockCost:
        return BlockCost(
            *(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def macs(self, tokens: Lengths, queries: Lengths, keys: Lengths | int | None) -> int:
        """Texts of ``tokens``, of which ``queries`` are computed; ``keys`` of the cross-attention, None: it is skipped."""
        count = int(queries.sum())
        total = self.token * int(tokens.sum()) + self.query * count + self.pair * int((queries * tokens).sum())
        if keys is not None:
            total += self.cross_query * count + self.cross_pair * int((queries * keys).sum())
        return total


@dataclass(frozen=True)
class StackCost:
    """A stack of transformer blocks: the ``last`` one, which may compute a part of the positions alone, and the ``inner`` ones
    before it. ``projection``: multiply-accumulates of each state that comes out, on its way to another width or to words."""

    inner: BlockCost
    last: BlockCost
    projection: int = 0

    @staticmethod
    def of(stack: Any, projection: int = 0) -> StackCost:
        """Coefficients of a :class:`models.blocks.BlockStack`."""
        *inner, last = stack.layer
        return StackCost(BlockCost.of(inner), BlockCost.of([last]), projection)

    @cached_property
    def blocks(self) -> BlockCost:
        """All blocks together."""
        return self.inner + self.last

    def run(self, tokens: Lengths, keys: Lengths | int | None = None, queries: Lengths | int | None = None) -> int:
        """FLOPs of texts through all blocks.

        Args:
            tokens: of each text.
            keys: of the cross-attention for each text, or for all alike; None: it is skipped.
            queries: how many states of each text the last block computes; None: all.
        """
        if queries is None:
            return PER_MAC * (self.blocks.macs(tokens, tokens, keys) + self.projection * int(tokens.sum()))
        queries = np.broadcast_to(queries, tokens.shape)
        macs = self.inner.macs(tokens, tokens, keys) + self.last.macs(tokens, queries, keys)
        return PER_MAC * (macs + self.projection * int(queries.sum()))

    def project(self, states: int) -> int:
        """Keys and values of the cross-attention, in every block, of so many states that are attended to."""
        return PER_MAC * states * self.blocks.memory


@dataclass(frozen=True)
class UnknownCost:
    """A text encoder whose inside is not known here."""

    def run(self, tokens: Lengths) -> float:
        return math.nan


@dataclass(frozen=True)
class ContrastiveCost:
    """Projections to the joint space, multiply-accumulates of each state, and the ``width`` of that space."""

    image: int
    text: int
    width: int

    @staticmethod
    def of(head: Any) -> ContrastiveCost:
        """Coefficients of a :class:`models.contrastive.ContrastiveHead`."""
        return ContrastiveCost(
            linear_macs(head.vision_proj), linear_macs(head.text_proj), width=head.text_proj.out_features
        )

    def run(self, images: int, texts: int) -> int:
        """Embeddings, and the similarities of this rank's examples with those of all ranks, both ways."""
        pairs = (images + texts) // 2
        similarity = 2 * pairs * pairs * distributed.world_size() * self.width
        return PER_MAC * (images * self.image + texts * self.text + similarity)


NO_HEADS = ("vision", "text", "fusion", "decoder", "contrastive")
"""Parts of a model that are no heads on single states."""


@dataclass(frozen=True)
class ModelCost:
    """Coefficients of a model's parts. ``heads``: multiply-accumulates of each state that goes through a head, by the head's name
    in the model; of a word head, to logits of all words."""

    vision: VisionCost
    text: StackCost | UnknownCost
    fusion: StackCost
    heads: dict[str, int]
    contrastive: ContrastiveCost | None = None

    @staticmethod
    def of(model: Any) -> ModelCost:
        """Coefficients of a :class:`models.xvlm.XVLM`."""
        text, contrastive = model.text, getattr(model, "contrastive", None)
        others = ((name, child) for name, child in model.named_children() if name not in NO_HEADS)
        return ModelCost(
            vision=VisionCost.of(model.vision),
            text=StackCost.of(text.encoder, linear_macs(text.projection))
            if hasattr(text, "encoder")
            else UnknownCost(),
            fusion=StackCost.of(model.fusion),
            heads={name: head_macs(child, text.word_embeddings) for name, child in others},
            contrastive=None if contrastive is None else ContrastiveCost.of(contrastive),
        )

    def head(self, name: str, states: int) -> int:
        """FLOPs of so many states through a head."""
        return PER_MAC * states * self.heads[name]

    def align(self, images: int, texts: int) -> int:
        """The contrastive loss, see :meth:`ContrastiveCost.run`."""
        assert self.contrastive is not None, "the model has no contrastive head"
        return self.contrastive.run(images, texts)

    def match(self, tokens: Lengths, keys: Lengths | int) -> int:
        """Matching: each text with its image, a hard negative text with the image, the text with a hard negative image. The
        negative's length is not known beforehand; it counts as that of the matched text."""
        return 3 * (self.fusion.run(tokens, keys, queries=1) + self.head("matching_head", len(tokens)))

    def fuse_pairs(self, tokens: Lengths, frames: int = 1, queries: Lengths | int | None = 1) -> Work:
        """Work of examples that each fuse one text with one image, or with a video of so many frames; ``queries``: see
        :meth:`StackCost.run`."""
        examples, keys = len(tokens), self.vision.keys(frames)
        flops = self.vision.encode(examples * frames) + self.text.run(tokens)
        flops += self.fusion.project(examples * keys) + self.fusion.run(tokens, keys, queries)
        return Work(examples, examples * frames, int(tokens.sum()), flops)


def head_macs(head: nn.Module, words: Tensor) -> int:
    """Multiply-accumulates of a state through a head. A word head without a table of its own reads the ``words`` (V, D)."""
    tied = hasattr(head, "decoder") and head.decoder is None
    return linear_macs(head) + (words.numel() if tied else 0)
