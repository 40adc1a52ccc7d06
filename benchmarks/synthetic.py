"""Random pre-training batches of real proportions, for measurements that depend on sizes alone."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dataset.text import rounded_up
from utils.batch import IGNORE, ImageTextBatch, MaskedText, PretrainBatch, RegionBatch, stack_rows, text_keys

CLS_ID, SEP_ID, MASK_ID, FIRST_WORD = 1, 2, 3, 4


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


@dataclass(frozen=True)
class Limits:
    """The most that there can be: tokens and masked words of a text, and rows of an image with regions."""

    tokens: int = 30
    masks: int = 12
    rows_per_image: int = 5


CAPTIONS = Lengths(13, 2.8)
REGION_TEXTS = Lengths(6, 1.8)


def masked_text(
    lengths: list[int], vocab_size: int, generator: torch.Generator, limits: Limits, *, static: bool
) -> MaskedText:
    """Random words between [CLS] and [SEP], half of the tokens masked, as in pre-training; ``static`` as
    :meth:`dataset.text.TextProcessor.collate` has it."""
    texts, masked, positions, labels = [], [], [], []
    for length in lengths:
        words = torch.randint(FIRST_WORD, vocab_size, (length - 2,), generator=generator).tolist()
        ids = [CLS_ID, *words, SEP_ID]
        chosen = sorted(
            (torch.randperm(length - 1, generator=generator)[: min(limits.masks, length // 2)] + 1).tolist()
        )
        texts.append(ids)
        masked.append([MASK_ID if place in chosen else token for place, token in enumerate(ids)])
        positions.append(chosen)
        labels.append([ids[place] for place in chosen])
    width = limits.tokens if static else max(lengths)
    most = limits.masks if static else max(len(chosen) for chosen in positions)
    ids = stack_rows(texts, 0, width)
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    tokens, used = sum(lengths), sum(len(chosen) for chosen in positions)
    return MaskedText(
        ids=ids,
        mask=mask,
        masked_ids=stack_rows(masked, 0, width),
        positions=stack_rows(positions, 0, most),
        labels=stack_rows(labels, IGNORE, most),
        key=text_keys(ids, mask),
        tokens=rounded_up(tokens, ids.numel()) if static else tokens,
        masked=rounded_up(used, len(ids) * most) if static else used,
    )


def pretrain_batch(
    pairs: int,
    regions: int,
    images: int,
    *,
    image_size: int,
    patch_size: int,
    vocab_size: int,
    seed: int = 0,
    longer: float = 1.0,
    limits: Limits = Limits(),
    static: bool = False,
) -> PretrainBatch:
    """``pairs`` image-text pairs beside ``regions`` texts of boxes spread over ``images`` images; pixels are uint8.

    Args:
        longer: factor of the mean length of texts.
        limits: of texts and images.
        static: the same batch in shapes that depend on the limits, as the trainer makes them for compiled encoders.
    """
    generator = torch.Generator().manual_seed(seed)

    def texts(count: int, lengths: Lengths) -> MaskedText:
        drawn = replace(lengths, mean=longer * lengths.mean, most=limits.tokens).draw(count, generator)
        return masked_text(drawn, vocab_size, generator, limits, static=static)

    def pixels(count: int) -> Tensor:
        return torch.randint(0, 256, (count, 3, image_size, image_size), dtype=torch.uint8, generator=generator)

    grid = image_size // patch_size
    corner = torch.randint(0, grid, (regions, 2, 2), generator=generator).sort(dim=2).values
    axis = torch.arange(grid)
    inside = (axis >= corner[:, :, :1]) & (axis <= corner[:, :, 1:])
    low, high = corner[:, :, 0] / grid, (corner[:, :, 1] + 1) / grid
    index = (torch.arange(regions) * images) // regions
    return PretrainBatch(
        images=ImageTextBatch(
            pixels(pairs),
            texts(pairs, CAPTIONS),
            torch.ones(pairs, dtype=torch.bool),
        ),
        regions=RegionBatch(
            pixels=pixels(images),
            image_index=index,
            max_rows_per_image=max(int(index.bincount().max()), limits.rows_per_image if static else 0),
            patch_mask=(inside[:, 1, :, None] & inside[:, 0, None, :]).flatten(1),
            boxes_cxcywh=torch.cat([(low + high) / 2, high - low], dim=1),
            is_image=torch.zeros(regions, dtype=torch.bool),
            text=texts(regions, REGION_TEXTS),
            valid=torch.ones(regions, dtype=torch.bool),
        ),
        texts=None,
    )
