"""Maps from KGeography. Each named division of a map (such as a state) has a different colour, from which we compute its exact
box."""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects

from dataset.media.encoded import FORMATS
from demo.real.concepts import Concept, concept_of
from demo.scenes.compose import Box
from utils.errors import UserError

MIN_PIXELS = 64
"""Divisions with fewer pixels are skipped."""

WORLDWIDE = frozenset({"countries", "continents", "oceans and basins"})
"""Kinds of maps that are always in training. Holding out "Europe" would exclude the names of all its countries from the training
data of all sources."""

HUES = {15: "red", 45: "orange", 70: "yellow", 165: "green", 200: "cyan", 255: "blue", 290: "purple", 340: "pink"}
"""Maps the upper bound of each range of hue angles, in degrees, to the name of the colour. Angles above all bounds are red."""


class Division(NamedTuple):
    """A named division of a map, with its box and the name of its colour."""

    name: str
    box: Box
    colour: str

    @property
    def concept(self) -> Concept:
        """The concept of the name."""
        return concept_of(self.name)


class Map(NamedTuple):
    """A map.

    Attributes:
        place: the place that the map shows.
        kind: kind of divisions, such as "States".
        path: the picture.
        divisions: the divisions.
        captioned: True if the map's record includes its caption.
    """

    place: str
    kind: str
    path: Path
    divisions: list[Division]
    captioned: bool = True

    @property
    def caption(self) -> str:
        """The caption, such as "map of Germany"."""
        return f"map of {self.place}"

    @property
    def is_worldwide(self) -> bool:
        """True if the map shows countries or seas rather than parts of a country."""
        return self.kind.casefold() in WORLDWIDE


def read_maps(share: Path) -> tuple[list[Map], Counter[str]]:
    """Reads the maps in the order of their files, and counts the skipped divisions and maps by reason.

    Raises:
        UserError: if the package is missing or has no map.
    """
    root = share / "kgeography"
    maps: list[Map] = []
    skipped: Counter[str] = Counter()
    for path in sorted(root.glob("*.kgm")):
        try:
            described = ElementTree.parse(path).getroot()
            picture = root / (described.findtext("mapFile") or "")
            with Image.open(picture, formats=FORMATS) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (ElementTree.ParseError, OSError, Image.DecompressionBombError):
            skipped["unreadable map"] += 1
            continue
        divisions = [found for found in described.iter("division") if found.findtext("ignore") != "yes"]
        kept = _large_divisions(divisions, pixels)
        skipped["small division"] += len(divisions) - len(kept)
        if kept:
            kind = described.findtext("divisionsName") or ""
            maps.append(Map(place_of(described.findtext("name") or path.stem), kind, picture, kept))
    if not maps:
        raise UserError(f"{root} contains no map: apt install kgeography-data, or dpkg-deb -x it into --packages DIR")
    return maps, +skipped


def place_of(name: str) -> str:
    """Returns the place that a map shows: "Portugal" for "Portugal (Regions)" and "Portugal Districts"."""
    bare = re.sub(r"\([^)]*\)|\bby \w+|\b(Districts|Provinces)\b|^(The|Republic of)\b", " ", name, flags=re.IGNORECASE)
    return " ".join(bare.replace("-", " ").split())


def _large_divisions(elements: Sequence[ElementTree.Element], pixels: NDArray[np.uint8]) -> list[Division]:
    """Returns the divisions that have a name and at least MIN_PIXELS pixels of their colour, with the box of these pixels.

    Args:
        elements: the divisions in the description of the map.
        pixels: (height, width, 3), red, green and blue.
    """
    colours = [
        tuple(int(element.findtext(f"color/{name}") or 0) for name in ("red", "green", "blue")) for element in elements
    ]
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    # Labels count from 1, because find_objects ignores 0, which stands for all other colours.
    labels = {colour: label for label, colour in enumerate(dict.fromkeys(colours), 1)}
    label_of = np.zeros(1 << 24, dtype=np.int32)
    for (red, green, blue), label in labels.items():
        label_of[red << 16 | green << 8 | blue] = label
    labelled = label_of[packed]
    counts = np.bincount(labelled.ravel(), minlength=len(labels) + 1)
    slices = find_objects(labelled, max_label=len(labels))
    kept: list[Division] = []
    for element, colour in zip(elements, colours, strict=True):
        name, label = " ".join((element.findtext("name") or "").split()), labels[colour]
        if concept_of(name) and counts[label] >= MIN_PIXELS:
            rows, columns = slices[label - 1]
            box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            kept.append(Division(name, box, colour_name(*colour)))
    return kept


def colour_name(red: int, green: int, blue: int) -> str:
    """Returns the nearest common name of a colour."""
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    if value < 0.2:
        return "black"
    if saturation < 0.12:
        return "white" if value > 0.92 else "grey"
    named = next((name for bound, name in HUES.items() if hue * 360 < bound), "red")
    return "brown" if named in ("red", "orange") and value < 0.65 else named
