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

A multiply-accumulate is two FLOPs, and two more for the gradient of each of its factors that has one (:func:`step_flops`). So a
frozen encoder counts its forward pass alone; a frozen fusion, through which gradients pass to others, all but the gradients of
its weights; and a layer that reads the states of a frozen encoder has no gradient for them. Matrix products, convolutions and
attention count; norms, activations, softmax, lookups, masks and the optimiser, a few per cent of the time and of no tensor core,
do not. A mask within a sequence (causal, or the patches of a region) saves nothing. Recomputation to save memory (gradient
checkpointing, the backward pass of fused attention) is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from optim.lora import UP
from utils import distributed
from utils.batch import ClassifiedBatch, QuestionBatch, Work

Lengths = npt.NDArray[np.int64]
"""A number for each text: of its tokens, of its query positions, or of the keys that it attends to."""


def step_flops(macs: int, *gradients: bool) -> int:
    """FLOPs of multiply-accumulates in a step. ``gradients``: whether each factor has one; factors without may be left out."""
    return 2 * macs * (1 + sum(gradients))


def trains(module: nn.Module) -> bool:
    """Whether a part of a model trains; its parts are frozen whole."""
    return any(parameter.requires_grad for parameter in module.parameters())


def lengths(mask: Tensor, valid: Tensor) -> Lengths:
    """Number of True for each example that counts: ``mask`` (N, L) bool, ``valid`` (N,) bool, both on the host."""
    return np.count_nonzero(mask.numpy()[valid.numpy()], axis=1)


def frames_of(pixels: Tensor) -> int:
    """Images of an example: 1 for images (N, 3, H, W), F for videos (N, F, 3, H, W)."""
    return pixels.shape[1] if pixels.dim() == 5 else 1


def images_of(batch: QuestionBatch | ClassifiedBatch) -> int:
    """Number of images or videos in a batch, counting only valid questions."""
    if batch.image_of_question is None:
        return int(batch.valid.sum())
    return len(batch.image_of_question[batch.valid].unique())


def linear_macs(*modules: nn.Module | None) -> int:
    """Multiply-accumulates of a state that goes through all linear layers of ``modules``."""
    parts = (part for module in modules if module is not None for part in module.modules())
    return sum(part.weight.numel() for part in parts if isinstance(part, nn.Linear))


def linear_flops(states: bool, *modules: nn.Module | None) -> int:
    """FLOPs in a step of a state that goes through all linear layers of ``modules``, with the gradients of their weights where
    they train. ``states``: whether the states that come in have gradients; those between the two layers of an adapter do."""
    total = 0
    for module in modules:
        for name, part in () if module is None else module.named_modules():
            if isinstance(part, nn.Linear):
                enters = states or f"{name}.weight".endswith(UP)
                total += step_flops(part.weight.numel(), part.weight.requires_grad, enters)
    return total


@dataclass(frozen=True)
class VisionCost:
    """Vision encoder. FLOPs in a step of an image, or a frame: ``embedding`` of its pixels to patches, ``blocks`` of the rest.
    ``patches`` that each has, ``width`` of their states; ``keeps_frames``: a video has the patches of all its frames.
    ``trains``: it is not frozen."""

    embedding: int
    blocks: int
    patches: int
    width: int
    keeps_frames: bool
    trains: bool

    @staticmethod
    def of(vision: Any) -> VisionCost:
        """Coefficients of a :class:`models.vision.VisionEncoder`."""
        backbone, video, patches = vision.backbone, vision.config.video, math.prod(vision.grid)
        tokens = patches + backbone.num_prefix_tokens
        embeds = trains(backbone.patch_embed)
        entering, linear, attention = embeds, 0, 0
        for block in backbone.blocks:
            later = entering or trains(block)
            # Where the normed states that enter have no gradient, the first products have none for them.
            normed = entering or trains(block.norm1)
            entry = [getattr(block.attn, name, None) for name in ("qkv", "q_proj", "k_proj", "v_proj")]
            linear += linear_flops(later, block) + linear_flops(normed, *entry) - linear_flops(later, *entry)
            attention += step_flops(2 * tokens**2 * vision.width, later, later)
            entering = later
        return VisionCost(
            # Pixels have no gradient.
            embedding=step_flops(patches * backbone.patch_embed.proj.weight.numel(), embeds),
            blocks=tokens * linear + attention,
            patches=patches,
            width=vision.width,
            keeps_frames=video is not None and video.pooling == "tokens",
            trains=trains(vision),
        )

    def encode(self, images: int) -> int:
        """FLOPs of encoding images, or frames, to patches."""
        return images * (self.embedding + self.blocks)

    def pool_regions(self, regions: int) -> int:
        """FLOPs of the mean of each region's patches, whose weights have no gradient."""
        return step_flops(regions * self.patches * self.width, self.trains)

    def keys(self, frames: int = 1) -> int:
        """Keys of an image, or of a video of so many frames: its patches, and their mean before them."""
        return 1 + self.patches * (frames if self.keeps_frames else 1)


