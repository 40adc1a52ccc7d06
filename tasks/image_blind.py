"""The image-blind baseline for question answering: the accuracy that the wording of a question alone allows.

A model that always gives the same answer to the same wording, regardless of the image, cannot exceed this accuracy.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from dataset.tasks.questions import Question
from dataset.text.processors import clean_question

IMAGE_BLIND = "image-blind baseline"
"""Name of the metric. If there are several answer types, the type precedes the name: "yes/no: image-blind baseline"."""
STANDARD_ERRORS = 2.0
"""A model beats the baseline if its accuracy is higher by more than this number of standard errors."""
ADVICE = "the model may ignore the images; see docs/own_data.md#questions"


class ImageBlindBaseline:
    """Answers a question with the most frequent training answer to the same wording.

    For a wording that does not occur in training, it gives the most frequent answer of the answer type. For an answer type that
    does not occur in training, it gives the most frequent answer overall.

    Args:
        training: the training questions.
        held_out: the held-out questions to answer. Only their wordings are counted, because there may be millions of training
            questions.
    """

    def __init__(self, training: Iterable[Question], held_out: Iterable[Sequence[Question]]):
        wordings = {_wording(question) for questions in held_out for question in questions}
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        type_counts: dict[str, Counter[str]] = defaultdict(Counter)
        for question in training:
            answer = question.most_frequent()
            type_counts[question.answer_type][answer] += 1
            if (wording := _wording(question)) in wordings:
                counts[wording][answer] += 1
        self._by_wording = {wording: _most_common(answers) for wording, answers in counts.items()}
        self._by_type = {kind: _most_common(answers) for kind, answers in type_counts.items()}
        self._overall = _most_common(sum(type_counts.values(), Counter()))

    def answer(self, question: Question) -> str:
        """Returns the baseline's answer."""
        default = self._by_type.get(question.answer_type, self._overall)
        return self._by_wording.get(_wording(question), default)


def unbeaten_baselines(values: Mapping[str, float | None]) -> list[str]:
    """Returns a message, to be shown with :data:`ADVICE`, for each accuracy that is not clearly above its image-blind baseline.

    Args:
        values: metrics of a split by name; accuracies and baselines are in 0..1.
    """
    statements = []
    for name, baseline in values.items():
        if not name.endswith(IMAGE_BLIND) or baseline is None:
            continue
        prefix = name.removesuffix(IMAGE_BLIND)
        accuracy = values.get(f"{prefix}accuracy")
        count = values.get(f"{prefix.removesuffix(': ')} questions" if prefix else "questions")
        if accuracy is None or not count:
            continue
        error = math.sqrt(accuracy * (1 - accuracy) / count)
        if accuracy - STANDARD_ERRORS * error <= baseline:
            statements.append(
                f"{prefix}accuracy {accuracy:.1%} is not clearly above its image-blind baseline of {baseline:.1%}"
            )
    return statements


def _wording(question: Question) -> str:
    return clean_question(question.question, 1000).strip()


def _most_common(answers: Counter[str]) -> str:
    return answers.most_common(1)[0][0] if answers else ""
