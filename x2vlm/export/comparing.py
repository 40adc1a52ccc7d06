"""Measures the differences between the results of onnxruntime and torch on random images and texts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from batches.images import Pixels, stack_views
from batches.texts import Text
from models.inference.reranking import TextBank
from utils.image_size import sides_for
from x2vlm.model import Model
from x2vlm.runtime import Runtime

TOLERANCE = 1e-4
"""Maximum difference of each result between onnxruntime and torch."""
SIZES = ((1, 1), (2, 5), (3, 16), (5, 40))
"""For each batch, the number of images and texts, and the number of tokens of the longest text."""


def differences(model: Model, other: Runtime) -> dict[str, float]:
    """Returns the largest difference in each result between a model and another runtime of the same model, over batches of the
    sizes in :data:`SIZES`.

    The difference is absolute or, if a result has values above 1, relative to the largest value. It is NaN if either result
    contains NaN.
    """
    largest: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    with model.runtime.running(), other.running():
        for count, length in SIZES:
            batch = random_inputs(model, count, min(length, model.settings.data.text.max_tokens), generator)
            for (name, expected), (_, found) in zip(
                _results(model, model.runtime, *batch), _results(model, other, *batch), strict=True
            ):
                largest[name] = _larger(largest.get(name, 0.0), difference(expected, found))
    return largest


def difference(expected: Tensor, found: Tensor) -> float:
    """Returns the difference between two versions of a result, as defined in :func:`differences`."""
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1))


def random_inputs(model: Model, count: int, length: int, generator: torch.Generator) -> tuple[Pixels, Text]:
    """Returns the pixels of ``count`` random images, and ``count`` random texts, the first and longest of which has ``length``
    tokens."""
    vision = model.settings.model.vision
    frames = () if vision.video is None else (vision.video.frames,)
    # If images keep their aspect ratio, each has a different one.
    shapes = [(*frames, 3, *sides_for(vision.image_size, 1 + index % 3, 2)) for index in range(count)]
    images = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]
    pixels = stack_views(images, vision.image_size)
    pad = model.text.pad_id
    ids = torch.randint(0, len(model.tokenizer) - 1, (count, length), generator=generator)
    ids += ids >= pad  # any token except padding
    lengths = torch.randint(1, length + 1, (count, 1), generator=generator)
    lengths[0] = length
    mask = torch.arange(length) < lengths
    return pixels, Text(ids.where(mask, torch.tensor(pad)), mask, int(lengths.sum()))


def _results(model: Model, runtime: Runtime, pixels: Pixels, text: Text) -> Iterator[tuple[str, Tensor]]:
    """Yields all results that the model's calls use, by name."""
    images, texts = runtime.image_states(pixels), runtime.text_states(text)
    yield "image states", images.states()
    yield "text states", texts.padded() * text.mask.unsqueeze(2)
    if model.takes("match"):
        yield "image embeddings", runtime.image_embeddings(pixels)
        yield "text embeddings", runtime.text_embeddings(text)
        all_texts = torch.arange(len(text.ids))
        margins = torch.stack(runtime.margins(images, [all_texts] * len(pixels), TextBank.of([texts])))
        yield "matching probabilities", margins.sigmoid()
    if model.takes("locate"):
        boxes, scores = runtime.locate(images, texts, torch.arange(len(pixels)) // 2)  # two texts per image
        yield "boxes", torch.tensor(boxes)
        if scores[0] is not None:
            yield "boxes' probabilities", torch.tensor(scores)


def _larger(one: float, other: float) -> float:
    """Returns the larger of two numbers, or NaN if either is NaN."""
    return one if one != one or one > other else other
