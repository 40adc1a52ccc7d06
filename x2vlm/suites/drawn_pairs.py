"""The demo's own suite: minimal pairs of drawn scenes (:mod:`demo.scenes.pairs`)."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError
from utils.files import parse_json, read_text
from x2vlm.suites.cases import Case, CaseSuite, choices_and_pairs_match
from x2vlm.suites.scoring import Picture
from x2vlm.suites.suite import need, reading, texts_in


def _cases(folder: Path, suite: CaseSuite) -> list[Case]:
    (path,) = need(folder, ["pairs_test.jsonl"], suite)
    cases = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        with reading(f"{path}:{number}"):
            entry = parse_json(line)
            first, second = entry["images"]
            pictures = (Picture(folder / first), Picture(folder / second))
            cases.append(Case(str(entry["kind"]), pictures, texts_in(entry["captions"], 0, 1)))
    if not cases:
        raise UserError(f"{path}: has no pairs; draw more scenes: {suite.published_at}")
    return cases


SUITE = CaseSuite(
    title="Drawn pairs",
    paper="this project",
    published_at="python -m demo.scenes --out data/scenes",
    measures=("accuracy", "text", "image", "group"),
    cases=_cases,
    rule=choices_and_pairs_match,
    chance={"accuracy": 1 / 2, "text": 1 / 4, "image": 1 / 4, "group": 1 / 6},
    note="each text is right once and wrong once, so a model that does not look has an accuracy of 50 %",
)