@dataclass(frozen=True)
class BlockCost:
    """FLOPs of a transformer block in a step, or of several together.

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
    def of(block: Any, weights: bool, states: bool, memory: bool | None) -> BlockCost:
        """A block with the names of BERT's layer in Hugging Face's library.

        Args:
            block: has a cross-attention or None.
            weights: whether the block trains.
            states: whether the states that come in have gradients.
            memory: whether the states that are attended to have; None: the cross-attention is skipped.
        """
        attention, cross = block.attention, block.crossattention
        after = states or weights  # whether queries, keys, values, and all that is made of them, have gradients
        entry = attention.self
        cost = BlockCost(
            token=linear_flops(states, entry.key, entry.value),
            query=linear_flops(states, entry.query) + linear_flops(after, attention.output),
            pair=step_flops(2 * entry.query.out_features, after, after),
        )
        if cross is not None and memory is not None:
            keys, before = memory or weights, after
            after = before or keys
            query, width = linear_flops(before, cross.self.query), cross.self.query.out_features
            cost += BlockCost(
                cross_query=query + linear_flops(after, cross.output),
                # Scores have queries and keys as factors, attended values have weights of attention and values.
                cross_pair=step_flops(width, before, keys) + step_flops(width, after, keys),
                memory=linear_flops(memory, cross.self.key, cross.self.value),
            )
        return cost + BlockCost(query=linear_flops(after, block.intermediate, block.output))

    def __add__(self, other: BlockCost) -> BlockCost:
        return BlockCost(
            *(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def flops(self, tokens: Lengths, queries: Lengths, keys: Lengths | int | None) -> int:
        """Texts of ``tokens``, of which ``queries`` are computed; ``keys`` of the cross-attention, None: it is skipped."""
        count = int(queries.sum())
        total = self.token * int(tokens.sum()) + self.query * count + self.pair * int((queries * tokens).sum())
        if keys is not None:
            total += self.cross_query * count + self.cross_pair * int((queries * keys).sum())
        return total


@dataclass(frozen=True)
class StackCost:
    """A stack of transformer blocks, of which the last one may compute a part of the positions alone.

    ``blocks``: of the stack. ``weights``, ``states`` and ``memory``: of the first block, see :meth:`BlockCost.of`.
    ``projection``: FLOPs of each state that comes out, on its way to another width or to words.
    """

    blocks: Sequence[Any]
    weights: bool
    states: bool
    memory: bool
    projection: int = 0

    @staticmethod
    def of(stack: Any, states: bool, memory: bool = False, projection: int = 0) -> StackCost:
        """Coefficients of a :class:`models.blocks.BlockStack`."""
        return StackCost(tuple(stack.layer), trains(stack), states, memory, projection)

    @property
    def has_gradients(self) -> bool:
        """Whether the states that come out have gradients."""
        return self.weights or self.states or self.memory

    @cached_property
    def attending(self) -> tuple[BlockCost, BlockCost]:
        """All blocks before the last one together, and the last one, with cross-attention."""
        return self._inner_and_last(self.memory)

    @cached_property
    def alone(self) -> tuple[BlockCost, BlockCost]:
        """The same without cross-attention."""
        return self._inner_and_last(None)

    def _inner_and_last(self, memory: bool | None) -> tuple[BlockCost, BlockCost]:
        later = self.states or self.weights or bool(memory)  # of the states between blocks
        states = [self.states, *([later] * (len(self.blocks) - 1))]
        costs = [
            BlockCost.of(block, self.weights, each, memory) for block, each in zip(self.blocks, states, strict=True)
        ]
        return sum(costs[:-1], BlockCost()), costs[-1]

    def run(self, tokens: Lengths, keys: Lengths | int | None = None, queries: Lengths | int | None = None) -> int:
        """FLOPs of texts through all blocks.

        Args:
            tokens: of each text.
            keys: of the cross-attention for each text, or for all alike; None: it is skipped.
            queries: how many states of each text the last block computes; None: all.
        """
        inner, last = self.alone if keys is None else self.attending
        if queries is None:
            return (inner + last).flops(tokens, tokens, keys) + self.projection * int(tokens.sum())
        queries = np.broadcast_to(queries, tokens.shape)
        flops = inner.flops(tokens, tokens, keys) + last.flops(tokens, queries, keys)
        return flops + self.projection * int(queries.sum())

    def project(self, states: int) -> int:
        """Keys and values of the cross-attention, in every block, of so many states that are attended to."""
        return states * sum(part.memory for part in self.attending)


@dataclass(frozen=True)
class UnknownCost:
    """A text encoder whose inside is not known here."""

    def run(self, tokens: Lengths) -> float:
        return math.nan


@dataclass(frozen=True)
class ContrastiveCost:
    """Projections to the joint space, FLOPs of each state, and the ``width`` of that space."""

    image: int
    text: int
    width: int

    @staticmethod
    def of(head: Any, images: bool, texts: bool) -> ContrastiveCost:
        """Coefficients of a :class:`models.contrastive.ContrastiveHead`; ``images``, ``texts``: whether their states have
        gradients."""
        return ContrastiveCost(
            step_flops(linear_macs(head.vision_proj), True, images),
            step_flops(linear_macs(head.text_proj), True, texts),
            width=head.text_proj.out_features,
        )

    def run(self, images: int, texts: int) -> int:
        """Embeddings, and the similarities of this rank's examples with those of all ranks, both ways."""
        pairs = (images + texts) // 2
        similarity = 2 * pairs * pairs * distributed.world_size() * self.width
        return images * self.image + texts * self.text + step_flops(similarity, True, True)


