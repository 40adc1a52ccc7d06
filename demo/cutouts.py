"""Cut-outs of any source: reading them, and placing several on a background with their exact boxes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset.media.encoded import FORMATS
from demo.folder import LANGUAGES
from demo.scenes.backgrounds import paint_background, pick_background
from demo.scenes.compose import Box, apart
from demo.scenes.vocabulary import RGB

MAX_PIXELS = 4096 * 4096
MIN_SIDE = 4
MAX_ENLARGEMENT = 2.0
VISIBLE_ALPHA = 32
"""Fainter pixels of a cut-out are not drawn, so that a box is tight around what can be seen."""

MAX_JOINED_WORDS = 24
"""Words of a region image's whole caption, at most, in languages that put spaces between words."""


@dataclass(frozen=True)
class Cutout:
    """A usable cut-out: ``name`` identifies it in its source, ``content`` is its file or the bytes of one, ``captions`` by
    language (English always). Cut-outs of equal ``key`` belong into one split, and never beside each other into an image."""

    name: str
    content: Path | bytes
    captions: Mapping[str, str]
    key: str
    keywords: tuple[str, ...] = ()


class PlacedCutout(NamedTuple):
    """A cut-out in an image: its visible pixels (RGBA), as large as its box."""

    cutout: Cutout
    pixels: Image.Image
    box: Box


class UnusableCutoutError(ValueError):
    """The reason why a cut-out is left out; the message is a kind to count, such as "unreadable picture"."""


def read_cutout(content: Path | bytes) -> Image.Image:
    """The visible part of a picture, RGBA.

    Raises:
        UnusableCutoutError: it cannot be read, is far too large or too small, or is invisible.
    """
    try:
        with Image.open(content if isinstance(content, Path) else io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusableCutoutError("picture too large")
            if min(image.size) < MIN_SIDE:
                raise UnusableCutoutError("picture too small")
            pixels = image.convert("RGBA")
    except UnusableCutoutError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UnusableCutoutError("unreadable picture") from None
    visible = _visible_box(pixels)
    if visible is None:
        raise UnusableCutoutError("invisible picture")
    return pixels.crop(visible)


def place_cutouts(rng: np.random.Generator, members: Sequence[Cutout], side: int) -> list[PlacedCutout]:
    """One to four of ``members``, with different keys, and boxes that do not overlap in a square of ``side`` pixels."""
    wanted = int(rng.integers(1, 5))
    placed: list[PlacedCutout] = []
    for pick in rng.permutation(len(members))[:12]:
        cutout = members[pick]
        if len(placed) == wanted or cutout.key in {other.cutout.key for other in placed}:
            continue
        share = rng.uniform(0.45, 0.8) if wanted == 1 else rng.uniform(0.3, 0.5)
        pixels = resized(read_cutout(cutout.content), int(side * share))
        w, h = pixels.size
        for _ in range(30):
            x, y = int(rng.integers(0, side - w + 1)), int(rng.integers(0, side - h + 1))
            if all(apart((x, y, w, h), other.box) for other in placed):
                placed.append(PlacedCutout(cutout, pixels, (x, y, w, h)))
                break
    return placed


def resized(pixels: Image.Image, longest: int) -> Image.Image:
    """The cut-out at ``longest`` pixels (less where that would enlarge it much), faint pixels cleared, cut to what is visible."""
    scale = min(longest / max(pixels.size), MAX_ENLARGEMENT)
    width, height = (max(MIN_SIDE, min(longest, round(length * scale))) for length in pixels.size)
    small = pixels.resize((width, height), Image.Resampling.LANCZOS)
    small.putalpha(small.getchannel("A").point([0] * VISIBLE_ALPHA + list(range(VISIBLE_ALPHA, 256))))
    return small.crop(_visible_box(small) or (0, 0, width, height))


def mean_colour(pixels: Image.Image) -> RGB:
    """The mean of a cut-out's visible pixels."""
    values = np.asarray(pixels)
    red, green, blue = values[values[..., 3] >= VISIBLE_ALPHA][:, :3].mean(axis=0)
    return int(red), int(green), int(blue)


def draw_cutouts(path: Path, rng: np.random.Generator, width: int, height: int, placed: Sequence[PlacedCutout]) -> None:
    """Write an image of cut-outs on a soft background that keeps away from their mean colours."""
    painted = paint_background(pick_background(rng, [mean_colour(pixels) for _, pixels, _ in placed]), width, height)
    canvas = Image.fromarray(np.clip(np.rint(painted), 0, 255).astype(np.uint8))
    for _, pixels, (x, y, _, _) in placed:
        canvas.paste(pixels, (x, y), pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, quality=92)


def joined_captions(captions: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """One caption for several cut-outs, in each language that all of them have; empty where it would be too long."""
    joined: dict[str, str] = {}
    for language in LANGUAGES:
        if all(language in texts for texts in captions):
            stop, gap = ("。", "") if language in ("zh", "ja") else (".", " ")
            joined[language] = gap.join(
                texts[language] if texts[language][-1] in ".!?。！？" else texts[language] + stop for texts in captions
            )
    return joined if len(joined.get("en", "").split()) <= MAX_JOINED_WORDS else {}


def _visible_box(pixels: Image.Image) -> tuple[int, int, int, int] | None:
    return pixels.getchannel("A").point([0] * VISIBLE_ALPHA + [255] * (256 - VISIBLE_ALPHA)).getbbox()
