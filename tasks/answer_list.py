"""``python -m tasks.answer_list``: builds the list of candidate answers for question answering from the training questions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dataset.tasks.vqa import COMMON, frequent_answers, read_questions
from metrics.vqa import normalize_answer
from tasks.config import VQAConfig
from utils.commands import call
from utils.config import load_config
from utils.errors import UserError
from utils.files import expanded, write_text
from utils.flags import Override, Positive


def answer_list(*overrides: Override, config: Path, at_least: Positive = COMMON) -> int:
    """Write the frequent answers to the training questions, normalised as in the metric, to the file evaluation.answers, and
    print the number of answers and the fraction of questions that they cover.

    The published list for VQA v2 was built in the same way from the training and validation questions.

    Args:
        overrides: config values to override, as key=value.
        config: YAML file of a question-answering run.
        at_least: minimum number of questions in which an answer must occur.

    Examples:
        python -m tasks.answer_list --config configs/vqa/vqa2_base_4m.yaml evaluation.answers=answers.json
    """
    values = load_config(config, overrides, VQAConfig)
    if values.evaluation.answers is None:
        raise UserError("evaluation.answers is null", remedy="pass the file to write: evaluation.answers=FILE")
    questions = [
        question
        for number, source in enumerate(values.data.train)
        for question in read_questions(source, f"data.train[{number}]", values.data.max_broken, answered=True)
    ]
    answers = frequent_answers(questions, normalize_answer, at_least)
    if not answers:
        raise UserError(
            f"no answer occurs in {at_least} questions", where=f"--at-least {at_least}", remedy="use a smaller number"
        )
    out = expanded(values.evaluation.answers)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(answers, ensure_ascii=False) + "\n")
    covered = sum(normalize_answer(question.most_frequent()) in set(answers) for question in questions) / len(questions)
    sys.stdout.write(
        f"{out}: {len(answers)} answers; they cover the most frequent answer of {covered:.1%} of {len(questions)} questions\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(call(answer_list, sys.argv[1:], "python -m tasks.answer_list"))
