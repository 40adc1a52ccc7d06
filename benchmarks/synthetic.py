"""Random pre-training batches of realistic proportions, for measurements that depend only on sizes.

:mod:`tools.plan.synthetic` makes streams of the right sizes; this module fills them with random contents.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from batches.base import IGNORE
from batches.pretraining import LongTexts, PretrainBatch, RegionBatch
from batches.texts import MaskedText, Text
from dataset.config import DataConfig, RegionStreamConfig, TextDataConfig
from dataset.text.processors import rounded_up
from models.core.vision import VisionEncoder
from tools.plan import synthetic
from tools.plan.parts import FIRST_WORD
from tools.plan.synthetic import text_limits
from utils.sequences import stack_rows, text_ids

CLS_ID, SEP_ID, MASK_ID, FIRST_RANDOM = range(FIRST_WORD, FIRST_WORD + 4)


@dataclass(frozen=True)
class Lengths:
    """Distribution of the number of tokens in a text, including [CLS] and [SEP]: normal, clamped to ``minimum`` and
    ``maximum``."""

    mean: float
    spread: float
    minimum: int = 3
    maximum: int = 30

    def sample(self, count: int, generator: torch.Generator) -> list[int]:
        """Returns ``count`` lengths: evenly spaced quantiles in random order, so that even small samples have the right mean."""
        normal = statistics.NormalDist(self.mean, self.spread)
        quantiles = [round(normal.inv_cdf((index + 0.5) / count)) for index in range(count)]
        clamped = [min(max(length, self.minimum), self.maximum) for length in quantiles]
        return [clamped[index] for index in torch.randperm(count, generator=generator).tolist()]


LENGTHS = {
    "images": Lengths(13, 2.8),
    "regions": Lengths(6, 1.8),
    "videos": Lengths(22, 6),
    "texts": Lengths(26, 8),
    "translations": Lengths(32, 10),
    "long captions": Lengths(130, 30),
}
"""Text lengths by stream. The means of captions and of regions are measured. The other values are assumptions: speech in eight
seconds of video, sentences of an encyclopedia, the same sentences in a multilingual vocabulary, and descriptions of 100 words."""


@dataclass(frozen=True)
class TextWriter:
    """Writes texts of random words.

    Attributes:
        vocabulary: vocabulary size.
        generator: source of randomness.
        length_factor: factor on the mean length.
        static: if True, the same words are padded to the shapes that :class:`dataset.text.processors.TextProcessor` uses for
            compiled encoders.
    """

    vocabulary: int
    generator: torch.Generator
    length_factor: float
    static: bool

    def token_lists(self, stream: str, count: int, limits: TextDataConfig) -> list[list[int]]:
        """Returns ``count`` texts with lengths typical of a stream, between [CLS] and [SEP]."""
        lengths = LENGTHS[stream]
        lengths = replace(lengths, mean=self.length_factor * lengths.mean, maximum=limits.max_tokens)
        return [self.token_list(length) for length in lengths.sample(count, self.generator)]

    def token_list(self, length: int) -> list[int]:
        """Returns a text of ``length`` tokens, including [CLS] and [SEP]."""
        return [CLS_ID, *self._words(length - 2), SEP_ID]

    def plain(self, texts: list[list[int]], limits: TextDataConfig) -> Text:
        """Returns a batch of ``texts``, which are lists of token ids."""
        ids = stack_rows(texts, 0, limits.max_tokens if self.static else None)
        tokens = sum(map(len, texts))
        return Text(ids, _token_mask(texts, ids), rounded_up(tokens, ids.numel()) if self.static else tokens)

    def masked(self, texts: list[list[int]], limits: TextDataConfig) -> MaskedText:
        """Returns a batch of ``texts`` and their masked copies. As many tokens are masked as
        :meth:`dataset.text.processors.TextProcessor.mask_positions` would mask."""
        text, masked, positions, labels = self.plain(texts, limits), [], [], []
        for ids in texts:
            count = min(limits.max_masks, max(1, round(len(ids) * limits.mask_prob)))
            places = sorted((torch.randperm(len(ids) - 1, generator=self.generator)[:count] + 1).tolist())
            masked.append([MASK_ID if place in places else token for place, token in enumerate(ids)])
            positions.append(places)
            labels.append([ids[place] for place in places])
        most = limits.max_masks if self.static else max(map(len, positions))
        used = sum(map(len, positions))
        return MaskedText(
            ids=text.ids,
            mask=text.mask,
            masked_ids=stack_rows(masked, 0, text.ids.shape[1]),
            positions=stack_rows(positions, 0, most),
            labels=stack_rows(labels, IGNORE, most),
            text_id=text_ids(text.ids, text.mask),
            token_count=text.token_count,
            masked_count=rounded_up(used, len(texts) * most) if self.static else used,
        )

    def _words(self, count: int) -> list[int]:
        return torch.randint(FIRST_RANDOM, self.vocabulary, (count,), generator=self.generator).tolist()


def pretrain_batch(
    data: DataConfig,
    vision: VisionEncoder,
    vocabulary: int,
    *,
    seed: int = 0,
    length_factor: float = 1.0,
    static: bool = False,
) -> PretrainBatch:
    """Returns a micro-batch of every configured stream at its configured size. Pixels are uint8, and all examples are valid.

    Args:
        data: the config section ``data``.
        vision: the vision encoder, for the sizes of images.
        vocabulary: vocabulary size.
        seed: seed of the contents.
        length_factor: factor on the mean length of texts.
        static: if True, the same contents are padded to the fixed shapes that the trainer uses for compiled encoders.
    """
    generator = torch.Generator().manual_seed(seed)
    writer = TextWriter(vocabulary, generator, length_factor, static)
    template = synthetic.pretrain_batch(data, vision, vocabulary)

    def filled(stream: str) -> Any:
        part, limits = getattr(template, stream), text_limits(data, stream)
        count = len(part.valid)
        changes: dict[str, Any] = {"text": writer.masked(writer.token_lists(stream, count, limits), limits)}
        if stream == "translations":
            changes["other"] = writer.plain(writer.token_lists(stream, count, limits), limits)
        if getattr(part, "long", None) is not None:
            long = writer.masked(writer.token_lists("long captions", count, limits), limits)
            changes["long"] = LongTexts(long, part.valid)
        if getattr(part, "hard_negatives", None) is not None:
            hard = writer.plain(writer.token_lists(stream, part.hard_negatives.valid.numel(), limits), limits)
            changes["hard_negatives"] = replace(part.hard_negatives, text=hard)
        if hasattr(part, "pixels"):
            changes["pixels"] = _noise(part.pixels, generator)
        return replace(part, **changes)

    parts = {stream: filled(stream) for stream in data.streams()}
    if data.regions is not None:
        parts["regions"] = _scattered(parts["regions"], data.regions, vision, generator, static=static)
    return replace(template, **parts)


def _scattered(
    part: RegionBatch, stream: RegionStreamConfig, vision: VisionEncoder, generator: torch.Generator, *, static: bool
) -> RegionBatch:
    """Distributes the regions evenly over the images, with boxes of random patches. If ``static``, pads to the maximum number of
    images."""
    assert isinstance(part.pixels, Tensor)
    images, regions = len(part.pixels), len(part.valid)
    grid, _ = vision.grid
    corner = torch.randint(0, grid, (regions, 2, 2), generator=generator).sort(dim=2).values
    axis = torch.arange(grid)
    inside = (axis >= corner[:, :, :1]) & (axis <= corner[:, :, 1:])
    low, high = corner[:, :, 0] / grid, (corner[:, :, 1] + 1) / grid
    index = (torch.arange(regions) * images) // regions
    black = part.pixels.new_zeros(stream.max_images - images if static else 0, *part.pixels.shape[1:])
    return replace(
        part,
        pixels=torch.cat([part.pixels, black]),
        image_index=index,
        patch_mask=(inside[:, 1, :, None] & inside[:, 0, None, :]).flatten(1),
        boxes_cxcywh=torch.cat([(low + high) / 2, high - low], dim=1),
    )


def _noise(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, pixels.shape, dtype=pixels.dtype, generator=generator)


def _token_mask(texts: list[list[int]], ids: Tensor) -> Tensor:
    """Returns a mask (N, L) bool of ``ids``, in which True marks a token."""
    return torch.arange(ids.shape[1]) < torch.tensor([len(text) for text in texts]).unsqueeze(1)
