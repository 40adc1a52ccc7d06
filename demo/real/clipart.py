"""Open Clip Art's pictures, with titles and keywords from the RDF of their SVG files.

The titles need cleaning. One title may stand for a whole collection ("Lemon SVG theme", 431 times): there, the name of the file
is the title. Others are in Italian or French: a title stays if more than half of its words are among those of the other sources.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from demo.cutouts import Cutout, UnusableCutoutError
from demo.real.concepts import concept_of, word_set
from utils.errors import UserError

LEFT_OUT = (
    "shapes/", "special/", "unsorted/", "logos/", "buttons/", "recreation/games/cards/", "recreation/religion/creation_day",
    "signs_and_symbols/led/", "signs_and_symbols/flags/signalflag", "computer/icons/hotel_icon",
)  # fmt: skip
"""Beginnings of paths of pictures that are drawn by a program, without a subject, or named by letters and numbers."""

THEME = re.compile(r"-theme(/|$)")
"""Folders of icon themes, whose pictures are named after programs and actions."""

COLLECTION = 5
"""A title of more pictures than that is the title of a collection."""

_GENERIC_WORDS = word_set(
    "icon icons sign signs symbol symbols shape shapes clip art clipart cliparts computer theme themes people "
    "animal animals mammal mammals tool tools food office sport sports map maps flag flags transport "
    "transportation recreation education plant plants science unsorted hash mapsym networksym musicstuff misc "
    "other various picture image logo advertising geography buildings building containers decorations "
    "electronics vehicle vehicles signs_and_symbols hotel united nations member day action number menu "
    "collection example"
)
GENERIC = frozenset(part for word in _GENERIC_WORDS for part in concept_of(word))
"""Words that name a folder of the package or a collection; a title or a keyword of these alone says nothing."""

NOISE = re.compile(
    r"\([^)]*\)|\bclip ?arts?\b|\bby .*|\biconset\b|- (rpg )?map elements?\b|- (body part|clothing)\b|\b(icon|symbol) (?=\w)|"
    r"\baiga\b|\bsvg\b|\b(left|right|front|side|rear) view\b|\d+",
    re.IGNORECASE,
)
ABBREVIATIONS = word_set("bw bb bwh aj elem rpg md")
"""Black and white, initials of authors, and other words of file names that say nothing about the picture."""

COMMON_KEYWORD = 4
"""A word among the keywords of so many pictures counts as English."""

NO_PLACES = word_set("semaphore signal building")
"""Words of titles among the flags that stand for no place."""

LINKED = re.compile(r"<(?:svg:)?image\b[^>]*?href=\"(?!data:)")
SHAPE = re.compile(
    r"<(?:svg:)?(?:path|rect|circle|ellipse|polygon|polyline|line|text|use)\b|<(?:svg:)?image\b[^>]*?href=\"data:"
)

MAX_TITLE_WORDS = 8
MAX_KEYWORDS = 3


def read_clipart(share: Path, english: Collection[str]) -> tuple[list[Cutout], Counter[str]]:
    """The pictures with a usable title, in the order of their files, and the numbers of the others, by reason.

    Args:
        share: the folder that holds ``openclipart/``.
        english: singular words of the other sources' texts.

    Raises:
        UserError: a package is missing.
    """
    root = share / "openclipart"
    for kind in ("png", "svg"):
        if not (root / kind).is_dir():
            raise UserError(
                f"{root / kind} is missing: apt install openclipart-{kind}, or dpkg-deb -x it into --packages DIR"
            )
    described = {}
    left_out: Counter[str] = Counter()
    for path in sorted((root / "svg").rglob("*.svg")):
        relative = PurePosixPath(path.relative_to(root / "svg").as_posix())
        if is_left_out(relative):
            left_out["folder without subjects"] += 1
        else:
            described[relative] = read_description(path)
    english = {*english, *common_words(about.keywords for about in described.values())}
    titles = Counter(about.title.casefold() for about in described.values())
    cutouts = []
    for relative, (title, keywords, authors, is_link) in described.items():
        if is_link:
            left_out["link to an image that is not there"] += 1
            continue
        if titles[title.casefold()] > COLLECTION or " - " in title:
            title = relative.stem
        try:
            name = clean_title(relative, without_authors(title, authors), english, is_map="map" in keywords)
        except UnusableCutoutError as error:
            left_out[str(error)] += 1
            continue
        picture = root / "png" / relative.with_suffix(".png")
        kept = clean_keywords(keywords, name, english)
        cutouts.append(Cutout(str(relative.with_suffix("")), picture, {"en": name}, " ".join(concept_of(name)), kept))
    return cutouts, left_out


def common_words(keywords: Iterable[Iterable[str]]) -> set[str]:
    """Singular words that are among the keywords of several pictures: most authors gave them in English."""
    counts = Counter(word for each in keywords for word in {part for keyword in each for part in concept_of(keyword)})
    return {word for word, count in counts.items() if count >= COMMON_KEYWORD}


def is_left_out(relative: PurePosixPath) -> bool:
    """Whether a picture is one of those that are left out by their folder or the beginning of their name."""
    return bool(THEME.search(relative.parent.as_posix())) or str(relative).startswith(LEFT_OUT)


class Description(NamedTuple):
    """Title, keywords and authors in an SVG file; empty where it has none. ``authors`` in lower case, one string.

    ``is_link``: it shows nothing but an image that the package does not hold; its PNG says that the image was not found.
    """

    title: str
    keywords: list[str]
    authors: str
    is_link: bool


def read_description(path: Path) -> Description:
    """The description of an SVG file as it stands there.

    The files are read as text: some are not well-formed.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    title = re.search(r"<dc:title[^>]*>(.*?)</dc:title>", text, re.DOTALL)  # those of creator and publisher follow
    keywords = [_plain(keyword) for keyword in re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", text, re.DOTALL)]
    authors = re.findall(r"<dc:creator[^>]*>(.*?)</dc:creator>", text, re.DOTALL)
    is_link = LINKED.search(text) is not None and SHAPE.search(text) is None
    return Description(_plain(title[1]) if title else "", keywords, _plain(" ".join(authors)).casefold(), is_link)


def without_authors(title: str, authors: str) -> str:
    """A title or a file's name without words of its authors' names, which may be cut off ("mouth_nicu_b_02")."""
    names = re.findall(r"[^\W\d_]+", authors)
    words = re.split(r"[\s_]+", title)
    kept = [word for word in words if len(word) < 4 or not any(name.startswith(word.casefold()) for name in names)]
    return " ".join(kept)


def _plain(text: str) -> str:
    unescaped = html.unescape(html.unescape(re.sub(r"<[^>]*>", " ", text)))  # some are escaped twice
    return " ".join(unescaped.split())


def clean_title(relative: PurePosixPath, title: str, english: Collection[str], *, is_map: bool = False) -> str:
    """A title in words; that of a flag or of a map of a place says so.

    Raises:
        UnusableCutoutError: the title has no words, too many, no subject, or is not English.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"[_\-+.,/]+", " ", NOISE.sub(" ", title.replace("_", " "))))
    words = [word for word in re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", spaced) if len(word) > 1 or word in "aA"]
    words = [word for word in words if word.casefold() not in ABBREVIATIONS]
    concept = concept_of(" ".join(words))
    if not concept:
        raise UnusableCutoutError("no title")
    if len(words) > MAX_TITLE_WORDS:
        raise UnusableCutoutError("long title")
    if "flags" in relative.parts or (is_map and "geography" in relative.parts):
        # Names of places are proper names in every language.
        bare = [word for word in words if word.casefold() not in ("flag", "map", "national", "of", "the")]
        if not bare or NO_PLACES & {word.casefold() for word in bare}:
            raise UnusableCutoutError("generic title")
        return f"{'map' if is_map else 'flag'} of {' '.join(bare).title()}"
    if set(concept) <= GENERIC:
        raise UnusableCutoutError("generic title")
    if sum(word in english for word in concept) * 2 <= len(concept):
        raise UnusableCutoutError("title not English")
    return " ".join(words).lower()


def clean_keywords(keywords: list[str], name: str, english: Collection[str]) -> tuple[str, ...]:
    """The keywords that are English and add something to the name."""
    said = {*concept_of(name), *GENERIC}
    kept: list[str] = []
    for keyword in keywords:
        words = concept_of(keyword.replace("_", " "))
        plain = re.fullmatch(r"[a-z_ ]+", keyword, re.IGNORECASE)
        if plain and words and all(word in english for word in words) and not set(words) <= said:
            kept.append(keyword.replace("_", " ").lower())
            said |= set(words)
    return tuple(kept[:MAX_KEYWORDS])
