"""Tokenizes captions like the PTB tokenizer of the standard COCO evaluation, without Java.

The standard evaluation passes all captions, one per line, to the PTBTokenizer of Stanford CoreNLP 3.4.1 with ``-preserveLines
-lowerCase``, and drops the punctuation tokens. The rules in :mod:`metrics.captions.grammar` were derived from the output of this
tokenizer for millions of short inputs. ``tests/golden/captions`` contains several hundred captions with the tokens that the
PTBTokenizer produces. British spellings are kept, because the standard evaluation turns off the tokenizer's Americanization.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from metrics.captions.grammar import RULES, SPLIT_WORDS

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that the standard evaluation drops. (Its list also contains brackets, such as -LRB-, but in upper case, so they never
match tokens, which are in lower case.)"""

_LINE_BREAK = re.compile("[\n\r\x0b\x0c\x85\u2028\u2029]")
_SPACE = re.compile("[ \t](?=[!-~])")
_PLAIN_WORD = re.compile("[ \t]*([A-Za-z]+)(?=[ \n])")
"""Matches most words in captions: words of ASCII letters that are followed by a space. Unless it is one of :data:`SPLIT_WORDS`,
such a word is one token, so the other rules need not be tried."""


def tokenize(captions: Sequence[str]) -> list[str]:
    """Returns the tokens of each caption, in lower case, without punctuation, and separated by single spaces.

    A token may contain a no-break space (in ``1 1/2`` and telephone numbers). As in the standard evaluation, the captions are the
    lines of one text, so a few tokens depend on the start of the next caption. For example, ``no.`` keeps its period before a
    number. All line breaks inside a caption count as spaces. (The standard evaluation replaces only line feeds; any other line
    break shifts all following captions by one.)

    >>> tokenize(["A man's dog can't sit on the half-open door.", "Two 5-year-olds (twins)"])
    ["a man 's dog ca n't sit on the half-open door", 'two 5-year-olds -lrb- twins -rrb-']
    """
    return [" ".join(token for token in line if token not in PUNCTUATION) for line in lines_of_tokens(captions)]


def lines_of_tokens(captions: Sequence[str]) -> list[list[str]]:
    """Returns the tokens of each caption, including punctuation; see :func:`tokenize`."""
    text = "".join(_LINE_BREAK.sub(" ", caption) + "\n" for caption in captions)
    text = text[:-1]  # as in the standard evaluation, the last line has no line break, which affects a few tokens
    lines: list[list[str]] = [[]] if captions else []
    position = 0
    while position < len(text):
        plain = _PLAIN_WORD.match(text, position)
        if plain and plain[1].lower() not in SPLIT_WORDS:
            lines[-1].append(plain[1].lower())
            position = plain.end()
        elif text[position] == "\n":
            lines.append([])
            position += 1
        elif _SPACE.match(text, position):
            position += 1
        else:
            tokens, position = _longest_match(text, position)
            lines[-1] += tokens
    return lines


def _longest_match(text: str, position: int) -> tuple[list[str], int]:
    """Applies the rule with the longest match at ``position``. Returns its tokens, and the position after them. A character that
    no rule matches is dropped."""
    best, end, rule = None, position, None
    for candidate in RULES:
        match = candidate.pattern.match(text, position)
        if match and match.end() > end:
            best, end, rule = match, match.end(), candidate
    if best is None or rule is None:
        return [], position + 1
    output = rule.output(best[1]).lower()
    return output.split(" ") if output else [], best.end(1)
