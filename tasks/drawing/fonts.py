"""Measures, wraps and draws text in any writing system for which a font is installed.

Text is drawn in the font built into Pillow. For characters that this font lacks, the fonts installed in the usual folders are
searched; nothing is downloaded. A character that is missing from all fonts is drawn as an empty box.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path

from PIL import ImageDraw, ImageFont

from utils.files import expanded

logger = logging.getLogger(__name__)

FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "C:/Windows/Fonts",
)
MAX_FILES, MAX_FONTS = 5000, 100
"""Limits of the search: maximum number of files to list, and of fonts to open."""
MAX_CHARACTERS = 2000
"""Maximum number of characters of a text that are drawn. Tokenizers keep fewer."""

_SUFFIXES = (".ttf", ".otf", ".ttc")
_BROAD = ("cjk", "fallback", "wqy", "pingfang", "hiragino", "unicode", "dejavusans.", "notosans-", "unifont")
_NARROW = ("bold", "italic", "oblique", "mono", "serif", "light", "thin", "black", "condensed", "medium", "emoji")
_NOT_A_CHARACTER = "\U0010fffe"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Lettering:
    """Draws text in one font size.

    Args:
        size: size of the text in pixels.
        folders: folders to search for fonts when the built-in font lacks a character.
    """

    def __init__(self, size: int, folders: Sequence[str] = FONT_FOLDERS):
        self.size, self.folders = size, tuple(folders)
        self.line_height = round(size * 1.4)
        self.built_in: Font = ImageFont.load_default(size)
        self._fonts: dict[str, Font] = {}
        self._installed: list[Font] | None = None

    def width(self, text: str) -> float:
        """Returns the width of a line of ``text`` in pixels."""
        return sum(font.getlength(part) for font, part in self._runs(text))

    def wrap(self, text: str, width: float) -> list[str]:
        """Wraps the text into lines of at most ``width`` pixels. Lines break at spaces and between ideographs. A word is broken
        only if it is wider than a line."""
        lines, line = list[str](), ""
        for piece in _pieces(printable(text)):
            if not line or self.width(line + piece.rstrip()) <= width:
                line += piece
            else:
                lines.append(line.rstrip())
                line = piece
            while len(line) > 1 and self.width(line.rstrip()) > width:
                kept = self._fitting(line, width)
                lines.append(line[:kept])
                line = line[kept:]
        return [*lines, line.rstrip()] if line.strip() or not lines else lines

    def draw(self, canvas: ImageDraw.ImageDraw, at: tuple[float, float], text: str, fill: str) -> None:
        """Draws one line with its upper left corner at ``at``."""
        x, y = at
        baseline = y + round(self.size * 1.05)
        for font, part in self._runs(text):
            canvas.text((x, baseline), part, fill=fill, font=font, anchor="ls")
            x += font.getlength(part)

    def _fitting(self, text: str, width: float) -> int:
        """Returns the number of characters that fit on a line, at least one."""
        low, high = 1, len(text) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.width(text[:middle]) <= width else (low, middle - 1)
        return low

    def _runs(self, text: str) -> Iterator[tuple[Font, str]]:
        """Splits the text where the font changes. Spaces and combining marks stay with the preceding character."""
        run, font = "", self.built_in
        for character in text:
            stays = run and (character.isspace() or unicodedata.combining(character))
            wanted = font if stays else self._font_of(character)
            if wanted is not font and run:
                yield font, run
                run = ""
            run, font = run + character, wanted
        if run:
            yield font, run

    def _font_of(self, character: str) -> Font:
        if character not in self._fonts:
            self._fonts[character] = self._find(character)
        return self._fonts[character]

    def _find(self, character: str) -> Font:
        if character.isspace() or _has(self.built_in, character):
            return self.built_in
        if self._installed is None:
            self._installed = list(_opened(self.folders, self.size))
        font = next((font for font in self._installed if _has(font, character)), None)
        if font is None:
            _warn_missing(unicodedata.name(character, hex(ord(character))).split()[0])
        return font or self.built_in


@cache
def lettering(size: int) -> Lettering:
    """Returns the cached lettering of a size."""
    return Lettering(size)


@cache
def _warn_missing(script: str) -> None:
    """Warns once per writing system."""
    logger.warning(
        "predictions: no installed font has %s characters, so they are drawn as boxes; install one, such as Noto Sans",
        script,
    )


def printable(text: str) -> str:
    """Returns the text on one line, without unprintable characters, truncated to :data:`MAX_CHARACTERS`."""
    line = " ".join(text.split())
    line = line if len(line) <= MAX_CHARACTERS else line[: MAX_CHARACTERS - 1] + "…"
    return "".join(character for character in line if character.isprintable())


def _pieces(text: str) -> list[str]:
    """Splits a text at all positions where a line may break: after the spaces that follow a word, and after every ideograph."""
    pieces = []
    for word in re.findall(r"\S+\s*", text):
        start = 0
        for index, character in enumerate(word):
            if unicodedata.east_asian_width(character) in "WF" and index + 1 < len(word):
                if unicodedata.category(word[index + 1]).startswith("P"):
                    continue  # a line does not begin with a full stop
                pieces.append(word[start : index + 1])
                start = index + 1
        pieces.append(word[start:])
    return pieces


def _has(font: Font, character: str) -> bool:
    """Returns True if the font has a glyph for the character, rather than the box for missing characters."""
    mask, missing = font.getmask(character), font.getmask(_NOT_A_CHARACTER)
    return mask.size != missing.size or bytes(mask) != bytes(missing)


def _opened(folders: Sequence[str], size: int) -> Iterator[Font]:
    """Yields the installed fonts, starting with fonts that cover many writing systems."""
    files = sorted(islice(_font_files(folders), MAX_FILES), key=_preference)
    for path in files[:MAX_FONTS]:
        try:
            yield ImageFont.truetype(str(path), size)
        except OSError:  # damaged, or a bitmap font with fixed sizes
            continue


def _font_files(folders: Sequence[str]) -> Iterator[Path]:
    for folder in folders:
        for parent, _, names in os.walk(expanded(folder)):
            yield from (Path(parent) / name for name in sorted(names) if name.lower().endswith(_SUFFIXES))


def _preference(path: Path) -> tuple[int, int, str]:
    name = path.name.lower()
    broad = next((index for index, part in enumerate(_BROAD) if part in name), len(_BROAD))
    return sum(part in name for part in _NARROW), broad, str(path)
