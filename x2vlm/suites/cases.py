"""Suites that ask which of a few texts are about which of a few images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from x2vlm.base import LoadedModel
from x2vlm.suites.scoring import Case, score_cases
from x2vlm.suites.suite import Judged, Suite, chosen_kinds, need, need_images

SEVERAL = ""
"""Key of a file that has cases of several kinds."""

Rule = Callable[[np.ndarray], Mapping[str, float]]
"""Judges a case by its scores (images, texts): returns the value of each measure, usually 1 for right and 0 for wrong."""


@dataclass(frozen=True, kw_only=True)
class CaseSuite(Suite[list[Case]]):
    """A suite of cases.

    Attributes:
        file_of: the official file of each kind.
        cases: reads the cases of a kind from its file. Images are in the folder of the file.
        rule: the official rule.
        chance: value of each measure for random scores; empty: of a choice among the texts of each case.
    """

    file_of: Mapping[str, str]
    cases: Callable[[str, Path], list[Case]]
    rule: Rule
    chance: Mapping[str, float]

    def files(self, kinds: Sequence[str]) -> list[str]:
        if SEVERAL in self.file_of:
            return [self.file_of[SEVERAL]]
        return [self.file_of[kind] for kind in chosen_kinds(tuple(self.file_of), kinds, self)]

    def read(self, folder: Path, kinds: Sequence[str]) -> list[Case]:
        kind_of = {name: kind for kind, name in self.file_of.items()}
        paths = need(folder, self.files(kinds), self)
        cases = [case for path in paths for case in self.cases(kind_of[path.name], path)]
        if not cases:
            raise UserError(f"{folder}: the files of {self.title} have no cases; see {self.published_at}")
        chosen = chosen_kinds([case.kind for case in cases], kinds, self)
        cases = [case for case in cases if case.kind in chosen]
        need_images([picture.path for case in cases for picture in case.pictures], self)
        return cases

    def judge(self, model: LoadedModel, content: list[Case]) -> Judged:
        scored = score_cases(model, content)
        cases, scores = scored.cases, scored.scores
        values = {
            score: {
                look: np.array([[self.rule(one)[measure] for measure in self.measures] for one in each])
                for look, each in looks.items()
            }
            for score, looks in scores.items()
        }
        return Judged(
            [case.kind for case in cases],
            [str(case.pictures[0].path) for case in cases],
            values,
            self.chance or self._chance_of_choices(cases),
            [case.part for case in cases],
            [
                {
                    "kind": case.kind,
                    "images": [str(picture.path) for picture in case.pictures],
                    "texts": case.texts,
                    "scores": {score: looks["model"][index].round(5).tolist() for score, looks in scores.items()},
                }
                for index, case in enumerate(cases)
            ],
            scored.notes(),
        )

    def _chance_of_choices(self, cases: Sequence[Case]) -> dict[str, float]:
        shares: dict[str, list[float]] = {}
        for case in cases:
            shares.setdefault(case.kind, []).append(1 / len(case.texts))
        return {
            f"{kind}: {measure}": float(np.mean(each)) for kind, each in shares.items() for measure in self.measures
        }


def first_text_is_best(scores: np.ndarray) -> dict[str, float]:
    """The first text has a higher score than all others; a tie is wrong."""
    (row,) = scores
    return {"accuracy": float(row[0] > row[1:].max())}


def pairs_match(scores: np.ndarray) -> dict[str, float]:
    """Winoground's rule for two images and their texts (Thrush et al., 2022, equations 1 to 3); a tie is wrong.

    text: each image has a higher score with its own text; image: each text has a higher score with its own image; group: both.
    """
    own = np.diag(scores)
    text, image = bool((own > np.diag(scores[:, ::-1])).all()), bool((own > np.diag(scores[::-1])).all())
    return {"text": float(text), "image": float(image), "group": float(text and image)}


def choices_and_pairs_match(scores: np.ndarray) -> dict[str, float]:
    """As :func:`pairs_match`, after the share of the images that have a higher score with their own text."""
    return {"accuracy": float((np.diag(scores) > np.diag(scores[:, ::-1])).mean()), **pairs_match(scores)}
