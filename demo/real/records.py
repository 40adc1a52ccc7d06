"""Writes the images and records of a collection: single cut-outs, composites, and maps, in the format of docs/own_data.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset.media.encoded import FORMATS
from dataset.prepare.folders import SPLITS
from demo.cutouts import Cutout, draw_composite, mean_colour, read_cutout, resized
from demo.real.collect import texts_of
from demo.real.maps import Map
from utils.cores import usable_cores

WHITE, DARK = (255, 255, 255), (64, 64, 64)
BRIGHT = 215
"""If the mean colour of a cut-out is brighter in all channels, the background is dark grey, because the cut-out would be
invisible on white."""


def single_records(
    out: Path, source: str, split: str, members: Sequence[Cutout], side: int, bar: tqdm[Any]
) -> Iterator[dict[str, Any]]:
    """Draws each cut-out in the middle of a white or dark grey square, and yields its record. A held-out record has only one
    text, the name."""

    def draw(number: int, cutout: Cutout) -> dict[str, Any]:
        image = f"images/{split}/{source}/{number:04d}.jpg"
        draw_single(out / image, cutout, side)
        texts = texts_of(cutout) if split == "train" else [cutout.captions["en"]]
        caption = texts[0] if len(texts) == 1 else texts
        return {"id": f"{source}/{cutout.name}", "image": image, "caption": caption, "source": source}

    return _drawn(draw, enumerate(members), bar)


def _drawn(
    draw: Callable[..., dict[str, Any]], arguments: Iterable[tuple[Any, ...]], bar: tqdm[Any]
) -> Iterator[dict[str, Any]]:
    """Yields the records that ``draw`` returns for each of its arguments, in order."""
    # Threads suffice, because Pillow decodes, resizes and encodes outside the global interpreter lock.
    with ThreadPoolExecutor(usable_cores()) as pool:
        for record in pool.map(lambda given: draw(*given), arguments):
            yield record
            bar.update()


def name_of(record: Mapping[str, Any]) -> str:
    """Returns the name in a record from :func:`single_records`. The name is the record's first text."""
    caption: str | list[str] = record["caption"]
    return caption if isinstance(caption, str) else caption[0]


def draw_single(path: Path, cutout: Cutout, side: int) -> None:
    """Writes a square image of at most ``side`` pixels with a margin of 1/20 of ``side``. A small cut-out becomes a small
    image."""
    margin = max(2, side // 20)
    pixels = resized(read_cutout(cutout.content), side - 2 * margin)
    whole = max(pixels.size) + 2 * margin
    tone = DARK if min(mean_colour(pixels)) > BRIGHT else WHITE
    canvas = Image.new("RGB", (whole, whole), tone)
    canvas.paste(pixels, ((whole - pixels.width) // 2, (whole - pixels.height) // 2), pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, quality=92)


def composite_records(
    out: Path, split: str, sources: Mapping[str, Sequence[Cutout]], count: int, seed: int, side: int, bar: tqdm[Any]
) -> Iterator[dict[str, Any]]:
    """Draws ``count`` images of one to four cut-outs on a soft background, and yields records with the cut-outs' boxes."""
    members = balanced(sources)

    def draw(number: int) -> dict[str, Any]:
        rng = np.random.default_rng([seed, SPLITS.index(split), number])
        name = f"{split}/composites/{number:05d}"
        return draw_composite(out, name, rng, members, side, text_of=itemgetter("en"), source="composites")

    return _drawn(draw, ((number,) for number in range(count)), bar)


def balanced(sources: Mapping[str, Sequence[Cutout]]) -> list[Cutout]:
    """Returns the cut-outs of all sources. Cut-outs of smaller sources are repeated, so that all sources are equally likely."""
    longest = max(map(len, sources.values()))
    return [members[index % len(members)] for members in sources.values() if members for index in range(longest)]


def map_records(out: Path, split: str, maps: Sequence[Map], bar: tqdm[Any]) -> Iterator[dict[str, Any]]:
    """Copies each map as PNG without scaling, and yields a record with the boxes of its divisions. The colour of a division is
    its attribute."""
    for number, found in enumerate(maps):
        image = f"images/{split}/maps/{number:03d}.png"
        (out / image).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(found.path, formats=FORMATS) as picture:
            picture.convert("RGB").save(out / image)
        bar.update()
        elements = [
            {"bb": list(division.box), "caption": division.name, "attributes": [division.colour], "grain": "region"}
            for division in found.divisions
        ]
        caption = {"caption": found.caption} if found.captioned else {}
        yield {"id": f"maps/{found.path.stem}", "image": image, **caption, "source": "maps", "elems": elements}
