"""Chooses the objects of a scene and their positions, as a pure function of seed, split and index.

The *composition* of a scene is the set of the (shape, colour) pairs of its objects. No two objects of a scene have the same pair,
so that "a red star" is never ambiguous. The split of a composition is determined by its hash and never changes. Compositions are
unique in the validation and test splits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dataset.prepare.folders import SPLITS, split_by_hash
from demo.scenes import vocabulary as words
from demo.scenes.backgrounds import Background, pick_background
from demo.scenes.shapes import Form, Raster, rasterise
from utils.sequences import shuffled

T = TypeVar("T")

Composition = tuple[tuple[str, str], ...]
"""(shape, colour) of all objects, sorted."""

Box = tuple[int, int, int, int]
"""x, y, w, h in pixels from the top left corner."""

GAP = 1
"""Minimum distance in pixels between the boxes of two objects, and between an object and the edge of the image."""

(
    COMPOSITION_PURPOSE,
    LAYOUT_PURPOSE,
    TEXT_PURPOSE,
    REFERRING_PURPOSE,
    STATEMENT_PURPOSE,
    QUESTION_PURPOSE,
    LONG_PURPOSE,
    SETS_PURPOSE,
    PAIRS_PURPOSE,
    ASPECT_PURPOSE,
    STYLE_PURPOSE,
) = range(11)


@dataclass(frozen=True)
class SceneObject:
    """An object: the words that describe it, its form (with lengths in pixels), its colours, and ``box``, the tight box of its
    pixels."""

    shape: str
    colour: str
    texture: str
    size: str
    form: Form
    rgb: words.RGB
    accent: words.RGB
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        """The centre of the box: x, y in pixels."""
        x, y, w, h = self.box
        return x + w / 2, y + h / 2

    def raster(self) -> Raster:
        """Returns the pixels of the object, with the size of its box."""
        return rasterise(self.form)


@dataclass(frozen=True)
class Scene:
    """The content of an image. ``width`` and ``height`` are in pixels; (seed, split, index) identify the scene."""

    seed: int
    split: str
    index: int
    width: int
    height: int
    background: Background
    objects: tuple[SceneObject, ...]

    def rng(self, purpose: int) -> np.random.Generator:
        """Returns the random number generator for one purpose in this scene, which is independent of all other generators."""
        return generator_for(self.seed, self.split, self.index, purpose)


def compose_scene(seed: int, split: str, index: int, size: int | tuple[int, int] = 64) -> Scene:
    """Composes a scene. The result does not depend on the order of calls.

    Args:
        seed: seed of the data set, at least 0.
        split: "train", "val" or "test".
        index: index of the scene in the split, at least 0.
        size: side of a square image, or (width, height), in pixels; at least 32.

    Raises:
        ValueError: if an argument is out of range, or a val or test split has no composition left for this index.
    """
    width, height = (size, size) if isinstance(size, int) else size
    if min(width, height) < 32:
        raise ValueError(f"a scene of {width} x {height} pixels is too small; the minimum is 32")
    if split not in SPLITS:
        raise ValueError(f"{split!r} is not a split; splits are {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed {seed} and index {index} must not be negative")
    composition = _composition(seed, split, index)
    rng = generator_for(seed, split, index, LAYOUT_PURPOSE)
    objects = _lay_out(rng, composition, width, height)
    background = pick_background(rng, [obj.rgb for obj in objects])
    return Scene(seed, split, index, width, height, background, objects)


def draw_size(seed: int, split: str, index: int, size: tuple[int, int], aspect: float) -> tuple[int, int]:
    """Draws the width and height of a scene with about the same number of pixels as ``size``. The ratio of width to height
    changes by a factor between 1 / ``aspect`` and ``aspect``, log-uniformly."""
    half = math.log(aspect) / 2
    factor = math.exp(generator_for(seed, split, index, ASPECT_PURPOSE).uniform(-half, half))
    return round(size[0] * factor), round(size[1] / factor)


def generator_for(seed: int, split: str, index: int, purpose: int) -> np.random.Generator:
    """Returns the random number generator for one purpose in a scene or a set of statements, which is independent of all other
    generators."""
    return np.random.default_rng([seed, SPLITS.index(split), index, purpose])


def one_of(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Returns a random item."""
    return items[int(rng.integers(len(items)))]


def split_of(composition: Sequence[tuple[str, str]]) -> str:
    """Returns the split of a composition, "train", "val" or "test". It does not depend on the seed."""
    return split_by_hash("|".join(f"{colour} {shape}" for shape, colour in sorted(composition)))


