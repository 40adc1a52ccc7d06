"""The results of a suite: rows by kind with intervals and baselines, as a table and as a receipt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metrics.bootstrap import resampled
from x2vlm.suites.cases import Case, Suite
from x2vlm.suites.scoring import SCORES, CaseScores

DRAWS_AT_ONCE = 100


@dataclass(frozen=True)
class Result:
    """One number of a suite, in 0..1: its 95 % interval over images, and the same measure for the baselines."""

    row: str
    measure: str
    value: float
    interval: tuple[float, float] | None
    text_only: float
    image_only: float
    chance: float

    @property
    def name(self) -> str:
        return f"{self.row}: {self.measure}"


def results_of(
    suite: Suite, cases: Sequence[Case], scores: Mapping[str, CaseScores], *, draws: int, seed: int = 0
) -> dict[str, list[Result]]:
    """Judges the scores by the rule of the suite.

    Args:
        suite: the suite.
        cases: its cases.
        scores: as :func:`~x2vlm.suites.scoring.score_cases` returns them.
        draws: bootstrap draws for the intervals, 0 for none. Cases with the same first image are drawn together.
        seed: seed of the draws.

    Returns:
        The results by score: cosine, matching, both.
    """
    found = {}
    groups = [str(case.pictures[0].path) for case in cases]
    for score in SCORES:
        measures = list(suite.chance)
        judged = {
            look: np.array([[suite.rule(each)[measure] for measure in measures] for each in of_look[score]])
            for look, of_look in scores.items()
        }
        values = {look: dict(_rows(suite, cases, each, np.ones((1, len(cases))))) for look, each in judged.items()}
        ends: dict[str, np.ndarray] = {}
        if draws:
            parts = [
                dict(_rows(suite, cases, judged["model"], weights))
                for weights in resampled(groups, draws, seed, DRAWS_AT_ONCE)
            ]
            ends = {
                row: np.nanquantile(np.concatenate([part[row] for part in parts]), [0.025, 0.975], axis=0)
                for row in parts[0]
            }
        found[score] = [
            Result(
                row,
                measure,
                float(mean[0, index]),
                (float(ends[row][0, index]), float(ends[row][1, index])) if draws else None,
                float(values["text only"][row][0, index]),
                float(values["image only"][row][0, index]),
                suite.chance[measure],
            )
            for row, mean in values["model"].items()
            for index, measure in enumerate(measures)
        ]
    return found


def _rows(
    suite: Suite, cases: Sequence[Case], judged: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each kind and summary with the means of all measures, (draws, measures).

    Args:
        suite: the suite.
        cases: N cases.
        judged: (N, measures) values.
        weights: (draws, N) how often each case counts.
    """
    kinds = np.array([case.kind for case in cases])
    known: dict[str, np.ndarray] = {}
    for kind in dict.fromkeys(kinds.tolist()):
        chosen = kinds == kind
        if suite.over_parts:
            of_cases = np.array([case.part for case in cases])
            parts = [chosen & (of_cases == part) for part in dict.fromkeys(of_cases[chosen].tolist())]
            known[kind] = np.nanmean([_mean(judged, weights, part) for part in parts], axis=0)
        else:
            known[kind] = _mean(judged, weights, chosen)
        yield kind, known[kind]
    for name, (way, members) in (suite.summaries or {}).items():
        if not all(member in known for member in members):
            continue  # the user chose some of the kinds
        if way == "micro":
            known[name] = _mean(judged, weights, np.isin(kinds, members) if members else np.ones(len(cases), bool))
        else:
            known[name] = np.mean([known[member] for member in members], axis=0)
        yield name, known[name]


def _mean(judged: np.ndarray, weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The weighted means of the chosen cases (draws, measures); NaN in draws without any of them."""
    weights = weights[:, chosen]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: np.ndarray = weights @ judged[chosen] / weights.sum(axis=1, keepdims=True)
    return mean


def table(suite: Suite, results: Mapping[str, Sequence[Result]], cases: int) -> str:
    """Formats the results of a suite, in percent."""
    lines = [f"{suite.title}: {cases:,} cases"]
    width = max(len(result.name) for each in results.values() for result in each)
    published = {model.model: model for model in suite.published}
    for score, each in results.items():
        lines += [
            "",
            f"{score} ({SCORES[score]})",
            f"{'':{width}}  measured  95 % interval   text only  image only  chance",
        ]
        for result in each:
            ends = "" if result.interval is None else f"[{', '.join(f'{100 * end:.1f}' for end in result.interval)}]"
            lines.append(
                f"{result.name:{width}}  {100 * result.value:8.1f}  {ends:14}  {100 * result.text_only:9.1f}  "
                f"{100 * result.image_only:10.1f}  {100 * result.chance:6.1f}"
            )
    if published:
        names = list(dict.fromkeys(name for model in suite.published for name in model.values))
        width = max(map(len, names))
        lines += ["", "published"]
        columns = [max(len(model), 7) for model in published]
        lines.append(
            f"{'':{width}}  " + "  ".join(f"{model:>{room}}" for model, room in zip(published, columns, strict=True))
        )
        for name in names:
            numbers = [published[model].values.get(name) for model in published]
            shown = ["" if number is None else f"{number:.1f}" for number in numbers]
            lines.append(
                f"{name:{width}}  " + "  ".join(f"{text:>{room}}" for text, room in zip(shown, columns, strict=True))
            )
        sources = dict.fromkeys(model.source for model in suite.published)
        lines += [f"source: {source}" for source in sources]
    lines += ["", f"cite: {suite.paper}"]
    return "\n".join([*lines, *([f"note: {suite.note}"] if suite.note else [])])


def as_json(suite: Suite, results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Returns the results, and the published ones, for the receipt."""
    return {
        "suite": suite.title,
        "paper": suite.paper,
        "scores": {
            score: {
                result.name: {
                    "value": result.value,
                    "interval": None if result.interval is None else list(result.interval),
                    "text_only": result.text_only,
                    "image_only": result.image_only,
                    "chance": result.chance,
                }
                for result in each
            }
            for score, each in results.items()
        },
        "published": [
            {"model": each.model, "values": dict(each.values), "source": each.source} for each in suite.published
        ],
    }
