"""Suites that test whether a model knows which of a few texts describes which of a few images."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from dataset.formats.annotations import check_unique
from utils.errors import UserError
from x2vlm.base import LoadedModel
from x2vlm.suites.scoring import Case, ScoredCases, score_cases
from x2vlm.suites.suite import TIES, Judged, Suite, chosen_kinds, require_files, require_images

SEVERAL = ""
"""Key in ``file_of`` for a file that contains cases of several kinds."""

Rule = Callable[[np.ndarray], Mapping[str, float]]
"""A function that judges a case by its scores (images, texts). It returns the value of each measure, usually 1 for right and 0
for wrong. The values may depend only on the order of the scores."""

TIED = {"text only": 0, "image only": 1}
"""For each baseline, the axis of the scores (images, texts) along which all scores are tied."""

MAX_PERMUTED = 5
"""Maximum number of tied scores for which all orders are judged. For more scores, only rotations are judged, in which each score
takes each rank once."""


@dataclass(frozen=True, kw_only=True)
class CaseSuite(Suite[list[Case]]):
    """A suite that consists of cases.

    Attributes:
        file_of: the official file of each kind.
        cases: function that reads the cases of a kind from its file, including cases that the official protocol excludes.
        rule: the official rule.
        chance: the value of each measure for random scores. If empty, it is 1 / N, the chance of choosing the right text among
            the N texts of a case.
        text_rule: a rule for the cosines (texts, texts) between the texts. Its measures are computed only for the cosine score.
    """

    file_of: Mapping[str, str]
    cases: Callable[[str, Path], list[Case]]
    rule: Rule
    chance: Mapping[str, float]
    text_rule: Rule | None = None

    def files(self, folder: Path, kinds: Sequence[str]) -> list[str]:
        if SEVERAL in self.file_of:
            return [self.file_of[SEVERAL]]
        return [self.file_of[kind] for kind in chosen_kinds(tuple(self.file_of), kinds, self)]

    def read(self, folder: Path, kinds: Sequence[str]) -> list[Case]:
        kind_of = {name: kind for kind, name in self.file_of.items()}
        cases: list[Case] = []
        for path in require_files(folder, self.files(folder, kinds), self):
            file_cases = self.cases(kind_of[path.name], path)
            if not file_cases:
                raise UserError("contains no cases", where=path, remedy=f"download it again from {self.published_at}")
            check_unique(
                (case.id for case in file_cases),
                path,
                "two cases have the same id",
                f"download it again from {self.published_at}",
            )
            cases += file_cases
        chosen = chosen_kinds([case.kind for case in cases], kinds, self)
        cases = [case for case in cases if case.kind in chosen]
        measured = [case for case in cases if not case.excluded]
        if not measured:
            raise UserError(
                f"all {len(cases):,} cases are excluded: {cases[0].excluded}",
                where=folder,
                remedy="use the complete official file",
            )
        require_images([picture.path for case in measured for picture in case.pictures], self)
        return cases

    def judge(self, model: LoadedModel, content: list[Case]) -> Judged:
        scored = score_cases(model, [case for case in content if not case.excluded])
        cases, scores = scored.cases, scored.scores
        judged = {
            score: {
                condition: [self._judge(score, condition, scored, index) for index in range(len(cases))]
                for condition in by_condition
            }
            for score, by_condition in scores.items()
        }
        values = {
            score: {
                condition: np.array([[one.get(measure, np.nan) for measure in self.measures] for one in each])
                for condition, each in by_condition.items()
            }
            for score, by_condition in judged.items()
        }
        excluded = Counter(case.excluded for case in content if case.excluded)
        kinds = {case.kind: None for case in content if not case.excluded}.keys() - {case.kind for case in cases}
        return Judged(
            [case.kind for case in cases],
            [str(case.pictures[0].path) for case in cases],
            values,
            self.chance or self._chance_of_choices(cases),
            [case.part for case in cases],
            [
                {
                    "id": case.id,
                    "kind": case.kind,
                    "part": case.part,
                    "images": [str(picture.path) for picture in case.pictures],
                    "boxes": [picture.box for picture in case.pictures],
                    "texts": case.texts,
                    "right": {score: by_condition["model"][index] for score, by_condition in judged.items()},
                    **{
                        name: {
                            score: by_condition[condition][index].round(9).tolist()
                            for score, by_condition in scores.items()
                        }
                        for name, condition in (
                            ("scores", "model"),
                            ("text_only", "text only"),
                            ("image_only", "image only"),
                        )
                    },
                }
                for index, case in enumerate(cases)
            ],
            [
                *(f"{count:,} of {len(content):,} cases are excluded: {why}" for why, count in excluded.items()),
                *scored.notes(),
                *(f"no case of {kind} could be scored" for kind in sorted(kinds)),
                TIES,
            ],
        )

    def _judge(self, score: str, condition: str, scored: ScoredCases, index: int) -> dict[str, float]:
        """Returns the value of each measure for a case. Ties that a baseline causes by construction count with their expected
        value."""
        scores, cosines = scored.scores[score][condition][index], scored.text_cosines[index]
        found = dict(self.rule(scores) if condition == "model" else expected_value(self.rule, scores, TIED[condition]))
        if self.text_rule is not None and score == "cosine":
            text_values = self.text_rule(cosines)
            found |= (
                {measure: self.chance[measure] for measure in text_values} if condition == "image only" else text_values
            )
        return found

    def _chance_of_choices(self, cases: Sequence[Case]) -> dict[str, float]:
        chances: dict[str, list[float]] = {}
        for case in cases:
            chances.setdefault(case.kind, []).append(1 / len(case.texts))
        return {
            f"{kind}: {measure}": float(np.mean(each)) for kind, each in chances.items() for measure in self.measures
        }


def expected_value(rule: Rule, scores: np.ndarray, axis: int) -> dict[str, float]:
    """Returns the expected value of each measure if ties between scores along an axis are broken at random.

    Args:
        rule: judges a case.
        scores: (images, texts).
        axis: 0 if each text has the same score with all images; 1 if each image has the same score with all texts.
    """
    if scores.shape[axis] == 1:
        return dict(rule(scores))
    _, ranks = np.unique(scores, return_inverse=True)
    count = scores.shape[1]
    flat = ranks.reshape(-1).tolist()
    return dict(
        _expected(rule, tuple(tuple(flat[start : start + count]) for start in range(0, len(flat), count)), axis)
    )


@lru_cache(maxsize=1 << 14)
def _expected(rule: Rule, ranks: tuple[tuple[int, ...], ...], axis: int) -> Mapping[str, float]:
    base = np.array(ranks, np.float64)
    count, lines = base.shape[axis], base.shape[1 - axis]
    orders: list[Sequence[int]] = (
        list(itertools.permutations(range(count)))
        if count <= MAX_PERMUTED
        else [np.roll(range(count), shift).tolist() for shift in range(count)]
    )
    values = []
    for chosen in itertools.product(orders, repeat=lines):
        order = np.array(chosen) / count  # (lines, count), smaller than the difference between two ranks
        values.append(rule(base + (order if axis else order.T)))
    return {measure: float(np.mean([value[measure] for value in values])) for measure in values[0]}


def first_text_is_best(scores: np.ndarray) -> dict[str, float]:
    """Counts a case as right if its first text has a higher score than all others. A tie counts as wrong."""
    (row,) = scores
    return {"accuracy": float(row[0] > row[1:].max())}


def pairs_match(scores: np.ndarray) -> dict[str, float]:
    """Winoground's rule for two images and their texts (Thrush et al., 2022, equations 1 to 3). A tie counts as wrong.

    The measure ``text`` is 1 if each image has a higher score with its own text than with the other text. ``image`` is 1 if each
    text has a higher score with its own image than with the other image. ``group`` is 1 if both are 1.
    """
    own = np.diag(scores)
    text, image = bool((own > np.diag(scores[:, ::-1])).all()), bool((own > np.diag(scores[::-1])).all())
    return {"text": float(text), "image": float(image), "group": float(text and image)}


def choices_and_pairs_match(scores: np.ndarray) -> dict[str, float]:
    """Returns the fraction of the images that have a higher score with their own text, followed by the values of
    :func:`pairs_match`."""
    return {"accuracy": float((np.diag(scores) > np.diag(scores[:, ::-1])).mean()), **pairs_match(scores)}