def _draw_composition(rng: np.random.Generator, split: str) -> Composition:
    colours = list(words.COLOURS)
    counts, shares = list(words.OBJECT_COUNTS), list(words.OBJECT_COUNTS.values())
    while True:
        number = int(rng.choice(counts, p=shares))
        picks = rng.choice(len(words.SHAPES) * len(colours), size=number, replace=False)
        objects = [(words.SHAPES[pick // len(colours)], colours[pick % len(colours)]) for pick in picks]
        composition = tuple(sorted(objects))
        if split_of(composition) == split:
            return composition


@functools.lru_cache(maxsize=8)
def _drawn_compositions(seed: int, split: str) -> tuple[set[Composition], list[Composition]]:
    """Returns the compositions that :func:`_composition` has drawn so far, as a set and as an ordered list."""
    return set(), []


def _composition(seed: int, split: str, index: int) -> Composition:
    """Returns the composition at ``index`` of a split. In val and test, compositions are unique, and a longer split begins with
    the same compositions as a shorter split."""
    if split == "train":
        return _draw_composition(generator_for(seed, split, index, COMPOSITION_PURPOSE), split)
    known, ordered = _drawn_compositions(seed, split)
    while len(ordered) <= index:
        rng = generator_for(seed, split, len(ordered), COMPOSITION_PURPOSE)
        draws = (_draw_composition(rng, split) for _ in range(10_000))
        composition = next((composition for composition in draws if composition not in known), None)
        if composition is None:
            raise ValueError(f"no new composition for scene {len(ordered)} of {split}")
        known.add(composition)
        ordered.append(composition)
    return ordered[index]


def _lay_out(rng: np.random.Generator, composition: Composition, width: int, height: int) -> tuple[SceneObject, ...]:
    """Gives each object a size, a texture and a position without overlap. Returns the objects in random order."""
    for _ in range(1000):
        named = shuffled(rng, composition)
        sizes = _draw_sizes(rng, len(named))
        placed: list[SceneObject] = []
        # Place large objects first, because there is always a corner left for a small one.
        for (shape, colour), size in sorted(zip(named, sizes, strict=True), key=lambda item: item[1]):
            obj = place(rng, shape, colour, size, width, height, [other.box for other in placed])
            if obj is None:
                break
            placed.append(obj)
        else:
            return tuple(shuffled(rng, placed))
    raise RuntimeError(f"{len(composition)} objects do not fit into {width} x {height} pixels")


def _draw_sizes(rng: np.random.Generator, number: int) -> list[str]:
    sizes = [str(size) for size in rng.choice(list(words.SIZES), size=number)]
    large = [index for index, size in enumerate(sizes) if size == "large"]
    for index in large[words.MAX_LARGE[number] :]:
        sizes[index] = "small"
    return sizes


def place(
    rng: np.random.Generator, shape: str, colour: str, size: str, width: int, height: int, taken: list[Box]
) -> SceneObject | None:
    """Returns an object at a random position that does not touch the boxes in ``taken``, or None if it does not fit."""
    unit = min(width, height)
    form = Form(
        shape,
        texture=words.TEXTURES[rng.integers(len(words.TEXTURES))],
        extent=unit * float(rng.uniform(*words.SIZES[size])),
        angle=float(rng.uniform(-0.15, 0.15)),
        texture_angle=float(rng.integers(4) * np.pi / 4 + rng.uniform(-0.1, 0.1)),
        texture_period=max(4.0, 0.075 * unit),
    )
    tones = words.COLOURS[colour]
    light = float(rng.uniform(0.94, 1.02))
    h, w = rasterise(form).coverage.shape
    for _ in range(40):
        x = int(rng.integers(GAP, width - w - GAP + 1))
        y = int(rng.integers(GAP, height - h - GAP + 1))
        box = (x, y, w, h)
        if all(are_apart(box, other, GAP) for other in taken):
            rgb, accent = _lit(tones.rgb, light), _lit(tones.accent, light)
            return SceneObject(shape, colour, form.texture, size, form, rgb, accent, box)
    return None


def are_apart(first: Box, second: Box, gap: int = 0) -> bool:
    """Returns True if there are at least ``gap`` pixels between two boxes."""
    (x, y, w, h), (left, top, width, height) = first, second
    beside = x + w + gap <= left or left + width + gap <= x
    return beside or y + h + gap <= top or top + height + gap <= y


def _lit(rgb: words.RGB, light: float) -> words.RGB:
    red, green, blue = (min(255, round(channel * light)) for channel in rgb)
    return red, green, blue
