"""VALSE: captions, and foils that test linguistic phenomena."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError
from x2vlm.suites.cases import CaseSuite, first_text_is_best
from x2vlm.suites.scoring import Case, Picture
from x2vlm.suites.suite import Published, entries_of, reading, texts_in

PHENOMENA = {
    "existence": ("existence",),
    "plurals": ("plurals",),
    "counting": ("counting-hard", "counting-small-quant", "counting-adversarial"),
    "relations": ("relations",),
    "actions": ("action-replacement", "actant-swap"),
    "coreference": ("coreference-standard", "coreference-hard"),
    "foil-it": ("foil-it",),
}
PIECES = tuple(piece for pieces in PHENOMENA.values() for piece in pieces)
IMAGES = "images"
MIN_VOTES = 2
"""Minimum number of annotators, out of three, who chose the caption and not the foil. Entries with fewer votes are excluded, as
in the official script."""
FEW_VOTES = f"fewer than {MIN_VOTES} of 3 annotators chose the caption"

_PAPER = "Parcalabescu, Cafagna, Muradjan, Frank, Calixto and Gatt: VALSE, ACL 2022 (arXiv:2112.07566)"
_PUBLISHED_AT = (
    "github.com/Heidelberg-NLP/VALSE (data/*.json); its README names the sources of the images, for the folder images"
)
_TABLE = "individual_results.csv of Oh et al.: Exploring the Spectrum of Visio-Linguistic Compositionality, 2024"


def _cases(kind: str, path: Path) -> list[Case]:
    cases = []
    for location, key, entry in entries_of(path):
        with reading(location):
            if not isinstance(votes := entry["mturk"], dict):
                raise UserError(
                    f"mturk is {votes!r:.80}, not an object", where=location, remedy="is it the official file?"
                )
            excluded = "" if votes["caption"] >= MIN_VOTES else FEW_VOTES
            picture = Picture(path.parent / IMAGES / str(entry["image_file"]))
            cases.append(Case(kind, (picture,), texts_in(entry, "caption", "foil"), id=key, excluded=excluded))
    return cases


def _values(average: float, *values: float) -> dict[str, float]:
    by_piece = {f"{piece}: accuracy": value for piece, value in zip(PIECES, values, strict=True)}
    return by_piece | {"mean of phenomena: accuracy": average}


SUITE = CaseSuite(
    title="VALSE",
    paper=_PAPER,
    published_at=_PUBLISHED_AT,
    measures=("accuracy",),
    file_of={piece: f"{piece}.json" for piece in PIECES},
    cases=_cases,
    rule=first_text_is_best,
    chance={"accuracy": 1 / 2},
    summaries={
        **{name: ("macro", pieces) for name, pieces in PHENOMENA.items() if len(pieces) > 1},
        "mean of phenomena": ("macro", tuple(PHENOMENA)),
        "mean of pieces": ("macro", PIECES),
    },
    published=(
        Published(
            "CLIP ViT-B/32",
            _values(67.53, 69.31, 57.58, 64.52, 61.89, 58.18, 65.98, 77.78, 71.76, 54.94, 51.92, 90.14),
            _TABLE,
        ),
        Published(
            "NegCLIP",
            _values(73.72, 75.05, 70.15, 69.24, 71.22, 54.12, 68.97, 82.87, 85.14, 60.31, 59.62, 93.00),
            _TABLE,
        ),
        *(
            Published(
                model,
                {"mean of pieces: accuracy": value},
                f"average pairwise accuracy in the results of {_PAPER}, at paperswithcode.com",
            )
            for model, value in (("LXMERT", 59.6), ("ViLBERT", 63.7), ("12-in-1", 75.1))
        ),
    ),
    note="the accuracy is the official pairwise accuracy (acc_r), with log-odds instead of the logit; language "
    "models without images reach about 60%",
)
