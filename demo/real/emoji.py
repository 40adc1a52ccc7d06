"""Static emoji of two styles, with their English names and keywords from Unicode's CLDR.

Emoji with skin tones are skipped, because they are five more pictures of the same emoji, with names that differ in a single word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from demo.cutouts import Cutout
from demo.emoji import Annotation, Annotations, annotation_of, find_package, read_annotations, read_pictures, sign_of
from demo.real.concepts import PERSON, concept_of
from utils.errors import UserError

STYLES = {
    "emoji_google": ("emoji-datasource-google", "package/img/google/64/", ".png"),
    "emoji_fluent": ("lobehub-fluent-emoji-3d", "package/assets/", ".webp"),
}
"""For each source: the npm package, the folder of its pictures inside the package, and the suffix of the pictures."""

SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
MAX_KEYWORDS = 3


def read_english(packages: Path) -> Annotations:
    """Reads the English names and keywords of emoji. Keywords that only repeat the name are skipped.

    Raises:
        UserError: if a package is missing or damaged.
    """
    annotations = read_annotations(packages, ["en"])["en"]
    return {sign: Annotation(name, _other_keywords(name, words)) for sign, (name, words) in annotations.items()}


def _other_keywords(name: str, keywords: Iterable[str]) -> tuple[str, ...]:
    known = {*concept_of(name), PERSON}
    return tuple(word for word in keywords if not set(concept_of(word)) <= known)


def read_emoji(packages: Path, source: str, annotations: Annotations) -> tuple[list[Cutout], Counter[str]]:
    """Reads the emoji of a style that have a name, sorted by code points, and counts the skipped emoji by reason.

    Raises:
        UserError: if the package is missing or damaged.
    """
    package, folder, suffix = STYLES[source]
    path = find_package(packages, package)
    emoji: list[Cutout] = []
    skipped: Counter[str] = Counter()
    for code, content in read_pictures(path, folder, suffix):
        sign = sign_of(code)
        annotation = annotation_of(sign, annotations)
        if SKIN_TONES & {ord(character) for character in sign}:
            skipped["skin tone"] += 1
        elif annotation is None:
            skipped["no name"] += 1
        else:
            name, keywords = annotation
            key = " ".join(concept_of(name))
            emoji.append(Cutout(code, content, {"en": name}, key, keywords[:MAX_KEYWORDS]))
    if not emoji:
        raise UserError(
            f"none of the {suffix} pictures in {folder} has a name", where=path, remedy="pack the package again"
        )
    return sorted(emoji, key=lambda item: item.name), skipped
