"""Winoground: two images and two captions with the same words in a different order."""

from __future__ import annotations

from pathlib import Path

from x2vlm.suites.cases import SEVERAL, CaseSuite, pairs_match
from x2vlm.suites.scoring import Case, Picture
from x2vlm.suites.suite import Published, lines_of, reading, texts_in

_SCORES = "from statistics/model_scores of huggingface.co/datasets/facebook/winoground"
_FINE_GRAINED = (
    "results of Bugliarello et al.: Measuring Progress in Fine-grained Vision-and-Language Understanding, ACL 2023, at "
    "paperswithcode.com"
)
_PAPER = "Thrush, Jiang, Bartolo, Singh, Williams, Kiela and Ross: Winoground, CVPR 2022 (arXiv:2204.03162)"


def _cases(kind: str, path: Path) -> list[Case]:
    cases = []
    for location, key, entry in lines_of(path):
        with reading(location):
            stems = texts_in(entry, "image_0", "image_1")
            pictures = tuple(Picture(path.parent / "images" / f"{stem}.png") for stem in stems)
            tag = str(entry.get("collapsed_tag") or "untagged").lower()
            texts = texts_in(entry, "caption_0", "caption_1")
            cases.append(Case(tag, pictures, texts, id=str(entry.get("id", key))))
    return cases


def _all(text: float, image: float, group: float) -> dict[str, float]:
    return {"all: text": text, "all: image": image, "all: group": group}


SUITE = CaseSuite(
    title="Winoground",
    paper=_PAPER,
    published_at="huggingface.co/datasets/facebook/winoground (examples.jsonl, and images.zip unpacked to the folder "
    "images)",
    measures=("text", "image", "group"),
    file_of={SEVERAL: "examples.jsonl"},
    cases=_cases,
    rule=pairs_match,
    chance={"text": 1 / 4, "image": 1 / 4, "group": 1 / 6},
    summaries={"all": ("micro", ())},
    published=(
        Published("human", _all(89.50, 88.50, 85.50), _SCORES),
        Published("CLIP ViT-B/32", _all(30.75, 10.50, 8.00), _SCORES),
        Published("ViLT", _all(34.75, 14.00, 9.25), _SCORES),
        Published("UNITER large", _all(38.00, 14.00, 10.50), _SCORES),
        Published("VinVL", _all(37.75, 17.75, 14.50), _SCORES),
        Published("FLAVA ITM", _all(32.25, 20.50, 14.25), _SCORES),
        Published("ALBEF 14M", {"all: text": 32.5, "all: image": 16.2}, _FINE_GRAINED),
        Published("BLIP 14M", _all(36.5, 18.5, 14.5), _FINE_GRAINED),
        Published("X-VLM 16M", _all(46.7, 24.5, 21.2), _FINE_GRAINED),
    ),
    note="for text only, the text score is 0, and for image only, the image score is 0: a text or image that wins in "
    "one comparison has to lose the other",
)
