"""PTB tokens of captions as the standard evaluation makes them, without Java.

The standard evaluation gives all captions, one a line, to the PTBTokenizer of Stanford CoreNLP 3.4.1 with ``-preserveLines
-lowerCase`` and drops the punctuation tokens. :mod:`metrics.captions.grammar` was written from what that tokenizer does with
millions of short inputs; ``tests/golden/captions`` holds several hundred captions with its tokens. (British spellings stay:
the tokenizer's Americanization is off in the standard evaluation.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from metrics.captions.grammar import RULES, SPLIT_WORDS

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that the standard evaluation drops. It names brackets, too, but in capitals, and tokens are in lower case by then."""

_LINE_BREAK = re.compile("[\n\r\x0b\x0c\x85\u2028\u2029]")
_SPACE = re.compile("[ \t](?=[!-~])")
_PLAIN_WORD = re.compile("[ \t]*([A-Za-z]+)(?=[ \n])")
"""A word that no rule but the one of words can take, unless it is one of :data:`SPLIT_WORDS`: most of every caption."""


def tokenize(captions: Sequence[str]) -> list[str]:
    """Each caption as its tokens, in lower case and without punctuation, between single spaces.

    A token may hold a no-break space (in ``1 1/2`` and telephone numbers). The captions are the lines of one text, as in the
    standard evaluation: a few tokens depend on how the next caption starts (``no.`` before a number keeps its period). Line
    breaks of every kind inside a caption count as spaces; the standard evaluation does so for line feeds only, and any other
    shifts all captions after it by one.

    >>> tokenize(["A man's dog can't sit on the half-open door.", "Two 5-year-olds (twins)"])
    ["a man 's dog ca n't sit on the half-open door", 'two 5-year-olds -lrb- twins -rrb-']
    """
    return [" ".join(token for token in line if token not in PUNCTUATION) for line in lines_of_tokens(captions)]


def lines_of_tokens(captions: Sequence[str]) -> list[list[str]]:
    """Tokens of each caption, punctuation included; see :func:`tokenize`."""
    text = "".join(_LINE_BREAK.sub(" ", caption) + "\n" for caption in captions)
    text = text[:-1]  # the last line does not end, in the standard evaluation either, and a few tokens depend on it
    lines: list[list[str]] = [[]] if captions else []
    at = 0
    while at < len(text):
        plain = _PLAIN_WORD.match(text, at)
        if plain and plain[1].lower() not in SPLIT_WORDS:
            lines[-1].append(plain[1].lower())
            at = plain.end()
        elif text[at] == "\n":
            lines.append([])
            at += 1
        elif _SPACE.match(text, at):
            at += 1
        else:
            tokens, at = _longest(text, at)
            lines[-1] += tokens
    return lines


def _longest(text: str, at: int) -> tuple[list[str], int]:
    """Tokens of the rule that matches most of the text, and where they end; a character that no rule knows is dropped."""
    best, end, rule = None, at, None
    for each in RULES:
        match = each.pattern.match(text, at)
        if match and match.end() > end:
            best, end, rule = match, match.end(), each
    if best is None or rule is None:
        return [], at + 1
    written = rule.written(best[1]).lower()
    return written.split(" ") if written else [], best.end(1)
