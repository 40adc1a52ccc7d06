"""The FLOPs of a training step, computed on the host from sizes alone.

The sizes of a model's modules are read once and turned into coefficients (:class:`ModelCost`): FLOPs per image, per token, and
per pair of a query and a key. The FLOPs of a step are the sum of these coefficients multiplied by counts from its micro-batches,
such as the total length of the texts.

We count the minimum arithmetic needed to compute the losses and their gradients:

- each image, or frame of a video, goes through the backbone once, and is projected to keys and values once per layer;
- texts count with their true length, without padding, and invalid examples are skipped;
- if only the [CLS] state is needed (matching, boxes, classes), or only the states of masked words, the last layer computes states
  at these query positions only; for the other tokens, it computes only keys and values;
- words are predicted only at masked positions.

A multiply-accumulate counts as two FLOPs, plus two for each of its factors that has a gradient (:func:`step_flops`). For a frozen
encoder, we therefore count only the forward pass. For a frozen fusion encoder that passes gradients on to other modules, we count
everything except the gradients of its weights. A layer that reads the states of a frozen encoder computes no gradient for these
states. We count matrix products, convolutions and attention. We do not count norms, activations, softmax, lookups, masks or the
optimiser, which take a few per cent of the time and do not use tensor cores. A mask within a sequence (causal, or the patches of
a region) does not reduce the count. Recomputation that saves memory (gradient checkpointing, the backward pass of fused
attention) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from batches.images import NativeImages, Pixels
from batches.losses import Work
from batches.questions import ClassifiedBatch, QuestionBatch
from optim.lora import UP
from utils import distributed

Lengths = npt.NDArray[np.int64]
"""A count for each text: its tokens, its query positions, or the keys that it attends to."""


def step_flops(macs: int, *gradients: bool) -> int:
    """FLOPs of ``macs`` multiply-accumulates in a training step, forward and backward. Each of ``gradients`` is True if one of
    the two factors has a gradient; factors without a gradient may be omitted."""
    return 2 * macs * (1 + sum(gradients))


def trains(module: nn.Module) -> bool:
    """True if any parameter of a module is trained. We assume that a module is trained or frozen as a whole."""
    return any(parameter.requires_grad for parameter in module.parameters())


def counted_flops(run: Callable[[], Tensor]) -> int:
    """FLOPs of the matrix products, convolutions and attention in ``run``, as counted by torch, including the backward pass from
    the tensor that ``run`` returns."""
    counter = FlopCounterMode(display=False)
    # Torch has no formula for the fused attention kernels of some devices.
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH), counter:
        states = run()
        if states.requires_grad:
            states.sum().backward()
    return int(counter.get_total_flops())


def lengths(mask: Tensor, valid: Tensor) -> Lengths:
    """Number of True values for each valid example. ``mask`` (N, L) bool and ``valid`` (N,) bool must be in host memory."""
    return np.count_nonzero(mask.numpy()[valid.numpy()], axis=1)


def frames_of(pixels: Pixels) -> int:
    """Number of frames per example: 1 for images, F for videos (I, F, 3, H, W)."""
    return 1 if isinstance(pixels, NativeImages) or pixels.dim() == 4 else pixels.shape[1]


def images_of(batch: QuestionBatch | ClassifiedBatch) -> int:
    """Number of images or videos in a batch, counting only valid questions."""
    if batch.image_of_question is None:
        return int(batch.valid.sum())
    return len(batch.image_of_question[batch.valid].unique())


def linear_macs(*modules: nn.Module | None) -> int:
    """Multiply-accumulates for one state that passes through all linear layers of ``modules``."""
    parts = (part for module in modules if module is not None for part in module.modules())
    return sum(part.weight.numel() for part in parts if isinstance(part, nn.Linear))


def linear_flops(states: bool, *modules: nn.Module | None) -> int:
    """FLOPs of a step for one state that passes through all linear layers of ``modules``, including the gradients of trained
    weights. ``states`` is True if the input states have gradients; the states between the two layers of an adapter always do."""
    total = 0
    for module in modules:
        for name, part in () if module is None else module.named_modules():
            if isinstance(part, nn.Linear):
                enters = states or f"{name}.weight".endswith(UP)
                total += step_flops(part.weight.numel(), part.weight.requires_grad, enters)
    return total


@dataclass(frozen=True)
class VisionCost:
    """Cost of the vision encoder.

    Attributes:
        image: FLOPs of a step for encoding an image or frame into patches.
        patches, width: number of patches per image, and width of their states.
        keeps_frames: True if a video keeps the patches of all its frames.
        trains: False if the encoder is frozen.
    """

    image: int
    patches: int
    width: int
    keeps_frames: bool
    trains: bool

    @staticmethod
    def of(vision: Any) -> VisionCost:
        """Coefficients of a :class:`models.core.vision.VisionEncoder`."""
        video = vision.config.video
        return VisionCost(
            image=vision.vision_backbone.step_flops(),
            patches=vision.vision_backbone.max_patches,
            width=vision.width,
            keeps_frames=video is not None and video.pooling == "tokens",
            trains=trains(vision),
        )

    def encode(self, images: int) -> int:
        """FLOPs of encoding images or frames into patches."""
        return images * self.image

    def pool_regions(self, regions: int) -> int:
        """FLOPs of averaging the patches of each region. The weights of this mean have no gradient."""
        return step_flops(regions * self.patches * self.width, self.trains)

    def keys(self, frames: int = 1) -> int:
        """Number of keys of an image, or of a video of ``frames`` frames: its patches and their mean."""
        return 1 + self.patches * (frames if self.keeps_frames else 1)


@dataclass(frozen=True)
class BlockCost:
    """FLOPs of a step for one transformer block, or the sum over several blocks.

    Attributes:
        token: FLOPs per token, for the keys and values of self-attention.
        query: FLOPs per query position, for everything else except attention itself.
        pair: FLOPs per pair of a query position and a token that it attends to.
        cross_query, cross_pair: the same FLOPs for cross-attention.
        cross_key: FLOPs per state that texts attend to, for the keys and values of cross-attention.
    """

    token: int = 0
    query: int = 0
    pair: int = 0
    cross_query: int = 0
    cross_pair: int = 0
    cross_key: int = 0

    @staticmethod
    def of(block: Any, weights: bool, states: bool, cross: bool | None) -> BlockCost:
        """Coefficients of a block whose modules have the names of Hugging Face's BERT layer.

        Args:
            block: the block; its ``crossattention`` may be None.
            weights: True if the block is trained.
            states: True if the input states have gradients.
            cross: True if the states that texts attend to have gradients; if None, cross-attention is skipped.
        """
        attention, crossattention = block.attention, block.crossattention
        after = states or weights  # whether queries, keys and values, and everything after them, have gradients
        entry = attention.self
        cost = BlockCost(
            token=linear_flops(states, entry.key, entry.value),
            query=linear_flops(states, entry.query) + linear_flops(after, attention.output),
            pair=step_flops(2 * entry.query.out_features, after, after),
        )
        if crossattention is not None and cross is not None:
            keys, before = cross or weights, after
            after = before or keys
            project = crossattention.self
            query, width = linear_flops(before, project.query), project.query.out_features
            cost += BlockCost(
                cross_query=query + linear_flops(after, crossattention.output),
                # Scores are products of queries and keys, and the result is a product of attention weights and values.
                cross_pair=step_flops(width, before, keys) + step_flops(width, after, keys),
                cross_key=linear_flops(cross, project.key, project.value),
            )
        return cost + BlockCost(query=linear_flops(after, block.intermediate, block.output))

    def __add__(self, other: BlockCost) -> BlockCost:
        return BlockCost(
            *(first + second for first, second in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def flops(self, tokens: Lengths, queries: Lengths, keys: Lengths | int | None) -> int:
        """FLOPs of texts, from the number of tokens, query positions and keys of each text.

        ``keys`` are the keys of the cross-attention; if None, it is skipped.
        """
        count = int(queries.sum())
        total = self.token * int(tokens.sum()) + self.query * count + self.pair * int(queries @ tokens)
        if keys is not None:
            pairs = keys * count if isinstance(keys, int) else int(queries @ keys)
            total += self.cross_query * count + self.cross_pair * pairs
        return total


@dataclass(frozen=True)
class StackCost:
    """FLOPs of a stack of transformer blocks, whose last block may compute only some of the positions.

    Attributes:
        blocks: the blocks of the stack.
        weights, states, cross: arguments of :meth:`BlockCost.of` for the first block.
        projection: FLOPs of projecting an output state to another width, or to words.
    """

    blocks: Sequence[Any]
    weights: bool
    states: bool
    cross: bool
    projection: int = 0

    @staticmethod
    def of(stack: Any, states: bool, cross: bool = False, projection: int = 0) -> StackCost:
        """Coefficients of a :class:`models.core.blocks.BlockStack`."""
        return StackCost(tuple(stack.layer), trains(stack), states, cross, projection)

    @property
    def has_gradients(self) -> bool:
        """True if the output states have gradients."""
        return self.weights or self.states or self.cross

    @cached_property
    def attending(self) -> tuple[BlockCost, BlockCost]:
        """With cross-attention: the total cost of all blocks except the last, and the cost of the last block."""
        return self._inner_and_last(self.cross)

    @cached_property
    def alone(self) -> tuple[BlockCost, BlockCost]:
        """Without cross-attention: the total cost of all blocks except the last, and the cost of the last block."""
        return self._inner_and_last(None)

    def _inner_and_last(self, cross: bool | None) -> tuple[BlockCost, BlockCost]:
        later = self.states or self.weights or bool(cross)  # whether the states between blocks have gradients
        states = [self.states, *([later] * (len(self.blocks) - 1))]
        costs = [
            BlockCost.of(block, self.weights, each, cross) for block, each in zip(self.blocks, states, strict=True)
        ]
        return sum(costs[:-1], BlockCost()), costs[-1]

    def run(self, tokens: Lengths, keys: Lengths | int | None = None, queries: Lengths | int | None = None) -> int:
        """FLOPs of running texts through all blocks.

        Args:
            tokens: number of tokens of each text.
            keys: number of keys of the cross-attention, one number per text or one for all texts; if None, cross-attention is
                skipped.
            queries: number of states that the last block computes, one number per text or one for all texts; if None, all states.
        """
        inner, last = self.alone if keys is None else self.attending
        if queries is None:
            return (inner + last).flops(tokens, tokens, keys) + self.projection * int(tokens.sum())
        if isinstance(queries, int):
            queries = np.full_like(tokens, queries)
        flops = inner.flops(tokens, tokens, keys) + last.flops(tokens, queries, keys)
        return flops + self.projection * int(queries.sum())

    def project(self, states: int) -> int:
        """FLOPs of projecting ``states`` states to keys and values in every block."""
        return states * sum(part.cross_key for part in self.attending)


def head_flops(head: nn.Module, words: Tensor, states: bool) -> int:
    """FLOPs of a step for one state that passes through a head. ``states`` is True if the state has a gradient. A word head
    without its own table also multiplies the state by the table ``words`` (V, D)."""
    layers = [linear_macs(part) for part in head.modules() if isinstance(part, nn.Linear)]
    tied = words.numel() if hasattr(head, "decoder") and head.decoder is None else 0
    entry, rest = (step_flops(layers[0], True, states), step_flops(sum(layers[1:]), True, True)) if layers else (0, 0)
    return entry + rest + step_flops(tied, words.requires_grad, True)


NOT_STATE_HEADS = ("vision", "text", "fusion", "decoder", "contrastive", "set_head")
"""Modules of a model that are not heads on individual states."""


@dataclass(frozen=True)
class MeasuredTextCost:
    """Cost of a text encoder from a library: FLOPs per text, per token, and per pair of tokens in a text."""

    text: float
    token: float
    pair: float

    @staticmethod
    def of(run: Callable[[int], int], projection: int) -> MeasuredTextCost:
        """Derives the coefficients from ``run(L)``, the FLOPs of a text of L tokens, at three lengths. ``projection`` is the
        number of additional FLOPs per state."""
        powers = np.vander(_LENGTHS, 3)  # FLOPs are pair * L^2 + token * L + text
        pair, token, text = np.linalg.solve(powers, [run(length) for length in _LENGTHS]).round().tolist()
        return MeasuredTextCost(text, token + projection, pair)

    def run(self, tokens: Lengths) -> float:
        """FLOPs of running texts, given the number of tokens of each."""
        lengths = tokens.astype(np.float64)
        return float(self.text * len(lengths) + self.token * lengths.sum() + self.pair * (lengths**2).sum())


_LENGTHS = (8, 12, 16)


@dataclass(frozen=True)
class ModelCost:
    """Costs of the modules of a model.

    Attributes:
        vision, text, fusion: costs of the encoders.
        heads: FLOPs of passing a fused state through a head, for a state without and with a gradient, by the head's name in the
            model.
        texts_train: True if the states of texts have gradients.
        embed_image, embed_text: FLOPs of projecting an image or a text to the joint embedding space; 0 without such a space.
        embed_dim: width of this space.
        decoder: cost of the answer decoder, including the prediction of a word from every state; None if the model has no
            decoder.
    """

    vision: VisionCost
    text: StackCost | MeasuredTextCost
    fusion: StackCost
    heads: dict[str, tuple[int, int]]
    texts_train: bool
    embed_image: int = 0
    embed_text: int = 0
    embed_dim: int = 0
    decoder: StackCost | None = None

    @staticmethod
    def of(model: Any) -> ModelCost:
        """Costs of a :class:`models.core.xvlm.XVLM`."""
        text, contrastive, decoder = model.text, getattr(model, "contrastive", None), getattr(model, "decoder", None)
        images_train, texts_train = trains(model.vision), trains(text)
        projection = step_flops(linear_macs(getattr(text, "projection", None)), texts_train, texts_train)
        fusion = StackCost.of(model.fusion, states=texts_train, cross=images_train)
        answers = None
        if decoder is not None:
            words = head_flops(decoder.word_head, decoder.words, states=True)
            answers = StackCost.of(decoder, states=True, cross=fusion.has_gradients, projection=words)
        cost = ModelCost(
            vision=VisionCost.of(model.vision),
            text=StackCost.of(text.encoder, states=trains(text.embeddings), projection=projection)
            if hasattr(text, "encoder")
            else MeasuredTextCost.of(text.step_flops, projection),
            fusion=fusion,
            heads={
                name: (head_flops(child, text.word_embeddings, False), head_flops(child, text.word_embeddings, True))
                for name, child in model.named_children()
                if name not in NOT_STATE_HEADS
            },
            texts_train=texts_train,
            decoder=answers,
        )
        if contrastive is None:
            return cost
        return replace(
            cost,
            embed_image=step_flops(linear_macs(contrastive.vision_proj), True, images_train),
            embed_text=step_flops(linear_macs(contrastive.text_proj), True, texts_train),
            embed_dim=contrastive.text_proj.out_features,
        )

    @cached_property
    def of_texts(self) -> ModelCost:
        """The same costs for a fusion encoder that attends to texts or skips cross-attention."""
        return replace(self, fusion=replace(self.fusion, cross=self.texts_train))

    def encode_texts(self, tokens: Lengths) -> float:
        """FLOPs of the text encoder."""
        return self.text.run(tokens)

    def head(self, name: str, states: int) -> int:
        """FLOPs of passing ``states`` fused states through a head."""
        return states * self.heads[name][self.fusion.has_gradients]

    def align(self, images: int, texts: int, hard_negatives: int = 0) -> int:
        """FLOPs of the contrastive loss: the embeddings, the similarities between this rank's pairs and the pairs of all ranks in
        both directions, and the similarities between images and their hard negatives."""
        pairs = (images + texts) // 2
        similarities = 2 * pairs * pairs * distributed.world_size() + hard_negatives
        embedded = images * self.embed_image + (texts + hard_negatives) * self.embed_text
        return embedded + step_flops(similarities * self.embed_dim, True, True)

    def match(self, tokens: Lengths, keys: Lengths | int) -> int:
        """FLOPs of the matching loss, which fuses each text with its image and with a negative image, and a negative
        text with the image. The length of the negative text is not known in advance, so we use the length of the matched text."""
        return 3 * (self.fusion.run(tokens, keys, queries=1) + self.head("matching_head", len(tokens)))

    def fuse_pairs(
        self, tokens: Lengths, frames: int = 1, queries: Lengths | int | None = 1, images: int | None = None
    ) -> Work:
        """The work for examples that each fuse one text with one image or video.

        Args:
            tokens: number of tokens of each text.
            frames: number of frames per video; 1 for images.
            queries: see :meth:`StackCost.run`.
            images: number of images or videos that the examples share; if None, each example has a separate image or video.
        """
        examples, keys = len(tokens), self.vision.keys(frames)
        images = examples if images is None else images
        flops = self.vision.encode(images * frames) + self.encode_texts(tokens)
        flops += self.fusion.project(images * keys) + self.fusion.run(tokens, keys, queries)
        return Work(examples, images * frames, int(tokens.sum()), flops)
