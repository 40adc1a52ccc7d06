"""The demo's own suite: minimal pairs of drawn scenes (:mod:`demo.scenes.pairs`)."""

from __future__ import annotations

from pathlib import Path

from x2vlm.suites.cases import SEVERAL, CaseSuite, choices_and_pairs_match
from x2vlm.suites.scoring import Case, Picture
from x2vlm.suites.suite import lines_of, reading, texts_in


def _cases(kind: str, path: Path) -> list[Case]:
    cases = []
    for location, key, entry in lines_of(path):
        with reading(location):
            first, second = texts_in(entry["images"], 0, 1)
            pictures = (Picture(path.parent / first), Picture(path.parent / second))
            cases.append(Case(str(entry["kind"]), pictures, texts_in(entry["captions"], 0, 1), id=key))
    return cases


SUITE = CaseSuite(
    title="Drawn pairs",
    paper="",
    published_at="python -m demo.scenes --out data/scenes",
    measures=("accuracy", "text", "image", "group"),
    file_of={SEVERAL: "pairs_test.jsonl"},
    cases=_cases,
    rule=choices_and_pairs_match,
    chance={"accuracy": 1 / 2, "text": 1 / 4, "image": 1 / 4, "group": 1 / 6},
    summaries={"all": ("micro", ())},
    note="each text is right once and wrong once, so a model that does not see the images reaches an accuracy of 50%, "
    "a text score of 0% and, by chance, an image score of 25%",
)
