"""``python -m tasks.answer_list --config FILE [--at-least 9] [key=value ...]``: make a question answering run's candidate list.

Reads the run's training questions and writes the answers that are frequent among them, normalised as the metric normalises
them, to the file that ``evaluation.answers`` names. VQA v2's list came from training and validation questions by this rule.
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
from utils.files import write_text


@one_line_errors
def main() -> int:
    """Write the list and print one line of facts; exit status 2 for a mistake of the user."""
    parser = LineParser(
        prog="python -m tasks.answer_list", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="of a question answering run")
    parser.add_argument(
        "--at-least",
        type=whole_number(1, 10**9),
        default=COMMON,
        metavar="N",
        help=f"questions an answer is given to; {COMMON}",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    flags = parser.parse_args()
    config = load_config(flags.config, flags.overrides, VQAConfig)
    questions = [
        question
        for number, source in enumerate(config.data.train)
        for question in read_questions(source, f"data.train[{number}]", config.data.max_broken, answered=True)
    ]
    answers = frequent_answers(questions, normalize_answer, flags.at_least)
    if not answers:
        raise UserError(f"no answer is that of {flags.at_least} questions; give a smaller --at-least")
    out = Path(config.evaluation.answers).expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(answers, ensure_ascii=False) + "\n")
    covered = sum(normalize_answer(question.most_frequent()) in set(answers) for question in questions) / len(questions)
    sys.stdout.write(
        f"{out}: {len(answers)} answers, that of most annotators to {covered:.1%} of {len(questions)} questions\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
