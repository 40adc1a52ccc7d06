"""``python -m demo.stamps``: makes records from the cut-outs ("stamps") in Debian's package tuxpaint-stamps-default."""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from tqdm import tqdm

from dataset.prepare.folders import SPLITS, tally, write_records
from dataset.prepare.output_folder import OutputFolder
from demo.cutouts import (
    Cutout,
    PlacedCutout,
    UnusableCutoutError,
    draw_composite,
    draw_cutouts,
    read_cutout,
    resized,
)
from demo.folder import LANGUAGES, FolderFlags, Seed, by_split, is_complete, train_tokenizer
from utils.commands import call
from utils.errors import UserError
from utils.flags import SEVERAL, read_by, whole_number
from utils.progress import progress_bar

DEBIAN_FOLDER = Path("/usr/share/tuxpaint/stamps")
SKIPPED_FOLDER = "symbols"
PACKAGE_CODES = {"zh_CN": "zh"}
"""Language codes in the package that differ from ours."""

FACTS = "stamps.json"
OWNED = (*(f"{kind}{split}.jsonl" for kind in ("", "regions_") for split in SPLITS), "images", "tokenizer")
DATA_VERSION = 1
"""Version number, increased when the same arguments give different images or texts."""

logger = logging.getLogger(__name__)


def find_stamps(folder: Path) -> tuple[list[Cutout], Counter[str]]:
    """Returns the usable stamps below ``folder``, sorted by name, and the number of skipped stamps by reason.

    Raises:
        UserError: if the folder is missing or has no usable stamp.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: apt install tuxpaint-stamps-default, or pass --stamps DIR")
    usable: list[Cutout] = []
    skipped: Counter[str] = Counter()
    for path in sorted(folder.rglob("*.png")):
        relative = path.relative_to(folder)
        try:
            if relative.parts[0] == SKIPPED_FOLDER:
                raise UnusableCutoutError("symbol")
            captions = read_captions(path.with_suffix(".txt"))
            read_cutout(path)
        except UnusableCutoutError as error:
            skipped[str(error)] += 1
            logger.debug("%s: %s", path, error)
        else:
            usable.append(Cutout(relative.with_suffix("").as_posix(), path, captions, caption_key(captions["en"])))
    if not usable:
        reasons = tally(skipped) if skipped else "no PNG file"
        raise UserError(f"{folder} contains no usable stamp ({reasons})", remedy="use another --stamps DIR")
    return usable, skipped


def read_captions(path: Path) -> dict[str, str]:
    """Reads a stamp's captions by language from its text file: line 1 is English, the other lines are ``LANG.utf8=text``.

    Languages whose caption is missing or empty are left out.

    Raises:
        UnusableCutoutError: if the file is missing, is not UTF-8, or has no English caption.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UnusableCutoutError("no text") from None
    except (OSError, UnicodeDecodeError):
        raise UnusableCutoutError("unreadable text") from None
    captions = {"en": " ".join(lines[0].split())} if lines else {}
    if not caption_key(captions.get("en", "")):
        raise UnusableCutoutError("empty caption")
    for line in lines[1:]:
        code, _, text = line.partition("=")
        code = code.strip().removesuffix(".utf8")
        language = PACKAGE_CODES.get(code, code)
        if language in LANGUAGES and text.strip():
            captions.setdefault(language, " ".join(text.split()))
    return {language: captions[language] for language in LANGUAGES if language in captions}


def caption_key(caption: str) -> str:
    """Returns a caption without case, punctuation and repeated spaces."""
    return " ".join(re.sub(r"[\W_]+", " ", caption.casefold()).split())


def split_stamps(usable: Sequence[Cutout], skipped: Counter[str]) -> dict[str, list[Cutout]]:
    """Groups stamps by split. In val and test, only the first of several stamps with the same English caption is kept; the others
    are counted.

    Raises:
        UserError: if a split would be empty.
    """
    splits = by_split(usable, lambda stamp: stamp.key, "usable stamps")
    for split in ("val", "test"):
        first: dict[str, Cutout] = {}
        for stamp in splits[split]:
            first.setdefault(stamp.key, stamp)
        if len(first) < len(splits[split]):
            skipped[f"same caption in {split}"] = len(splits[split]) - len(first)
        splits[split] = list(first.values())
    return splits


