"""``python -m tasks.answer_list --config FILE [--at-least 9] [key=value ...]``: make the candidate list.

The command writes the frequent answers of the training questions, normalised as in the metric, to the file
``evaluation.answers``. The published list of VQA v2 follows this rule, from training and validation questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dataset.prepare.folders import LineParser, whole_number
from dataset.tasks.vqa import COMMON, frequent_answers, read_questions
from metrics.vqa import normalize_answer
from tasks.vqa import VQAConfig
from utils.config import load_config
from utils.errors import UserError, one_line_errors
from utils.files import expanded, write_text


@one_line_errors
def main() -> int:
    """Write the list and print its size and coverage; returns the exit status, 2 for a mistake of the user."""
    parser = LineParser(
        prog="python -m tasks.answer_list", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="YAML file of a question-answering run"
    )
    parser.add_argument(
        "--at-least",
        type=whole_number(1, 10**9),
        default=COMMON,
        metavar="N",
        help=f"least number of questions with an answer (default: {COMMON})",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the config's")
    flags = parser.parse_args()
    config = load_config(flags.config, flags.overrides, VQAConfig)
    if config.evaluation.answers is None:
        raise UserError("evaluation.answers is null: name the file to write, evaluation.answers=FILE")
    questions = [
        question
        for number, source in enumerate(config.data.train)
        for question in read_questions(source, f"data.train[{number}]", config.data.max_broken, answered=True)
    ]
    answers = frequent_answers(questions, normalize_answer, flags.at_least)
    if not answers:
        raise UserError(f"--at-least {flags.at_least}: no answer occurs in so many questions; give a smaller number")
    out = expanded(config.evaluation.answers)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(answers, ensure_ascii=False) + "\n")
    covered = sum(normalize_answer(question.most_frequent()) in set(answers) for question in questions) / len(questions)
    sys.stdout.write(
        f"{out}: {len(answers)} answers; they cover the most frequent answer of {covered:.1%} of {len(questions)} questions\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
