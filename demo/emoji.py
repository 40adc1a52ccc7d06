"""``python -m demo.emoji``: makes clips from the animated Fluent emoji, with their names."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from PIL import Image

from dataset.media.encoded import FORMATS
from dataset.media.video import sample_frames
from dataset.prepare.folders import SPLITS, tally, write_records
from dataset.prepare.output_folder import OutputFolder
from demo.folder import LANGUAGES, FolderFlags, by_split, is_complete, train_tokenizer, write_clip
from utils.commands import call
from utils.errors import UserError
from utils.flags import read_by, whole_number
from utils.progress import progress_bar

ANIMATIONS = "lobehub-fluent-emoji-anim-1"
NAME_PACKAGES = {"cldr-annotations-full": "annotations", "cldr-annotations-derived-full": "annotationsDerived"}
"""npm packages with the names of emoji, and the folder inside each package that contains the names. The names are from Unicode's
Common Locale Data Repository (CLDR)."""

FACTS = "emoji.json"
OWNED = (*(f"{split}.jsonl" for split in SPLITS), "frames", "tokenizer")
VARIATION = "\ufe0f"
"""Variation selector that requests a coloured image; CLDR omits it from most characters."""

DATA_VERSION = 1
"""Version number, increased when the same arguments give different images or texts."""


class Annotation(NamedTuple):
    """The name and the keywords of an emoji in a language."""

    name: str
    keywords: tuple[str, ...]


Annotations = dict[str, Annotation]
"""The annotation of each emoji."""


class Emoji(NamedTuple):
    """An animated emoji: its code points in hexadecimal, its names by language (English always exists), and its WebP file."""

    code: str
    names: dict[str, str]
    content: bytes


def find_package(folder: Path, name: str) -> Path:
    """Returns the .tgz file of a package, with the highest version if there are several.

    Raises:
        UserError: if the package is missing.
    """
    archives = sorted(
        folder.glob(f"{name}-[0-9]*.tgz"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)]
    )
    if not archives:
        npm_name = name.replace("lobehub-", "@lobehub/", 1)
        raise UserError(f"{folder} has no {name}-*.tgz: run `npm pack {npm_name}` there, or use another --packages DIR")
    return archives[-1]


def read_annotations(packages: Path, languages: Sequence[str]) -> dict[str, Annotations]:
    """Reads the annotations in each language from both CLDR packages.

    Raises:
        UserError: if a package is missing or damaged.
    """
    annotations: dict[str, Annotations] = {language: {} for language in languages}
    for package, inside in NAME_PACKAGES.items():
        path = find_package(packages, package)
        try:
            with tarfile.open(path) as tar:
                for language in languages:
                    member = tar.extractfile(f"package/{inside}/{language}/annotations.json")
                    assert member is not None
                    for sign, annotation in json.load(member)[inside]["annotations"].items():
                        if annotation.get("tts") and annotation["tts"][0]:
                            name, keywords = annotation["tts"][0], tuple(annotation.get("default", []))
                            if not all(isinstance(text, str) for text in (name, *keywords)):
                                raise TypeError(f"the annotation of {sign!r} contains values that are not text")
                            annotations[language][sign] = Annotation(name, keywords)
        except (OSError, KeyError, ValueError, TypeError, EOFError, AssertionError, tarfile.TarError) as error:
            raise UserError(
                f"not a complete package of CLDR's names ({error})", where=path, remedy="pack it again"
            ) from None
    return annotations


def annotation_of(sign: str, annotations: Annotations) -> Annotation | None:
    """Returns the annotation of an emoji, which CLDR may list without its variation selectors."""
    return annotations.get(sign) or annotations.get(sign.replace(VARIATION, ""))


def sign_of(code: str) -> str:
    """Returns the characters of a file name that consists of hexadecimal code points, or "" for other file names."""
    try:
        return "".join(chr(int(point, 16)) for point in code.split("-"))
    except (ValueError, OverflowError):
        return ""


def read_pictures(path: Path, folder: str, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Yields the file name without suffix, and the content, of each picture in a folder of a package.

    Raises:
        UserError: if the package is damaged.
    """
    try:
        with tarfile.open(path) as tar:
            for entry in tar:
                if entry.name.startswith(folder) and entry.name.endswith(suffix):
                    member = tar.extractfile(entry)
                    if member is not None:
                        yield Path(entry.name).stem, member.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"not a complete package ({error})", where=path, remedy="pack it again") from None


