"""ARO: captions with two objects or two attributes exchanged, of Visual Genome."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from utils.errors import UserError
from utils.files import read_json
from x2vlm.suites.cases import CaseSuite, first_text_is_best
from x2vlm.suites.scoring import Case, Picture
from x2vlm.suites.suite import Published, entries_of, reading, texts_in

SYMMETRIC = "symmetric_relations.json"
"""Optional list of the relations that the official summary skips."""
LEAST_CASES = 25
"""Pairs of attributes with fewer cases are skipped, as in the official summary."""

MEAN = "mean of parts"
"""The official summary: the mean over relations, or over pairs of attributes."""

_PAPER = (
    "Yuksekgonul, Bianchi, Kalluri, Jurafsky and Zou: When and Why Vision-Language Models Behave like Bags-of-Words, ICLR 2023 "
    "(arXiv:2210.01936)"
)
_PUBLISHED_AT = (
    "github.com/mertyg/vision-language-models-are-bows (visual_genome_*.json, and vgr_vga_images.zip in images)"
)
_TABLE = "table 1 of Zhang, Awal and Agrawal: Contrasting Intra-Modal and Ranking Cross-Modal Hard Negatives, CVPR 2024"


def _cases(kind: str, path: Path) -> list[Case]:
    cases = []
    for place, entry in entries_of(path):
        with reading(place):
            box = tuple(float(entry[f"bbox_{side}"]) for side in "xywh")
            picture = Picture(path.parent / "images" / str(entry["image_path"]), (box[0], box[1], box[2], box[3]))
            part = entry["relation_name"] if kind == "relation" else "_".join(entry["attributes"][:2])
            cases.append(Case(kind, (picture,), texts_in(entry, "true_caption", "false_caption"), str(part)))
    if kind == "relation":
        left_out = _symmetric(path.parent)
        return [case for case in cases if case.part not in left_out]
    sizes = Counter(case.part for case in cases)
    return [case for case in cases if sizes[case.part] >= LEAST_CASES]


def _symmetric(folder: Path) -> set[str]:
    path = folder / SYMMETRIC
    if not path.is_file():
        return set()
    try:
        names = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not JSON ({error}); write a list of names of relations") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: is not a list of names of relations; write one")
    return set(names)


def _suite(name: str, title: str, note: str, clip: float, negclip: float, xvlm: float) -> CaseSuite:
    return CaseSuite(
        title=title,
        paper=_PAPER,
        published_at=_PUBLISHED_AT,
        measures=("accuracy",),
        file_of={name: f"visual_genome_{name}.json"},
        cases=_cases,
        rule=first_text_is_best,
        chance={"accuracy": 1 / 2},
        summaries={MEAN: ("parts", (name,))},
        published=tuple(
            Published(model, {f"{MEAN}: accuracy": value}, _TABLE)
            for model, value in (("CLIP ViT-B/32", clip), ("NegCLIP", negclip), ("X-VLM (COCO)", xvlm))
        ),
        note=note,
    )


RELATION = _suite(
    "relation",
    "ARO, Visual Genome Relation",
    "parts are relations; the published numbers skip relations that the official notebook calls symmetric, as this one does if "
    f"the folder has them as a JSON list in {SYMMETRIC}; language models alone are far above chance",
    *(59.3, 80.2, 73.4),
)
ATTRIBUTION = _suite(
    "attribution",
    "ARO, Visual Genome Attribution",
    f"parts are pairs of attributes with at least {LEAST_CASES} cases; language models alone are far above chance",
    *(62.9, 70.5, 86.8),
)
