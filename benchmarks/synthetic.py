"""Random pre-training batches of real proportions, for measurements that depend on sizes alone.

Which streams there are, and of what sizes, :mod:`tools.plan.synthetic` says; drawn here is what is in them.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dataset.tasks.pretrain import DataConfig, RegionStreamConfig
from dataset.text.processors import TextDataConfig, rounded_up
from models.vision import VisionEncoder
from tools.plan import synthetic
from tools.plan.parts import FIRST_WORD
from tools.plan.synthetic import text_limits
from utils.batch import IGNORE, MaskedText, PretrainBatch, RegionBatch, Text, stack_rows, text_keys

CLS_ID, SEP_ID, MASK_ID, FIRST_DRAWN = range(FIRST_WORD, FIRST_WORD + 4)


@dataclass(frozen=True)
class Lengths:
    """Tokens of a text, [CLS] and [SEP] counted: a normal distribution, our assumption around the measured means."""

    mean: float
    spread: float
    least: int = 3
    most: int = 30

    def draw(self, count: int, generator: torch.Generator) -> list[int]:
        """``count`` lengths in random order, evenly over the distribution, so that few have its mean too."""
        normal = statistics.NormalDist(self.mean, self.spread)
        even = [round(normal.inv_cdf((index + 0.5) / count)) for index in range(count)]
        clamped = [min(max(length, self.least), self.most) for length in even]
        return [clamped[index] for index in torch.randperm(count, generator=generator).tolist()]


LENGTHS = {
    "images": Lengths(13, 2.8),
    "regions": Lengths(6, 1.8),
    "videos": Lengths(22, 6),
    "texts": Lengths(26, 8),
    "pairs": Lengths(32, 10),
}
"""By stream. Measured are captions and texts of regions alone; assumed are what is said in eight seconds of a video, and
sentences of an encyclopedia, those of ``pairs`` in the pieces of a vocabulary of many languages."""


@dataclass(frozen=True)
class Writer:
    """Draws texts of random words.

    ``longer``: factor of the mean length; ``static``: in the shapes of :class:`dataset.text.processors.TextProcessor` for
    compiled encoders, with the same words.
    """

    vocabulary: int
    generator: torch.Generator
    longer: float
    static: bool

    def rows(self, stream: str, count: int, limits: TextDataConfig) -> list[list[int]]:
        """``count`` texts of a stream's lengths, between [CLS] and [SEP]."""
        lengths = LENGTHS[stream]
        drawn = replace(lengths, mean=self.longer * lengths.mean, most=limits.max_tokens).draw(count, self.generator)
        return [[CLS_ID, *self._words(length - 2), SEP_ID] for length in drawn]

    def plain(self, rows: list[list[int]], limits: TextDataConfig) -> Text:
        ids = stack_rows(rows, 0, limits.max_tokens if self.static else None)
        tokens = sum(map(len, rows))
        return Text(ids, _memory_groups(rows, ids), rounded_up(tokens, ids.numel()) if self.static else tokens)

    def masked(self, rows: list[list[int]], limits: TextDataConfig) -> MaskedText:
        """With as many masked tokens as :meth:`dataset.text.processors.TextProcessor.mask_positions` takes; [CLS] is none."""
        text, masked, positions, labels = self.plain(rows, limits), [], [], []
        for ids in rows:
            count = min(limits.max_masks, max(1, round(len(ids) * limits.mask_prob)))
            chosen = sorted((torch.randperm(len(ids) - 1, generator=self.generator)[:count] + 1).tolist())
            masked.append([MASK_ID if place in chosen else token for place, token in enumerate(ids)])
            positions.append(chosen)
            labels.append([ids[place] for place in chosen])
        most = limits.max_masks if self.static else max(map(len, positions))
        used = sum(map(len, positions))
        return MaskedText(
            ids=text.ids,
            mask=text.mask,
            masked_ids=stack_rows(masked, 0, text.ids.shape[1]),
            positions=stack_rows(positions, 0, most),
            labels=stack_rows(labels, IGNORE, most),
            key=text_keys(text.ids, text.mask),
            tokens=text.tokens,
            masked=rounded_up(used, len(rows) * most) if self.static else used,
        )

    def _words(self, count: int) -> list[int]:
        return torch.randint(FIRST_DRAWN, self.vocabulary, (count,), generator=self.generator).tolist()


def pretrain_batch(
    data: DataConfig,
    vision: VisionEncoder,
    vocabulary: int,
    *,
    seed: int = 0,
    longer: float = 1.0,
    static: bool = False,
) -> PretrainBatch:
    """A micro-batch of every configured stream, of the configured sizes; pixels are uint8, and every row counts.

    Args:
        longer: factor of the mean length of texts.
        static: the same batch in shapes that depend on the limits, as the trainer makes them for compiled encoders.
    """
    generator = torch.Generator().manual_seed(seed)
    writer = Writer(vocabulary, generator, longer, static)
    made = synthetic.pretrain_batch(data, vision, vocabulary)

    def filled(stream: str) -> Any:
        part, limits = getattr(made, stream), text_limits(data, stream)
        rows = len(part.valid)
        changed: dict[str, Any] = {"text": writer.masked(writer.rows(stream, rows, limits), limits)}
        if stream == "pairs":
            changed["other"] = writer.plain(writer.rows(stream, rows, limits), limits)
        if hasattr(part, "pixels"):
            changed["pixels"] = _noise(part.pixels, generator)
        return replace(part, **changed)

    parts = {stream: filled(stream) for stream in data.streams()}
    if data.regions is not None:
        parts["regions"] = _scattered(parts["regions"], data.regions, vision, generator, static=static)
    return replace(made, **parts)


def _scattered(
    part: RegionBatch, stream: RegionStreamConfig, vision: VisionEncoder, generator: torch.Generator, *, static: bool
) -> RegionBatch:
    """The rows dealt evenly to the images, each in a box of random patches; ``static``: with all images that there can be."""
    images, rows = len(part.pixels), len(part.valid)
    grid, _ = vision.grid
    corner = torch.randint(0, grid, (rows, 2, 2), generator=generator).sort(dim=2).values
    axis = torch.arange(grid)
    inside = (axis >= corner[:, :, :1]) & (axis <= corner[:, :, 1:])
    low, high = corner[:, :, 0] / grid, (corner[:, :, 1] + 1) / grid
    index = (torch.arange(rows) * images) // rows
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


def _memory_groups(rows: list[list[int]], ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows]).unsqueeze(1)
