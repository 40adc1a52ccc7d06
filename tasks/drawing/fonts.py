"""Text in any script that an installed font has: measured, wrapped and drawn.

Latin letters come from the font that Pillow brings. A character that it lacks is looked for in the fonts of the machine, in the
usual folders; nothing is downloaded. Where no font has it, the empty box of the built-in font stands for it.
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
"""Bounds of the search: files that are listed, and fonts that are opened."""
LONGEST = 2000
"""Characters of a text that are drawn; a tokenizer keeps fewer."""

_SUFFIXES = (".ttf", ".otf", ".ttc")
_BROAD = ("cjk", "fallback", "wqy", "pingfang", "hiragino", "unicode", "dejavusans.", "notosans-", "unifont")
_NARROW = ("bold", "italic", "oblique", "mono", "serif", "light", "thin", "black", "condensed", "medium", "emoji")
_NOT_A_CHARACTER = "\U0010fffe"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Lettering:
    """Text of one size in pixels. ``folders``: where fonts are looked for when the built-in one lacks a character."""

    def __init__(self, size: int, folders: Sequence[str] = FONT_FOLDERS):
        self.size, self.folders = size, tuple(folders)
        self.line_height = round(size * 1.4)
        self.built_in: Font = ImageFont.load_default(size)
        self._fonts: dict[str, Font] = {}
        self._installed: list[Font] | None = None

    def width(self, text: str) -> float:
        """Pixels that a line of ``text`` takes."""
        return sum(font.getlength(part) for font, part in self._runs(text))

    def wrap(self, text: str, width: float) -> list[str]:
        """The whole text in lines of at most ``width`` pixels, broken at spaces and between ideographs, and inside a word only
        where it is wider than a line."""
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
        """Draw one line whose upper left corner is ``at``."""
        x, y = at
        baseline = y + round(self.size * 1.05)
        for font, part in self._runs(text):
            canvas.text((x, baseline), part, fill=fill, font=font, anchor="ls")
            x += font.getlength(part)

    def _fitting(self, text: str, width: float) -> int:
        """The number of characters, at least one, that fit into a line."""
        low, high = 1, len(text) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.width(text[:middle]) <= width else (low, middle - 1)
        return low

    def _runs(self, text: str) -> Iterator[tuple[Font, str]]:
        """The text cut where the font changes. Spaces and combining marks stay with what precedes them."""
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
            _say_missing(unicodedata.name(character, hex(ord(character))).split()[0])
        return font or self.built_in


@cache
def lettering(size: int) -> Lettering:
    """The lettering of a size, made once."""
    return Lettering(size)


@cache
def _say_missing(script: str) -> None:
    """Warn once a script."""
    logger.warning(
        "predictions: no installed font has %s characters; boxes stand for them (Noto Sans has most)", script
    )


def printable(text: str) -> str:
    """The text in one line, without characters that cannot be drawn, and no longer than :data:`LONGEST`."""
    line = " ".join(text.split())
    line = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
    return "".join(character for character in line if character.isprintable())


def _pieces(text: str) -> list[str]:
    """Words with the spaces after them; an ideograph, which a line may end with, is a piece of its own."""
    pieces = []
    for word in re.findall(r"\S+\s*", text):
        start = 0
        for place, character in enumerate(word):
            if unicodedata.east_asian_width(character) in "WF" and place + 1 < len(word):
                if unicodedata.category(word[place + 1]).startswith("P"):
                    continue  # a line does not begin with a full stop
                pieces.append(word[start : place + 1])
                start = place + 1
        pieces.append(word[start:])
    return pieces


def _has(font: Font, character: str) -> bool:
    """Whether the font has a glyph of its own for the character."""
    mask, missing = font.getmask(character), font.getmask(_NOT_A_CHARACTER)
    return mask.size != missing.size or bytes(mask) != bytes(missing)


def _opened(folders: Sequence[str], size: int) -> Iterator[Font]:
    """Installed fonts, those with many scripts first."""
    files = sorted(islice(_font_files(folders), MAX_FILES), key=_preference)
    for path in files[:MAX_FONTS]:
        try:
            yield ImageFont.truetype(str(path), size)
        except OSError:  # damaged, or a font of bitmaps in fixed sizes
            continue


def _font_files(folders: Sequence[str]) -> Iterator[Path]:
    for folder in folders:
        for parent, _, names in os.walk(expanded(folder)):
            yield from (Path(parent) / name for name in sorted(names) if name.lower().endswith(_SUFFIXES))


def _preference(path: Path) -> tuple[int, int, str]:
    name = path.name.lower()
    broad = next((place for place, part in enumerate(_BROAD) if part in name), len(_BROAD))
    return sum(part in name for part in _NARROW), broad, str(path)
