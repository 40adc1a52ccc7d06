"""FG-OVD: choose the right description of an object in a box among descriptions with different attributes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dataset.formats.annotations import check_unique
from utils.errors import UserError
from utils.files import read_json
from x2vlm.suites.cases import CaseSuite, first_text_is_best
from x2vlm.suites.scoring import Case, Picture
from x2vlm.suites.suite import Published, reading

KINDS = {
    "hard": "1_attributes",
    "medium": "2_attributes",
    "easy": "3_attributes",
    "trivial": "shuffle_negatives",
    "color": "color",
    "material": "material",
    "pattern": "pattern",
    "transparency": "transparency",
}

_PAPER = "Bianchi, Carrara, Messina, Gennaro and Falchi: The Devil is in the Fine-Grained Details, CVPR 2024 (arXiv:2311.17518)"
_PUBLISHED_AT = (
    "github.com/lorebianchi98/FG-OVD (benchmarks/*.json), and COCO's train2017 and val2017 in folders of these names"
)
_TABLE = "table 1 of FG-CLIP 2 (github.com/360CVGroup/FG-CLIP)"


def _cases(kind: str, path: Path) -> list[Case]:
    try:
        content: Any = read_json(path, unique_keys=True)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as JSON ({error})", where=path, remedy="download it again") from None
    with reading(str(path)):
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        images = {entry["id"]: path.parent / str(entry["file_name"]) for entry in content["images"]}
        annotations = list(content["annotations"])
        for name in ("categories", "images"):
            check_unique(
                (entry["id"] for entry in content[name]),
                path,
                f"two {name} have the same id",
                f"download it again from {_PUBLISHED_AT}",
            )
    cases = []
    for index, entry in enumerate(annotations):
        with reading(f"{path}: annotation {index}"):
            x, y, width, height = map(float, entry["bbox"])
            if not all(map(math.isfinite, (x, y, width, height))):
                raise ValueError("bbox is not finite")
            ids = (entry["category_id"], *entry["neg_category_ids"])
            if unknown := [each for each in ids if each not in names]:
                raise UserError(
                    f"annotation {index} has the category {unknown[0]}, which categories does not list", where=path
                )
            if entry["image_id"] not in images:
                raise UserError(
                    f"annotation {index} has the image {entry['image_id']}, which images does not list", where=path
                )
            picture = Picture(images[entry["image_id"]], (x, y, width, height))
            excluded = "" if len(ids) > 1 else "they have no wrong descriptions"
            texts = tuple(names[each] for each in ids)
            cases.append(Case(kind, (picture,), texts, id=str(entry.get("id", index)), excluded=excluded))
    return cases


def _values(*values: float) -> dict[str, float]:
    return {
        f"{kind}: accuracy": value for kind, value in zip(("hard", "medium", "easy", "trivial"), values, strict=True)
    }


SUITE = CaseSuite(
    title="FG-OVD",
    paper=_PAPER,
    published_at=_PUBLISHED_AT,
    measures=("accuracy",),
    file_of={kind: f"{name}.json" for kind, name in KINDS.items()},
    cases=_cases,
    rule=first_text_is_best,
    chance={},
    published=(
        Published("CLIP ViT-B/16", _values(12.0, 23.1, 22.2, 58.5), _TABLE),
        Published("FineCLIP ViT-B/16", _values(26.8, 49.8, 50.4, 71.9), _TABLE),
        Published("FG-CLIP ViT-B/16", _values(46.1, 66.6, 68.7, 83.4), _TABLE),
        Published("CLIP ViT-L/14", _values(15.4, 25.3, 25.7, 38.8), _TABLE),
    ),
    note="the box is given, and its crop is scored with all of its descriptions; the official scripts use only 7 "
    "wrong descriptions in pattern and 2 in transparency. A tie is wrong, as in the official evaluation/ranks.py. "
    "The published accuracies pool the box's features from the whole image, and count a tie as right. The paper's "
    "mAP needs a detector",
)
