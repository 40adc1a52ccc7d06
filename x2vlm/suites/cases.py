"""Suites that ask which of a few texts are about which of a few images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from x2vlm.base import LoadedModel
from x2vlm.suites.scoring import Picture, score_cases
from x2vlm.suites.suite import Judged, Suite, chosen_kinds, need_images


@dataclass(frozen=True)
class Case:
    """One question of a suite.

    Attributes:
        kind: what the texts differ in.
        pictures: the images.
        texts: the texts; which are right for which image is determined by the rule of the suite.
        part: for means over parts, for example over relations.
    """

    kind: str
    pictures: tuple[Picture, ...]
    texts: tuple[str, ...]
    part: str = ""


Rule = Callable[[np.ndarray], Mapping[str, float]]
"""Judges a case by its scores (images, texts): returns the value of each measure, usually 1 for right and 0 for wrong."""


@dataclass(frozen=True, kw_only=True)
class CaseSuite(Suite[list[Case]]):
    """A suite of cases.

    Attributes:
        cases: reads the cases from a folder.
        rule: the official rule.
        chance: value of each measure for random scores.
    """

    cases: Callable[[Path, CaseSuite], list[Case]]
    rule: Rule
    chance: Mapping[str, float]

    def read(self, folder: Path, kinds: Sequence[str]) -> list[Case]:
        cases = self.cases(folder, self)
        chosen = chosen_kinds([case.kind for case in cases], kinds, self)
        cases = [case for case in cases if case.kind in chosen]
        need_images([picture.path for case in cases for picture in case.pictures], self)
        return cases

    def judge(self, model: LoadedModel, content: list[Case]) -> Judged:
        scores = score_cases(model, [(case.pictures, case.texts) for case in content])
        values = {
            score: {
                look: np.array([[self.rule(one)[measure] for measure in self.measures] for one in each])
                for look, each in looks.items()
            }
            for score, looks in scores.items()
        }
        return Judged(
            [case.kind for case in content],
            [str(case.pictures[0].path) for case in content],
            values,
            self.chance,
            [case.part for case in content],
            [
                {
                    "kind": case.kind,
                    "images": [str(picture.path) for picture in case.pictures],
                    "texts": case.texts,
                    "scores": {score: looks["model"][index].round(5).tolist() for score, looks in scores.items()},
                }
                for index, case in enumerate(content)
            ],
        )


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