def _images(
    out: Path, split: str, members: Sequence[Cutout], seed: int, side: int, bar: tqdm[Any]
) -> Iterator[dict[str, Any]]:
    margin = max(2, side // 20)
    for number, stamp in enumerate(members):
        rng = np.random.default_rng([seed, SPLITS.index(split), number, 0])
        cutout = resized(read_cutout(stamp.content), side - 2 * margin)
        # The longer side is at most twice the shorter side, so a long object such as a pencil gets some margin.
        width = max(cutout.width, cutout.height // 2) + 2 * margin
        height = max(cutout.height, cutout.width // 2) + 2 * margin
        box = ((width - cutout.width) // 2, (height - cutout.height) // 2, *cutout.size)
        image = f"images/{split}/{number:04d}.jpg"
        draw_cutouts(out / image, rng, width, height, [PlacedCutout(stamp, cutout, box)])
        bar.update()
        yield {"id": f"{split}/{stamp.name}", "image": image, "caption": dict(stamp.captions)}


def _regions(
    out: Path, split: str, members: Sequence[Cutout], count: int, seed: int, side: int, bar: tqdm[Any]
) -> Iterator[dict[str, Any]]:
    for number in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), number, 1])
        yield draw_composite(out, f"regions_{split}/{number:05d}", rng, members, side, text_of=dict)
        bar.update()


def stamps(
    *,
    output: FolderFlags,
    stamps: Path = DEBIAN_FOLDER,
    seed: Seed = 0,
    side: Annotated[int, read_by(whole_number(64, 1024))] = 160,
    regions: Annotated[int, read_by(whole_number(1, 1_000_000))] = 2000,
    languages: Annotated[tuple[Literal["en", "de", "fr", "cs", "zh", "ja"], ...], SEVERAL] = ("en",),
    vocab_size: Annotated[int, read_by(whole_number(32, 1_000_000))] = 2000,
) -> int:
    """Make records from Debian's package tuxpaint-stamps-default.

    The package (GPL-2; you may install it, but do not redistribute it) contains photographed and drawn cut-outs, each with a
    caption in many languages. The command makes two kinds of records: images (one cut-out on a soft background, with its caption
    by language) and regions (one to four cut-outs next to each other, with their exact boxes). The split of a cut-out is the same
    for both kinds, and cut-outs with the same English caption are in the same split. The split depends only on the caption, not
    on the seed. Letters, digits and coins are skipped.

    The tokenizer is trained on the English captions of the training split; --languages en de fr adds more languages.

    Args:
        stamps: folder of the stamps.
        seed: seed of the backgrounds and of the layout of region images.
        side: longer side of an image in pixels.
        regions: number of training images with regions; validation and test each have a tenth of this number.
        languages: languages of the tokenizer.
        vocab_size: maximum number of entries of the tokenizer.

    Examples:
        python -m demo.stamps --out data/stamps
    """
    arguments = {
        "stamps": str(stamps), "seed": seed, "side": side, "regions": regions, "languages": list(languages),
        "vocab_size": vocab_size, "making": DATA_VERSION,
    }  # fmt: skip
    folder = OutputFolder(output.out, FACTS, arguments, OWNED, output.overwrite)
    if is_complete(folder):
        return 0
    usable, skipped = find_stamps(stamps)
    splits = split_stamps(usable, skipped)
    reasons = dict(sorted(skipped.items()))
    numbers = {"train": regions, "val": (regions + 9) // 10, "test": (regions + 9) // 10}
    total = sum(map(len, splits.values())) + sum(numbers.values())
    with folder, progress_bar(total=total, desc="placing stamps", unit="image") as bar:
        texts = [stamp.captions[name] for stamp in splits["train"] for name in languages if name in stamp.captions]
        vocabulary = train_tokenizer(texts, folder.out / "tokenizer", vocab_size)
        for split, members in splits.items():
            write_records(folder.out / f"{split}.jsonl", _images(folder.out, split, members, seed, side, bar))
            placed = _regions(folder.out, split, members, numbers[split], seed, side, bar)
            write_records(folder.out / f"regions_{split}.jsonl", placed)
        pictures = {split: len(members) for split, members in splits.items()}
        facts = {"pictures": pictures, "regions": numbers, "vocabulary": vocabulary, "skipped": reasons}
        folder.close(facts)
    sys.stdout.write(
        f"{folder.out}: {tally(pictures)} pictures; {tally(numbers)} region pictures; {vocabulary} word pieces; "
        f"skipped: {tally(reasons)}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(call(stamps, sys.argv[1:], "python -m demo.stamps"))
