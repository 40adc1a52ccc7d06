"""Static emoji of two styles, with their English names and keywords from Unicode's CLDR.

Emoji with skin tones are skipped, because they are five more pictures of the same emoji, with names that differ in a single word.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

from demo.cutouts import Cutout
from demo.emoji import NAME_PACKAGES, VARIATION, find_package
from demo.real.concepts import PERSON, concept_of
from utils.errors import UserError

STYLES = {
    "emoji_google": ("emoji-datasource-google", "package/img/google/64/", ".png"),
    "emoji_fluent": ("lobehub-fluent-emoji-3d", "package/assets/", ".webp"),
}
"""For each source: the npm package, the folder of its pictures inside the package, and the suffix of the pictures."""

SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
MAX_KEYWORDS = 3

Annotations = dict[str, tuple[str, tuple[str, ...]]]
"""Name and keywords of each emoji."""


def read_annotations(packages: Path) -> Annotations:
    """Reads English names and keywords from both CLDR packages. Keywords that only repeat the name are skipped.

    Raises:
        UserError: if a package is missing or damaged.
    """
    annotations: Annotations = {}
    for package, inside in NAME_PACKAGES.items():
        path = find_package(packages, package)
        try:
            with tarfile.open(path) as tar:
                member = tar.extractfile(f"package/{inside}/en/annotations.json")
                assert member is not None
                for sign, annotation in json.load(member)[inside]["annotations"].items():
                    if annotation.get("tts"):
                        annotations[sign] = _name_and_keywords(annotation)
        except (OSError, KeyError, ValueError, TypeError, EOFError, AssertionError, tarfile.TarError) as error:
            raise UserError(
                f"not a complete package of CLDR's names ({error})", where=path, remedy="pack it again"
            ) from None
    return annotations


def _name_and_keywords(annotation: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    name = annotation["tts"][0]
    known = {*concept_of(name), PERSON}
    keywords = [word for word in annotation.get("default", []) if not set(concept_of(word)) <= known]
    return name, tuple(keywords)


def read_emoji(packages: Path, source: str, annotations: Annotations) -> tuple[list[Cutout], Counter[str]]:
    """Reads the emoji of a style that have a name, sorted by code points, and counts the skipped emoji by reason.

    Raises:
        UserError: if the package is missing or damaged.
    """
    package, folder, suffix = STYLES[source]
    path = find_package(packages, package)
    emoji: list[Cutout] = []
    skipped: Counter[str] = Counter()
    try:
        with tarfile.open(path) as tar:
            for entry in tar:
                if not (entry.name.startswith(folder) and entry.name.endswith(suffix)):
                    continue
                member = tar.extractfile(entry)
                code = Path(entry.name).stem
                sign = sign_of(code)
                if SKIN_TONES & {ord(character) for character in sign}:
                    skipped["skin tone"] += 1
                    continue
                named = annotations.get(sign) or annotations.get(sign.replace(VARIATION, ""))
                if member is None or named is None:
                    skipped["no name"] += 1
                    continue
                name, keywords = named
                emoji.append(
                    Cutout(code, member.read(), {"en": name}, " ".join(concept_of(name)), keywords[:MAX_KEYWORDS])
                )
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"not a complete package ({error})", where=path, remedy="pack it again") from None
    if not emoji:
        raise UserError(
            f"none of the {suffix} pictures in {folder} has a name", where=path, remedy="pack the package again"
        )
    return sorted(emoji, key=lambda item: item.name), skipped


def sign_of(code: str) -> str:
    """Returns the characters of a file name that consists of hexadecimal code points, or "" for other file names."""
    try:
        return "".join(chr(int(point, 16)) for point in code.replace("_", "-").split("-"))
    except (ValueError, OverflowError):
        return ""
