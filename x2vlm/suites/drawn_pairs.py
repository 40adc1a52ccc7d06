"""The demo's own suite: minimal pairs of drawn scenes (:mod:`demo.scenes.pairs`)."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError
from utils.files import parse_json, read_text
from x2vlm.suites.cases import Case, Picture, Suite, choices_and_pairs_match, need, reading

FILE = "pairs_test.jsonl"
MADE_BY = "python -m demo.scenes --out data/scenes"


def _read(folder: Path) -> list[Case]:
    (path,) = need(folder, [FILE], "the drawn pairs", MADE_BY)
    cases = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        with reading(f"{path}:{number}"):
            entry = parse_json(line)
            pictures = tuple(Picture(folder / name) for name in entry["images"])
            cases.append(Case(str(entry["kind"]), pictures, tuple(entry["captions"])))
    if not cases:
        raise UserError(f"{path}: has no pairs; draw the scenes again: {MADE_BY} --overwrite")
    return cases


SUITE = Suite(
    title="Drawn pairs",
    paper="this project",
    published_at=MADE_BY,
    read=_read,
    rule=choices_and_pairs_match,
    chance={"accuracy": 1 / 2, "text": 1 / 4, "image": 1 / 4, "group": 1 / 6},
    note="each text is right once and wrong once, so a model that does not look has an accuracy of 50 %",
)
