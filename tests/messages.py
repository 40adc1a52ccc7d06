"""Checks that a message contains its facts, such as the key, the location, the value and the remedy, in any wording."""

from __future__ import annotations

import re


class Naming(str):
    """A pattern whose representation is the list of facts, so that a failed match shows them."""

    __slots__ = ("facts",)

    def __repr__(self) -> str:
        return f"naming({', '.join(map(repr, self.facts))})"


def naming(*facts: object) -> str:
    """Returns a pattern for ``match=`` that matches a message of one line that contains each fact as a whole.

    "4" is not found in "14", "4.5" or "4%", nor "optim" or "lr" in "optim.lr"; the order of the facts does not matter.
    """
    pattern = Naming(r"\A" + "".join(rf"(?=[^\n]*{_whole(str(fact))})" for fact in facts) + r"[^\n]*\n?\Z")
    pattern.facts = facts
    return pattern


def _whole(fact: str) -> str:
    before = r"(?<![\w-])(?<!\w\.)(?<!\d,)" if re.match(r"\w", fact) else ""
    after = r"(?![\w%]|[.-]\w|,\d)" if re.search(r"\w\Z", fact) else ""
    return before + re.escape(fact) + after


class OneLine:
    """Equals any one-line string that contains each fact as a whole; see :func:`naming`."""

    def __init__(self, *facts: object):
        self.facts = facts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and re.match(naming(*self.facts), other) is not None

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"OneLine({', '.join(map(repr, self.facts))})"
