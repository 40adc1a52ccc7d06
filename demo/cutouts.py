"""Reads cut-outs, which are pictures of one subject with a transparent background, and draws one or several of them on a
background, with exact boxes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dataset.media.encoded import FORMATS
from demo.folder import LANGUAGES
from demo.scenes.backgrounds import paint_background, pick_background
from demo.scenes.compose import Box, are_apart
from demo.scenes.vocabulary import RGB

MAX_PIXELS = 4096 * 4096
MIN_SIDE = 4
MAX_ENLARGEMENT = 2.0
VISIBLE_ALPHA = 32
"""Minimum alpha of drawn pixels. Fainter pixels are not drawn, so that boxes are tight around the visible pixels."""

MAX_JOINED_WORDS = 24
"""Maximum number of English words in the caption of an image with several cut-outs."""


@dataclass(frozen=True)
class Cutout:
    """A usable cut-out.

    Attributes:
        name: identifies the cut-out in its source.
        content: path of the image file, or its bytes.
        captions: captions by language; English always exists.
        key: cut-outs with equal keys are in the same split, and never in the same image.
        keywords: additional words for captions.
    """

    name: str
    content: Path | bytes
    captions: Mapping[str, str]
    key: str
    keywords: tuple[str, ...] = ()


class PlacedCutout(NamedTuple):
    """A cut-out in an image: its visible pixels (RGBA), and its box, which has the same size."""

    cutout: Cutout
    pixels: Image.Image
    box: Box


class UnusableCutoutError(ValueError):
    """A cut-out cannot be used and is skipped. The message is the reason, such as "unreadable picture"; skipped cut-outs are
    counted by reason."""


def read_cutout(content: Path | bytes) -> Image.Image:
    """Reads a picture as RGBA, and crops it to its visible part.

    Raises:
        UnusableCutoutError: if the picture cannot be read, is too large or too small, or is invisible.
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
    """Places one to four of ``members`` with different keys in a square of ``side`` pixels, so that their boxes do not
    overlap."""
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
            if all(are_apart((x, y, w, h), other.box) for other in placed):
                placed.append(PlacedCutout(cutout, pixels, (x, y, w, h)))
                break
    return placed


def resized(pixels: Image.Image, longest: int) -> Image.Image:
    """Resizes a cut-out to a longer side of ``longest`` pixels, clears faint pixels, and crops it to the visible part.

    The result is smaller if the cut-out would be enlarged too much.
    """
    scale = min(longest / max(pixels.size), MAX_ENLARGEMENT)
    width, height = (max(MIN_SIDE, min(longest, round(length * scale))) for length in pixels.size)
    small = pixels.resize((width, height), Image.Resampling.LANCZOS)
    small.putalpha(small.getchannel("A").point([0] * VISIBLE_ALPHA + list(range(VISIBLE_ALPHA, 256))))
    return small.crop(_visible_box(small) or (0, 0, width, height))


def mean_colour(pixels: Image.Image) -> RGB:
    """Returns the mean colour of the visible pixels of a cut-out."""
    values = np.asarray(pixels)
    red, green, blue = values[values[..., 3] >= VISIBLE_ALPHA][:, :3].mean(axis=0)
    return int(red), int(green), int(blue)


def draw_cutouts(path: Path, rng: np.random.Generator, width: int, height: int, placed: Sequence[PlacedCutout]) -> None:
    """Writes an image of cut-outs on a soft background whose colours differ from the mean colours of the cut-outs."""
    painted = paint_background(pick_background(rng, [mean_colour(pixels) for _, pixels, _ in placed]), width, height)
    canvas = Image.fromarray(np.clip(np.rint(painted), 0, 255).astype(np.uint8))
    for _, pixels, (x, y, _, _) in placed:
        canvas.paste(pixels, (x, y), pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, quality=92)


def draw_composite(
    out: Path,
    name: str,
    rng: np.random.Generator,
    members: Sequence[Cutout],
    side: int,
    text_of: Callable[[Mapping[str, str]], Any],
    **values: Any,
) -> dict[str, Any]:
    """Writes ``out/images/{name}.jpg``, a square image of one to four of ``members``, and returns its record with their boxes and
    with the additional ``values``. ``text_of`` returns the text of a record for a caption by language."""
    placed = place_cutouts(rng, members, side)
    record: dict[str, Any] = {"id": name, "image": f"images/{name}.jpg", **values}
    draw_cutouts(out / record["image"], rng, side, side, placed)
    whole = joined_captions([cutout.captions for cutout, _, _ in placed])
    if whole:
        record["caption"] = text_of(whole)
    record["elems"] = [
        {"bb": list(box), "caption": text_of(cutout.captions), "grain": "object"} for cutout, _, box in placed
    ]
    return record


def joined_captions(captions: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Joins the captions of several cut-outs, in each language for which all cut-outs have a caption. Returns {} if the English
    caption has more than :data:`MAX_JOINED_WORDS` words."""
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
