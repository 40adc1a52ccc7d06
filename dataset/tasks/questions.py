"""Questions about images or videos: checks each question, and stores millions of them as columns of arrays."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from dataset.broken import BrokenRecordError
from dataset.columns import RepeatedTextColumn, SourceColumn, TextColumn
from dataset.formats.annotations import Row
from dataset.media.sources import ImageSource, VideoSource
from dataset.records.schema import check_text
from dataset.text.processors import clean_question
from utils.errors import UserError


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image or video.

    Attributes:
        question_id: id of the question.
        question: the question.
        source: the image or video.
        answers: the answer of each annotator as written, or an empty tuple. Some answers may be blank, but not all.
        answer_type: the data set's name for the type of the answer, or "".
        weight: factor on the losses of the answers.
    """

    question_id: int | str
    question: str
    source: ImageSource | VideoSource
    answers: tuple[str, ...]
    answer_type: str = ""
    weight: float = 1.0

    @property
    def location(self) -> str:
        """Location of the question's row."""
        return self.source.location

    def weighted_answers(self) -> list[tuple[str, float]]:
        """Returns each distinct answer with its weight: the fraction of annotators who gave it, times :attr:`weight`, as in the
        authors' code.

        Annotators who left the answer blank count in the fraction, but blank answers are not returned, so that the model does not
        learn them.
        """
        return [(answer, self.weight * count / len(self.answers)) for answer, count in self._given().items()]

    def most_frequent(self) -> str:
        """Returns the most frequent answer. If several are equally frequent, it returns the first."""
        return self._given().most_common(1)[0][0]

    def _given(self) -> Counter[str]:
        """Returns the number of annotators who gave each answer, without blank answers."""
        return Counter(answer for answer in self.answers if answer.strip())


def question_of(row: Row, source: ImageSource | VideoSource, *, answered: bool, weight: float = 1.0) -> Question:
    """Parses the question of a row.

    Args:
        row: row of the annotations with ``question``, and optionally ``answer`` (a text or a list of texts), ``answer_type`` and
            ``question_id`` (or ``id``).
        source: the image or video.
        answered: if True, a row without answers is broken.
        weight: see :class:`Question`.

    Raises:
        BrokenRecordError: "missing key", "wrong type", "empty text" or "bad text".
    """
    text = row.get("question", str)
    if not clean_question(text, 1000).strip():
        raise BrokenRecordError("empty text", f"question is {text[:80]!r}, a text without words")
    identity = row.values.get("question_id", row.values.get("id"))
    return Question(
        question_id=identity if isinstance(identity, int | str) else row.location,
        question=text,
        source=source,
        answers=_answers(row) if answered or row.values.get("answer") is not None else (),
        answer_type=sys.intern(str(row.values.get("answer_type") or "")),
        weight=weight,
    )


def _answers(row: Row) -> tuple[str, ...]:
    value: Any = row.get("answer", object)
    answers = value if isinstance(value, list) else [value]
    for answer in answers:
        if not isinstance(answer, str):
            raise BrokenRecordError("wrong type", f"answer contains {answer!r:.80}, not a text")
        check_text(answer, "answer")
    if not any(answer.strip() for answer in answers):
        raise BrokenRecordError("empty text", "no answer, or only empty answers")
    return tuple(sys.intern(answer) for answer in answers)


def check_all_answered_or_none(questions: Sequence[Question], key: str) -> None:
    """Raises :class:`UserError`, naming the config ``key``, if only some questions have answers."""
    without = [question for question in questions if not question.answers]
    if 0 < len(without) < len(questions):
        raise UserError(
            f"{len(without)} of {len(questions)} questions have no answers (the first: {without[0].location})",
            where=key,
            remedy="give answers to all of them, so that metrics can be computed, or to none",
        )


@dataclass(frozen=True)
class QuestionGroup:
    """Questions about the same image or video. ``location`` is the location of the first question."""

    questions: list[Question]

    @property
    def source(self) -> ImageSource | VideoSource:
        return self.questions[0].source

    @property
    def location(self) -> str:
        return self.questions[0].location


class QuestionGroups:
    """Groups questions about the same image. Every question is in exactly one group.

    Args:
        table: the questions.
        max_questions: maximum number of questions in a group. With 1, group n is question n.
        separate: (N,) bool; questions with different values are never in the same group. If None, any questions about an image
            may be grouped.
    """

    def __init__(self, table: QuestionTable, max_questions: int, separate: Sequence[bool] | None = None):
        self._table = table
        kinds = 2 * table.image_indices() + (0 if separate is None else np.asarray(separate))
        # A stable sort keeps the questions about an image in their order; groups are in the order of their first questions.
        self._rows = np.argsort(kinds, kind="stable")
        in_order = kinds[self._rows]
        first_of_kind = np.flatnonzero(np.diff(in_order, prepend=in_order[:1] - 1))
        index_in_image = np.arange(len(table)) - np.repeat(first_of_kind, np.diff(first_of_kind, append=len(table)))
        starts = np.flatnonzero(index_in_image % max_questions == 0)
        order = np.argsort(self._rows[starts])
        self._starts, self._ends = starts[order], np.append(starts[1:], len(table))[order]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, group: int) -> QuestionGroup:
        return QuestionGroup([self._table[row] for row in self.rows(group)])

    def rows(self, group: int) -> list[int]:
        """Returns the indices of the questions of a group."""
        rows: list[int] = self._rows[self._starts[group] : self._ends[group]].tolist()
        return rows


class QuestionTable(Sequence[Question]):
    """A sequence of questions. It stores columns, and makes a :class:`Question` when an item is accessed."""

    def __init__(self, questions: Sequence[Question]):
        self._ids = TextColumn(json.dumps(question.question_id) for question in questions)
        self._texts = TextColumn(question.question for question in questions)
        self._answers = RepeatedTextColumn(answer for question in questions for answer in question.answers)
        self._answer_ends = np.cumsum([0, *(len(question.answers) for question in questions)], dtype=np.int64)
        self._types = RepeatedTextColumn(question.answer_type for question in questions)
        self._weights = np.array([question.weight for question in questions], np.float64)
        self._sources = SourceColumn([question.source for question in questions])

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def nbytes(self) -> int:
        """Size of all columns in bytes."""
        columns = (self._ids, self._texts, self._sources, self._answers, self._types)
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
            source=self.source(row),
            answers=tuple(self._answers[at] for at in range(self._answer_ends[row], self._answer_ends[row + 1])),
            answer_type=self._types[row],
            weight=float(self._weights[row]),
        )

    def __iter__(self) -> Iterator[Question]:
        return (self[row] for row in range(len(self)))

    def source(self, row: int) -> ImageSource | VideoSource:
        """Returns the image or video of a question."""
        return self._sources[row]

    def sources(self) -> list[ImageSource | VideoSource]:
        """Returns each distinct image or video once. Its location is that of the first question about it."""
        first_rows = np.unique(self.image_indices(), return_index=True)[1]
        return [self.source(row) for row in sorted(first_rows.tolist())]

    def image_indices(self) -> np.ndarray:
        """Returns the index (N,) of the image or video of each question. Two indices are equal if and only if the files are
        equal."""
        return self._sources.file_indices()

    def location(self, row: int) -> str:
        """Returns the location of a question."""
        return self._sources.location(row)

    def answer_counts(self) -> dict[str, int]:
        """Returns the number of annotators who gave each distinct answer, over all questions, without blank answers."""
        counts = np.bincount(self._answers.numbers, minlength=len(self._answers.texts)).tolist()
        texts = self._answers.texts
        return {texts[number]: count for number, count in enumerate(counts) if texts[number].strip()}