@dataclass(frozen=True)
class HeadCost:
    """A head on single states: multiply-accumulates of its first layer (``entry``), of the others (``rest``), and of a word table
    that it reads and that may be frozen (``words``)."""

    entry: int
    rest: int
    words: int
    words_train: bool

    @staticmethod
    def of(head: nn.Module, words: Tensor) -> HeadCost:
        """Coefficients of a head. A word head without a table of its own reads the ``words`` (V, D)."""
        entry, *rest = [linear_macs(part) for part in head.modules() if isinstance(part, nn.Linear)] or [0]
        tied = hasattr(head, "decoder") and head.decoder is None
        return HeadCost(entry, sum(rest), words.numel() if tied else 0, words.requires_grad)

    def flops(self, states: bool) -> int:
        """FLOPs of a state in a step; ``states``: whether it has a gradient."""
        entry, rest = step_flops(self.entry, True, states), step_flops(self.rest, True, True)
        return entry + rest + step_flops(self.words, self.words_train, True)


NO_HEADS = ("vision", "text", "fusion", "decoder", "contrastive")
"""Parts of a model that are no heads on single states."""


@dataclass(frozen=True)
class ModelCost:
    """Coefficients of a model's parts. ``heads``: by their names in the model; of a word head, to logits of all words.
    ``texts_train``: the states of texts have gradients."""

    vision: VisionCost
    text: StackCost | UnknownCost
    fusion: StackCost
    heads: dict[str, HeadCost]
    texts_train: bool
    contrastive: ContrastiveCost | None = None

    @staticmethod
    def of(model: Any) -> ModelCost:
        """Coefficients of a :class:`models.xvlm.XVLM`."""
        text, contrastive = model.text, getattr(model, "contrastive", None)
        others = ((name, child) for name, child in model.named_children() if name not in NO_HEADS)
        images_train, texts_train = trains(model.vision), trains(text)
        projection = step_flops(linear_macs(getattr(text, "projection", None)), texts_train, texts_train)
        return ModelCost(
            vision=VisionCost.of(model.vision),
            text=StackCost.of(text.encoder, states=trains(text.embeddings), projection=projection)
            if hasattr(text, "encoder")
            else UnknownCost(),
            fusion=StackCost.of(model.fusion, states=texts_train, memory=images_train),
            heads={name: HeadCost.of(child, text.word_embeddings) for name, child in others},
            texts_train=texts_train,
            contrastive=None if contrastive is None else ContrastiveCost.of(contrastive, images_train, texts_train),
        )

    @cached_property
    def of_texts(self) -> ModelCost:
        """The same where the fusion attends to texts, or to nothing."""
        return replace(self, fusion=replace(self.fusion, memory=self.texts_train))

    def head(self, name: str, states: int) -> int:
        """FLOPs of so many fused states through a head."""
        return states * self.heads[name].flops(self.fusion.has_gradients)

    def align(self, images: int, texts: int) -> int:
        """The contrastive loss, see :meth:`ContrastiveCost.run`."""
        assert self.contrastive is not None, "the model has no contrastive head"
        return self.contrastive.run(images, texts)

    def match(self, tokens: Lengths, keys: Lengths | int) -> int:
        """Matching: each text with its image, a hard negative text with the image, the text with a hard negative image. The
        negative's length is not known beforehand; it counts as that of the matched text."""
        return 3 * (self.fusion.run(tokens, keys, queries=1) + self.head("matching_head", len(tokens)))

    def fuse_pairs(
        self, tokens: Lengths, frames: int = 1, queries: Lengths | int | None = 1, images: int | None = None
    ) -> Work:
        """Work of examples that each fuse one text with one image, or with a video of so many frames; ``queries``: see
        :meth:`StackCost.run`; ``images``: the images or videos that the examples share, None: each has its own."""
        examples, keys = len(tokens), self.vision.keys(frames)
        images = examples if images is None else images
        flops = self.vision.encode(images * frames) + self.text.run(tokens)
        flops += self.fusion.project(images * keys) + self.fusion.run(tokens, keys, queries)
        return Work(examples, images * frames, int(tokens.sum()), flops)
