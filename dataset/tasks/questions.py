"""Questions about images: one of them, and a training split as columns of arrays."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from dataset.columns import RepeatedTextColumn, TextColumn
from dataset.records.schema import ImageSource


@dataclass(frozen=True, slots=True)
class Question:
    """``answers``: that of every annotator as written, or none. ``answer_type``: the data set's word for it, or "".
    ``weight``: factor of the answers' losses. There are millions: questions about a picture share its ``path``."""

    question_id: int | str
    question: str
    path: Path
    answers: tuple[str, ...]
    answer_type: str
    weight: float
    place: str

    @property
    def picture(self) -> ImageSource:
        """The picture that is asked about."""
        return ImageSource(self.place, path=self.path)

    def weighted_answers(self) -> list[tuple[str, float]]:
        """Each different answer with the share of annotators who gave it, times the weight (released)."""
        counts = Counter(self.answers)
        return [(answer, self.weight * count / len(self.answers)) for answer, count in counts.items()]

    def most_frequent(self) -> str:
        """The answer of most annotators, of equally many the first."""
        return Counter(self.answers).most_common(1)[0][0]


class QuestionTable(Sequence[Question]):
    """A sequence of :class:`Question` that makes each one when it is asked for."""

    def __init__(self, questions: Sequence[Question]):
        self._ids = TextColumn(json.dumps(each.question_id) for each in questions)
        self._texts = TextColumn(each.question for each in questions)
        self._paths = RepeatedTextColumn(str(each.path) for each in questions)
        self._answers = RepeatedTextColumn(answer for each in questions for answer in each.answers)
        self._answer_ends = np.cumsum([0, *(len(each.answers) for each in questions)], dtype=np.int64)
        self._types = RepeatedTextColumn(each.answer_type for each in questions)
        self._weights = np.array([each.weight for each in questions], np.float64)
        # A place is a file, or a file and a row's number in it: the texts differ in their ends.
        parts = [each.place.rpartition(":" if each.place[-1:].isdigit() else "[") for each in questions]
        self._files = RepeatedTextColumn(before + sign for before, sign, _ in parts)
        self._rows = TextColumn(row for _, _, row in parts)

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        columns = (self._ids, self._texts, self._paths, self._answers, self._types, self._files, self._rows)
        return sum(column.nbytes for column in columns) + self._answer_ends.nbytes + self._weights.nbytes

    @overload
    def __getitem__(self, index: int) -> Question: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Question]: ...

    def __getitem__(self, index: int | slice) -> Question | Sequence[Question]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return Question(
            question_id=json.loads(self._ids[row]),
            question=self._texts[row],
            path=Path(self._paths[row]),
            answers=tuple(self._answers[at] for at in range(self._answer_ends[row], self._answer_ends[row + 1])),
            answer_type=self._types[row],
            weight=float(self._weights[row]),
            place=self.place(row),
        )

    def __iter__(self) -> Iterator[Question]:
        return (self[row] for row in range(len(self)))

    def place(self, row: int) -> str:
        """Where a question comes from."""
        return self._files[row] + self._rows[row]
