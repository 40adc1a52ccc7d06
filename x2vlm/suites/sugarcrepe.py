"""SugarCrepe and SugarCrepe++: captions of COCO images, and captions that are wrong in one detail."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from x2vlm.suites.cases import CaseSuite, first_text_is_best
from x2vlm.suites.scoring import Case, Picture
from x2vlm.suites.suite import Published, entries_of, reading, texts_in

REPLACED = ("replace_obj", "replace_att", "replace_rel")
SWAPPED = ("swap_obj", "swap_att")
ADDED = ("add_obj", "add_att")
IMAGES = "val2017"


def _cases(captions: Sequence[str], kind: str, path: Path) -> list[Case]:
    cases = []
    for location, key, entry in entries_of(path):
        with reading(location):
            picture = Picture(path.parent / IMAGES / str(entry["filename"]))
            texts = texts_in(entry, *captions, "negative_caption")
            cases.append(Case(kind, (picture,), texts, id=str(entry.get("id", key))))
    return cases


def captions_beat_the_negative(scores: np.ndarray) -> dict[str, float]:
    """Judges SugarCrepe++'s image-text task (ITT), which has two right captions and a wrong one. A tie counts as wrong."""
    ((first, second, wrong),) = scores
    return {"ITT": float(min(first, second) > wrong), "first": float(first > wrong), "second": float(second > wrong)}


def captions_resemble_each_other(cosines: np.ndarray) -> dict[str, float]:
    """Judges SugarCrepe++'s text-only task (TOT): the right captions must resemble each other more than either of them resembles
    the wrong caption."""
    return {"TOT": float(cosines[0, 1] > max(cosines[0, 2], cosines[1, 2]))}


def _values(kinds: Sequence[str], *values: float) -> dict[str, float]:
    return {f"{kind}: accuracy": value for kind, value in zip(kinds, values, strict=True)}


_PAPER = "Hsieh, Zhang, Ma, Kembhavi and Krishna: SugarCrepe, NeurIPS 2023 (arXiv:2306.14610)"
_PUBLISHED_AT = "github.com/RAIVNLab/sugar-crepe (data/*.json), and COCO's val2017 in the folder val2017"
_KINDS = (*REPLACED, *SWAPPED, *ADDED)
_TABLE = f"table of CLIP models in {_PAPER}"

SUGARCREPE = CaseSuite(
    title="SugarCrepe",
    paper=_PAPER,
    published_at=_PUBLISHED_AT,
    measures=("accuracy",),
    file_of={kind: f"{kind}.json" for kind in _KINDS},
    cases=partial(_cases, ["caption"]),
    rule=first_text_is_best,
    chance={"accuracy": 1 / 2},
    summaries={
        "replace": ("micro", REPLACED),
        "swap": ("micro", SWAPPED),
        "add": ("micro", ADDED),
        "mean of kinds": ("macro", _KINDS),
    },
    published=(
        Published("human", _values(_KINDS, 100, 99, 97, 99, 100, 99, 99), _TABLE),
        Published("CLIP ViT-B/32 (OpenAI)", _values(_KINDS, 90.92, 80.08, 69.20, 61.38, 63.96, 77.21, 68.79), _TABLE),
        Published("CLIP ViT-L/14 (OpenAI)", _values(_KINDS, 94.07, 79.19, 65.15, 60.16, 62.31, 78.32, 71.53), _TABLE),
        Published("CLIP ViT-bigG-14 (LAION)", _values(_KINDS, 96.67, 88.07, 74.75, 62.20, 74.92, 92.19, 84.54), _TABLE),
    ),
    note="replace, swap and add are means over cases, as in the paper; one case of swap_obj has been removed since "
    "then",
)

_PAPER_PP = "Dumpala, Jaiswal, Sastry, Milios, Oore and Sajjad: SugarCrepe++, 2024 (arXiv:2406.11171)"
_PUBLISHED_AT_PP = "github.com/Sri-Harsha/scpp (data/*.json), and COCO's val2017 in the folder val2017"
_KINDS_PP = (*REPLACED, *SWAPPED)

SUGARCREPE_PP = CaseSuite(
    title="SugarCrepe++",
    paper=_PAPER_PP,
    published_at=_PUBLISHED_AT_PP,
    measures=("ITT", "first", "second", "TOT"),
    file_of={kind: f"{kind}.json" for kind in _KINDS_PP},
    cases=partial(_cases, ["caption", "caption2"]),
    rule=captions_beat_the_negative,
    text_rule=captions_resemble_each_other,
    chance={"ITT": 1 / 3, "first": 1 / 2, "second": 1 / 2, "TOT": 1 / 3},
    summaries={"mean of kinds": ("macro", _KINDS_PP)},
    published=(
        Published(
            "CLIP ViT-B/32",
            {"mean of kinds: ITT": 60.0},
            "table 1 of Kwon, Min and Sohn: Enhancing Compositional Reasoning in CLIP via Reconstruction and "
            "Alignment of Text Descriptions",
        ),
        Published(
            "NegCLIP",
            {"mean of kinds: ITT": 65.0},
            "table 1 of Kwon, Min and Sohn: Enhancing Compositional Reasoning in CLIP via Reconstruction and "
            "Alignment of Text Descriptions",
        ),
    ),
    note="ITT, the image-text task: both captions beat the wrong one; TOT, the text-only task: the embeddings of the "
    "captions are closer to each other than to the embedding of the wrong one",
)
