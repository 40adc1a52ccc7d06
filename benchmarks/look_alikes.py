"""Measures how many copies of photographs ``run.py leaks --perceptual`` finds: ``python -m benchmarks.look_alikes FOLDER``."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageEnhance

from dataset.look_alikes import MIN_CORRELATION, WARN_CORRELATION, look_of, similar
from utils.commands import call
from utils.flags import Positive
from utils.suffixes import IMAGE_SUFFIXES

CROPS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Fractions of the area that crops keep."""


def copies(image: Image.Image, rng: random.Random) -> Iterator[tuple[str, Image.Image]]:
    """Yields copies of a photograph with their names. Crops have random positions and are saved as JPEG."""
    width, height = image.size
    for share in CROPS:
        w, h = (round(side * share**0.5) for side in image.size)
        x, y = rng.randint(0, width - w), rng.randint(0, height - h)
        yield f"crop {share:.0%}", _jpeg(image.crop((x, y, x + w, y + h)), 85)
    yield "half size", image.resize((width // 2, height // 2))
    yield "JPEG 30", _jpeg(image, 30)
    yield "grey", image.convert("L")
    yield "brightness +25%", ImageEnhance.Brightness(image).enhance(1.25)


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream, formats=("JPEG",))


def _photograph(path: Path) -> Image.Image:
    with Image.open(path, formats=("JPEG", "PNG")) as stored:
        image = stored.convert("RGB")
    image.thumbnail((512, 512))
    return image


def main(folder: Path, /, *, photographs: Positive = 300, copied: Positive = 60) -> int:
    """Measures how many copies of photographs run.py leaks --perceptual finds.

    FOLDER must contain 300 or more photographs of different subjects. Copies of some photographs (crops, half the size,
    recompressed, grey, brighter) are compared with all photographs. For both thresholds of dataset.look_alikes, the benchmark
    prints the fraction of copies that are matched with their original, and the number of false alarms (pairs of different
    photographs that are matched).

    Args:
        folder: folder of the photographs.
        photographs: number of photographs to compare.
        copied: number of photographs to copy.

    Examples:
        python -m benchmarks.look_alikes FOLDER
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    rng = random.Random(0)
    chosen = [_photograph(path) for path in rng.sample(files, min(photographs, len(files)))]
    made = [(n, name, copy) for n, image in enumerate(chosen[:copied]) for name, copy in copies(image, rng)]
    names = list(dict.fromkeys(name for _, name, _ in made))
    originals, looks = [look_of(image) for image in chosen], [look_of(copy) for _, _, copy in made]
    pairs = len(looks) * (len(originals) - 1)
    sys.stdout.write(f"| found | {' | '.join(names)} | false alarms in {pairs:,} pairs |\n")
    for threshold in (MIN_CORRELATION, WARN_CORRELATION):
        found = list(similar(looks, originals, threshold))
        hits = [made[copy][1] for copy, original in found if made[copy][0] == original]
        shares = " | ".join(f"{hits.count(name) / min(copied, len(chosen)):.2f}" for name in names)
        sys.stdout.write(f"| {threshold} | {shares} | {len(found) - len(hits)} |\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.look_alikes"))
