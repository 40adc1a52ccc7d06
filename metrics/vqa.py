"""Soft accuracy of answers to questions, as the official VQA v2 evaluation gives it.

The evaluation that is commonly copied with research code normalises every prediction, but of the annotators' answers only the
punctuation. The later official release, which is followed here, treats both alike: where the annotators did not all write the
same, all answers and the prediction are normalised in full; where they did, nothing is, and the prediction has to be what they
wrote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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
ARTICLES = frozenset(["a", "an", "the"])

_RIGHT_CONTRACTIONS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd it'll
ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's
someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're
why's won't would've wouldn't y'all you'd you'll you're you've
couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've
"""
"""What the official table writes right; it knows no others ("shes", "wed" and "hell" stay, as they are words of their own)."""

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = int(re.UNICODE)
"""The official code gives a flag where the number of replacements belongs."""


def _misspellings() -> dict[str, str]:
    """Each contraction with one apostrophe left out -> the right one."""
    table = {"somebody'd": "somebodyd"}  # the wrong way round in the official table
    for right in _RIGHT_CONTRACTIONS.split():
        table |= {right[: mark.start()] + right[mark.end() :]: right for mark in re.finditer("'", right)}
    return table


CONTRACTIONS = _misspellings()


def normalize_answer(answer: str) -> str:
    """Without punctuation and articles, with digits for the numbers to ten and apostrophes in contractions, in lower case.

    A punctuation mark becomes a space, but nothing if the answer has it beside a space, or has a comma between digits. A
    period goes unless a digit follows.

    >>> normalize_answer("Two dogs, and the cat doesnt")
    "2 dogs and cat doesn't"
    >>> normalize_answer("red/white"), normalize_answer("1,000 a-b"), normalize_answer("2.5 ft.")
    ('red white', '1000 ab', '2.5 ft')
    """
    drops = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if drops or beside_space else " ")
    text = _PERIOD.sub("", text, count=_MAX_PERIODS)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """How far the annotators agree with a prediction, in 0..1.

    For each annotator, the others who gave the predicted answer count a third each, three at most; the mean over annotators.

    Args:
        answers: one per annotator, ten in VQA v2; at least one.

    >>> soft_accuracy("2", ["two", "2", "Two.", *["three"] * 7])
    0.9
    """
    predicted, answers = _clean(predicted), [_clean(answer) for answer in answers]
    if len(set(answers)) > 1:
        predicted, answers = normalize_answer(predicted), [normalize_answer(answer) for answer in answers]
    agreeing = [answer == predicted for answer in answers]
    return sum(min(1.0, (sum(agreeing) - own) / 3) for own in agreeing) / len(answers)


def _clean(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