def read_animations(packages: Path) -> tuple[list[Emoji], Counter[str]]:
    """Reads the animated emoji with an English name, sorted by code points, and counts the skipped emoji by reason.

    Raises:
        UserError: if a package is missing or damaged.
    """
    annotations = read_annotations(packages, LANGUAGES)
    animated: list[Emoji] = []
    skipped: Counter[str] = Counter()
    for code, content in read_pictures(find_package(packages, ANIMATIONS), "package/", ".webp"):
        found = {language: annotation_of(sign_of(code), known) for language, known in annotations.items()}
        names = {language: annotation.name for language, annotation in found.items() if annotation}
        if not is_animated(content):
            skipped["still picture"] += 1
        elif "en" not in names:
            skipped["no name"] += 1
        else:
            animated.append(Emoji(code, names, content))
    return sorted(animated, key=lambda item: item.code), skipped


def is_animated(content: bytes) -> bool:
    """Returns True if the header of a WebP file has the animation flag. The file is not decoded."""
    return content[:4] == b"RIFF" and content[12:16] == b"VP8X" and bool(content[20] & 2)


def draw_frames(content: bytes, side: int, frames: int) -> list[Image.Image]:
    """Draws evenly spaced frames of an animation on a white background. If the animation has fewer than ``frames`` frames, draws
    all of them."""
    drawn = []
    with Image.open(io.BytesIO(content), formats=FORMATS) as animation:
        count = int(getattr(animation, "n_frames", 1))
        for number in sample_frames(count, min(frames, count)):
            animation.seek(number)
            image = animation.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
            canvas = Image.new("RGBA", image.size, "white")
            canvas.alpha_composite(image)
            drawn.append(canvas.convert("RGB"))
    return drawn


def emoji(
    *,
    output: FolderFlags,
    packages: Path,
    side: Annotated[int, read_by(whole_number(16, 256))] = 96,
    frames: Annotated[int, read_by(whole_number(1, 100))] = 8,
    vocab_size: Annotated[int, read_by(whole_number(32, 1_000_000))] = 800,
) -> int:
    """Make clips from the animated Fluent emoji, with their names.

    --packages is the folder in which you ran this command (it downloads three .tgz files, 176 MB; they are not unpacked):

        npm pack @lobehub/fluent-emoji-anim-1 cldr-annotations-full cldr-annotations-derived-full

    Each animated emoji (MIT) becomes a JSON list of base64 JPEGs, which are evenly spaced frames on a white background. Its names
    in six languages are from Unicode's CLDR (Unicode licence). The name determines the split. The five skin tones of an emoji
    have five names, so training may have seen a large part of a held-out name, but never all of it. Emoji that are not animated
    are skipped.

    Args:
        packages: folder with the three .tgz files.
        side: side of a frame in pixels.
        frames: number of frames per clip.
        vocab_size: maximum number of entries of the tokenizer.

    Examples:
        python -m demo.emoji --packages packages --out data/emoji
    """
    archives = [find_package(packages, name).name for name in (*NAME_PACKAGES, ANIMATIONS)]
    arguments = {"packages": archives, "side": side, "frames": frames, "vocab_size": vocab_size, "making": DATA_VERSION}
    folder = OutputFolder(output.out, FACTS, arguments, OWNED, output.overwrite)
    if is_complete(folder):
        return 0
    animated, skipped = read_animations(packages)
    splits = by_split(animated, lambda item: item.names["en"], f"animated emoji in {packages}")
    with folder, progress_bar(total=len(animated), desc="reading emoji", unit="clip") as bar:
        names = [item.names["en"] for item in splits["train"]]
        vocabulary = train_tokenizer(names, folder.out / "tokenizer", vocab_size)
        clips = {}
        for split, members in splits.items():
            records = []
            for item in members:
                bar.update()
                try:
                    images = draw_frames(item.content, side, frames)
                except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
                    skipped["unreadable picture"] += 1
                    continue
                video = write_clip(folder.out, item.code, images)
                records.append({"video": video, "caption": item.names, "image_id": item.code})
            clips[split] = write_records(folder.out / f"{split}.jsonl", records)
        reasons = dict(sorted(skipped.items()))
        folder.close({"clips": clips, "vocabulary": vocabulary, "skipped": reasons})
    sys.stdout.write(f"{folder.out}: {tally(clips)} clips; {vocabulary} word pieces; skipped: {tally(reasons)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(emoji, sys.argv[1:], "python -m demo.emoji"))
