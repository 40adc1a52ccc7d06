"""Determines which predictions of a run are right: from the prediction file, if it says so, otherwise from the annotations of the
split."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metrics.captions import caption_scores
from metrics.vqa import SOFT, accuracy_type, exact_match, soft_accuracy
from tasks.box_sets import summary_of
from tasks.drawing import Line

Prediction = Mapping[str, Any]

FAILURES = 0.75
"""Fraction of the shown examples that are failures, if there are enough failures. Right examples follow."""
MALFORMED = (KeyError, TypeError, ValueError, AttributeError)
"""Exceptions that are raised for predictions of an unknown format."""
MAX_SHOWN_CHARACTERS = 200
"""Maximum number of characters shown for a value of an unknown format."""


@dataclass(frozen=True)
class Judged:
    """A prediction.

    Attributes:
        score: a score that is lower for worse predictions; None if unknown.
        right: whether the prediction is right; None if the task does not define right and wrong.
        subject: the text that the prediction is about.
        answer: the prediction in a few words.
    """

    number: int
    subject: str
    answer: str
    score: float | None = None
    right: bool | None = None


def judged(predictions: Sequence[Prediction], items: Any | None, task: str | None) -> list[Judged]:
    """Judges the predictions of a split, in order.

    Args:
        predictions: predictions in the file.
        items: the split as the task reads it; None if it cannot be read.
        task: name of the task.
    """
    if items is not None and task == "captioning":
        captions = [str(prediction["caption"]) for prediction in predictions]
        scores = caption_scores(captions, items.references())[1]["CIDEr"].tolist()
        return [
            Judged(number, _text(prediction, "image_id"), caption, score)
            for number, (prediction, caption, score) in enumerate(zip(predictions, captions, scores, strict=True))
        ]
    if items is not None and task in ("vqa", "video_qa"):
        return [_answer(n, prediction, items[n], task) for n, prediction in enumerate(predictions)]
    return [_judge(number, prediction) for number, prediction in enumerate(predictions)]


def chosen(examples: Sequence[Judged], count: int) -> list[Judged]:
    """Returns up to ``count`` examples: first the worst failures, then right ones. Equally bad examples are spread over the
    split.

    If nothing can be judged, the examples are spread evenly over the split, in order.
    """
    shuffled = random.Random(0).sample(list(examples), len(examples))
    known = [example for example in shuffled if example.score is not None]
    if not known:
        interval = max(1, -(-len(examples) // max(1, count)))
        return list(examples[::interval][:count])
    worst_first = sorted(known, key=lambda example: (example.right is True, example.score))
    if any(
        example.right is None for example in known
    ):  # predictions are not right or wrong: show the worst first, then the best
        failures = min(len(worst_first), max(1, round(FAILURES * count)))
        best = worst_first[failures:][::-1][: count - failures][::-1]
        return [*worst_first[:failures], *best][:count]
    wrong = [example for example in worst_first if not example.right]
    right = [example for example in shuffled if example.right]
    failures = min(len(wrong), max(round(FAILURES * count), count - len(right)))
    return [*wrong[:failures], *right[: count - failures]][:count]


def lines_of(prediction: Prediction) -> tuple[Line, ...]:
    """Shows a prediction as text, for predictions that cannot be drawn."""
    for recognises, lines, _ in _FORMATS:
        if recognises(prediction):
            try:
                return tuple(lines(prediction))
            except MALFORMED:
                break
    return tuple(Line(f"{key}: {_short(value)}") for key, value in prediction.items())


def _judge(number: int, prediction: Prediction) -> Judged:
    for recognises, _, judge in _FORMATS:
        if recognises(prediction):
            return judge(number, prediction)
    subject = next((f"{key} {_short(prediction[key])}" for key in prediction), f"example {number}")
    return Judged(number, subject, "; ".join(_short(value) for value in list(prediction.values())[1:]))


def _is_box(prediction: Prediction) -> bool:
    return isinstance(prediction.get("iou"), int | float) and "phrase" in prediction


def _box(number: int, prediction: Prediction) -> Judged:
    overlap = float(prediction["iou"])
    return Judged(number, _text(prediction, "phrase"), f"IoU {overlap:.2f}", overlap, overlap >= 0.5)


def _box_lines(prediction: Prediction) -> list[Line]:
    line = Line(f"IoU {prediction['iou']:.2f} · {prediction['phrase']}", prediction["iou"] >= 0.5)
    return [line, *([Line(str(prediction["image"]), faint=True)] if "image" in prediction else [])]


def _is_set(prediction: Prediction) -> bool:
    return isinstance(prediction.get("f1"), int | float) and "phrase" in prediction


def _set(number: int, prediction: Prediction) -> Judged:
    f1 = float(prediction["f1"])
    answer = f"predicted {len(prediction['predicted'])}, true {len(prediction['true'])}"
    return Judged(number, _text(prediction, "phrase"), answer, f1, f1 == 1)


def _set_lines(prediction: Prediction) -> list[Line]:
    line = Line(summary_of(prediction), prediction["f1"] == 1)
    return [line, *([Line(str(prediction["image"]), faint=True)] if "image" in prediction else [])]


def _is_class(prediction: Prediction) -> bool:
    return all(isinstance(prediction.get(key), str | int) for key in ("predicted", "true"))


def _class(number: int, prediction: Prediction) -> Judged:
    right = prediction["predicted"] == prediction["true"]
    subject = next((str(prediction[key]) for key in ("sentence", "text", "place") if key in prediction), f"{number}")
    return Judged(number, subject, str(prediction["predicted"]), float(right), right)


def _class_lines(prediction: Prediction) -> list[Line]:
    others = [Line(_short(value)) for key, value in prediction.items() if key in ("sentence", "text")]
    right = prediction["predicted"] == prediction["true"]
    lines = [Line(f"predicted: {prediction['predicted']}", right), Line(f"annotated: {prediction['true']}", faint=True)]
    return [*others, *lines, *([Line(str(prediction["place"]), faint=True)] if "place" in prediction else [])]


def _is_ranking(prediction: Prediction) -> bool:
    return isinstance(prediction.get("nearest"), list) and "image_id" in prediction


def _ranking(number: int, prediction: Prediction) -> Judged:
    marks = _marks(prediction)
    rank = marks.index(True) + 1 if True in marks else None
    subject = str(prediction["caption"]) if "caption" in prediction else f"image {prediction['image_id']}"
    answer = f"rank {rank}" if rank else f"not among the {len(marks)} nearest"
    return Judged(number, subject, answer, 1 / rank if rank else 0.0, rank == 1)


def _marks(prediction: Prediction) -> list[bool]:
    """Returns which of the nearest items are right."""
    return [
        near.get("image_id") == prediction["image_id"] if "text" in prediction else bool(near.get("right"))
        for near in prediction["nearest"]
    ]


def _ranking_lines(prediction: Prediction) -> list[Line]:
    marks = _marks(prediction)
    head = Line(str(prediction.get("caption", f"image {prediction['image_id']}")), bool(marks) and marks[0])
    nearest = zip(prediction["nearest"][:5], marks, strict=False)
    lines = [Line(f"{near.get('score')} · {near.get('caption', near.get('image_id'))}", mark) for near, mark in nearest]
    return [head, *lines]


def _is_record(prediction: Prediction) -> bool:
    return "place" in prediction and (isinstance(prediction.get("boxes"), list) or "ranks" in prediction)


def _record(number: int, prediction: Prediction) -> Judged:
    boxes = [float(box["iou"]) for box in prediction.get("boxes", ())]
    ranks = ranks_of(prediction)
    right = [overlap >= 0.5 for overlap in boxes] + [rank == 1 for rank in ranks.values()]
    parts = [f"{sum(right[: len(boxes)])} of {len(boxes)} boxes"] if boxes else []
    parts += [f"{direction}: {_rank(rank)}" for direction, rank in ranks.items()]
    subject = str(prediction.get("caption") or prediction["place"])
    return Judged(number, subject, ", ".join(parts), sum(right) / max(1, len(right)), all(right))


def ranks_of(prediction: Prediction) -> dict[str, int | str]:
    """Returns the ranks of a pre-training record by direction, after re-ranking if there was any. A text says that the right
    result is not among the candidates."""
    ranks = prediction.get("ranks") or {}
    return dict(ranks.get("reranked") or ranks.get("cosine") or {})


def rank_lines(prediction: Prediction) -> list[Line]:
    """Returns the caption of a pre-training record, and its ranks."""
    lines = [Line(str(prediction["caption"]))] if "caption" in prediction else []
    for direction, rank in ranks_of(prediction).items():
        lines.append(Line(f"{direction}: {_rank(rank)}", rank == 1))
    return lines


def _rank(rank: int | str) -> str:
    return f"rank {rank}" if isinstance(rank, int) else rank


def _record_lines(prediction: Prediction) -> list[Line]:
    boxes = [line for box in prediction.get("boxes", ()) for line in _box_lines(box)]
    return [*rank_lines(prediction), *boxes, Line(str(prediction["place"]), faint=True)]


def _answer(number: int, prediction: Prediction, question: Any, task: str) -> Judged:
    answer = str(prediction["answer"])
    if not question.answers:
        return Judged(number, question.question, answer)
    if task == "video_qa":
        score = float(question.most_frequent() == answer)
    else:
        rule = soft_accuracy if accuracy_type([question.answers]) == SOFT else exact_match
        score = rule(answer, question.answers)
    return Judged(number, question.question, answer, score, score >= 0.5)


def _text(prediction: Prediction, key: str) -> str:
    return str(prediction.get(key, ""))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…"


_FORMATS: list[
    tuple[Callable[[Prediction], bool], Callable[[Prediction], list[Line]], Callable[[int, Prediction], Judged]]
] = [
    (_is_box, _box_lines, _box),
    (_is_set, _set_lines, _set),
    (_is_ranking, _ranking_lines, _ranking),
    (_is_record, _record_lines, _record),
    (_is_class, _class_lines, _class),
]
"""Prediction formats that state whether a prediction is right. For each format: functions that recognise it, format a prediction
as lines, and judge it."""
