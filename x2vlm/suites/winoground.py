"""Winoground: two images and two captions with the same words in another order."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError
from utils.files import parse_json, read_text
from x2vlm.suites.cases import Case, CaseSuite, pairs_match
from x2vlm.suites.scoring import Picture
from x2vlm.suites.suite import Published, need, reading, texts_in

_PUBLISHED_AT = (
    "huggingface.co/datasets/facebook/winoground (examples.jsonl, and images.zip unpacked to the folder images)"
)
_PAPER = "Thrush, Jiang, Bartolo, Singh, Williams, Kiela and Ross: Winoground, CVPR 2022 (arXiv:2204.03162)"


def _cases(folder: Path, suite: CaseSuite) -> list[Case]:
    (path,) = need(folder, ["examples.jsonl"], suite)
    cases = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        with reading(f"{path}:{number}"):
            entry = parse_json(line)
            stems = texts_in(entry, "image_0", "image_1")
            pictures = tuple(Picture(folder / "images" / f"{stem}.png") for stem in stems)
            kind = str(entry.get("collapsed_tag") or "untagged").lower()
            cases.append(Case(kind, pictures, texts_in(entry, "caption_0", "caption_1")))
    if not cases:
        raise UserError(f"{path}: is empty; see {suite.published_at}")
    return cases


def _all(text: float, image: float, group: float) -> dict[str, float]:
    return {"all: text": text, "all: image": image, "all: group": group}


SUITE = CaseSuite(
    title="Winoground",
    paper=_PAPER,
    published_at=_PUBLISHED_AT,
    measures=("text", "image", "group"),
    cases=_cases,
    rule=pairs_match,
    chance={"text": 1 / 4, "image": 1 / 4, "group": 1 / 6},
    summaries={"all": ("micro", ())},
    published=(
        Published("human", _all(89.50, 88.50, 85.50), _PAPER),
        Published("CLIP ViT-B/32", _all(30.75, 10.50, 8.00), _PAPER),
        Published("UNITER large", _all(38.00, 14.00, 10.50), _PAPER),
        Published("VinVL", _all(37.75, 17.75, 14.50), _PAPER),
    ),
    note="a model that does not look is right in none: the same text cannot win with one image and lose with the other",
)
