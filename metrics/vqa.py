"""Accuracy of answers to questions: soft accuracy as in the official VQA v2 evaluation, or exact match if questions have few
answers.

This module follows the later official release, which treats predictions and annotators' answers alike. If the annotators
disagree, all answers and the prediction are fully normalised. If all annotators wrote the same answer, nothing is normalised, and
the prediction must equal this answer. The earlier release, which is often copied into research code, fully normalises
predictions, but only the punctuation of the annotators' answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
}
NUMBERS |= {"eight": "8", "nine": "9", "ten": "10"}
MIN_ANNOTATORS = 4
SOFT, EXACT = "soft accuracy of VQA v2", "exact match with one of the answers"

ARTICLES = frozenset(["a", "an", "the"])

_CONTRACTIONS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd it'll
ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's
someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're
why's won't would've wouldn't y'all you'd you'll you're you've
couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've
"""
"""All contractions in the official table. The table does not contain "she's", "we'd" or "he'll"."""

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = int(re.UNICODE)
"""Maximum number of periods to remove. (The official code mistakenly passes a flag as the count.)"""


def _misspellings() -> dict[str, str]:
    """Returns a table that maps each contraction without one of its apostrophes to the correct contraction."""
    table = {"somebody'd": "somebodyd"}  # reversed in the official table
    for word in _CONTRACTIONS.split():
        table |= {word[: mark.start()] + word[mark.end() :]: word for mark in re.finditer("'", word)}
    return table


CONTRACTIONS = _misspellings()


def normalize_answer(answer: str) -> str:
    """Normalises an answer: converts it to lower case, removes punctuation and articles, writes numbers up to ten as digits, and
    restores apostrophes in contractions.

    A punctuation mark is replaced by a space. It is removed without a space if the same mark occurs next to a space anywhere in
    the answer, or if the answer contains a comma between digits. A period is removed unless a digit follows.

    >>> normalize_answer("Two dogs, and the cat doesnt")
    "2 dogs and cat doesn't"
    >>> normalize_answer("red/white"), normalize_answer("1,000 a-b"), normalize_answer("2.5 ft.")
    ('red white', '1000 ab', '2.5 ft')
    """
    comma_in_number = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for mark in PUNCTUATION:
        next_to_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if comma_in_number or next_to_space else " ")
    text = _PERIOD.sub("", text, count=_MAX_PERIODS)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """Returns the agreement of the annotators with a prediction, in 0..1.

    The agreement is the mean over annotators of min(1, n / 3), where n is the number of other annotators who gave the predicted
    answer.

    Args:
        predicted: the predicted answer.
        answers: the answer of each annotator, ten in VQA v2; at least one.

    >>> soft_accuracy("2", ["two", "2", "Two.", *["three"] * 7])
    0.9
    """
    predicted, answers = _clean(predicted), [_clean(answer) for answer in answers]
    if len(set(answers)) > 1:
        predicted, answers = normalize_answer(predicted), [normalize_answer(answer) for answer in answers]
    agreeing = [answer == predicted for answer in answers]
    return sum(min(1.0, (sum(agreeing) - agrees) / 3) for agrees in agreeing) / len(answers)


def exact_match(predicted: str, answers: Sequence[str]) -> float:
    """Returns 1 if the prediction is one of the answers after normalisation, otherwise 0.

    >>> exact_match("The dogs", ["dogs", "two dogs"]), exact_match("cats", ["dogs"])
    (1.0, 0.0)
    """
    accepted = {normalize_answer(_clean(answer)) for answer in answers}
    return float(normalize_answer(_clean(predicted)) in accepted)


def accuracy_type(answers: Iterable[Sequence[str]]) -> str:
    """Returns how accuracy is measured on a data set: :data:`SOFT` if every question has at least four answers, otherwise
    :data:`EXACT`.

    Soft accuracy needs three annotators in addition to the one that is left out. With fewer annotators, no prediction can reach
    an accuracy of 1.
    """
    return SOFT if all(len(given) >= MIN_ANNOTATORS for given in answers) else EXACT


def _clean(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
