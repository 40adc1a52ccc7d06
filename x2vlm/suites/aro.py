"""ARO: captions from Visual Genome in which two objects or two attributes are swapped."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from x2vlm.suites.cases import CaseSuite, first_text_is_best
from x2vlm.suites.scoring import Case, Picture
from x2vlm.suites.suite import Published, entries_of, reading, texts_in

_SYMMETRIC = """
adjusting, around, attached to, beside, between, bigger than, biting, boarding, brushing, by, chewing, cleaning,
climbing, close to, coming from, coming out of, contain, crossing, dragging, draped over, drinking, drinking from,
driving, driving down, driving on, eating from, eating in, enclosing, exiting, facing, filled with, floating in,
floating on, flying, flying above, flying in, flying over, flying through, full of, going down, going into,
going through, grazing in, growing in, growing on, guiding, hanging from, hanging in, hanging off, hanging over,
higher than, holding onto, hugging, in between, jumping off, jumping on, jumping over, kept in, larger than, leading,
leaning over, leaving, licking, longer than, looking in, looking into, looking out, looking over, looking through,
lying next to, lying on top of, making, mixed with, mounted on, moving, near, next to, of, on the back of,
on the edge of, on the front of, on the other side of, on the side of, opening, painted on, parked at, parked beside,
parked by, parked in, parked in front of, parked near, parked next to, perched on, petting, piled on, playing,
playing in, playing on, playing with, pouring, reaching for, reading, reflected on, riding on, running in, running on,
running through, seen through, sitting behind, sitting beside, sitting by, sitting in front of, sitting near,
sitting next to, sitting under, skiing down, skiing on, sleeping in, sleeping on, smiling at, sniffing, splashing,
sprinkled on, stacked on, standing against, standing around, standing behind, standing beside, standing in front of,
standing near, standing next to, staring at, stuck in, surrounding, swimming in, swinging, talking to, topped with,
touching, traveling down, traveling on, tying, typing on, underneath, wading in, waiting for, walking across,
walking by, walking down, walking next to, walking through, with, working in, working on, worn on, wrapped around,
wrapped in
"""
SYMMETRIC = {" ".join(name.split()) for name in _SYMMETRIC.split(",")}
"""Relations that the official notebook (notebooks/Replicate ARO! VG-Relation, VG-Attribution.ipynb) excludes from the mean. The
notebook calls them symmetric, although not all of them are."""
MIN_CASES = 25
"""Minimum number of cases per pair of attributes. Pairs with fewer cases are excluded, as in the official summary."""

MEAN = "mean of parts"
"""The official summary: the mean over relations, or over pairs of attributes."""

_PAPER = (
    "Yuksekgonul, Bianchi, Kalluri, Jurafsky and Zou: When and Why Vision-Language Models Behave like Bags-of-Words, "
    "ICLR 2023 (arXiv:2210.01936)"
)
_PUBLISHED_AT = (
    "github.com/mertyg/vision-language-models-are-bows (visual_genome_*.json, and vgr_vga_images.zip in images)"
)
_TABLE = "table 1 of Zhang, Awal and Agrawal: Contrasting Intra-Modal and Ranking Cross-Modal Hard Negatives, CVPR 2024"


def _cases(kind: str, path: Path) -> list[Case]:
    cases = []
    for location, key, entry in entries_of(path):
        with reading(location):
            box = tuple(float(entry[f"bbox_{side}"]) for side in "xywh")
            picture = Picture(path.parent / "images" / str(entry["image_path"]), (box[0], box[1], box[2], box[3]))
            part = str(entry["relation_name"] if kind == "relation" else "_".join(entry["attributes"][:2]))
            texts = texts_in(entry, "true_caption", "false_caption")
        symmetric = kind == "relation" and part in SYMMETRIC
        excluded = "the official notebook calls their relation symmetric" if symmetric else ""
        cases.append(Case(kind, (picture,), texts, part, key, excluded))
    if kind == "relation":
        return cases
    sizes = Counter(case.part for case in cases)
    few = f"fewer than {MIN_CASES} cases have this pair of attributes"
    return [replace(case, excluded=few) if sizes[case.part] < MIN_CASES else case for case in cases]


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
    "parts are relations; language models without images are far above chance",
    *(59.3, 80.2, 73.4),
)
ATTRIBUTION = _suite(
    "attribution",
    "ARO, Visual Genome Attribution",
    f"parts are pairs of attributes with at least {MIN_CASES} cases; language models without images are far above "
    "chance",
    *(62.9, 70.5, 86.8),
)
