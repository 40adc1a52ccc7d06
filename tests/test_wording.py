"""All errors, warnings and log lines of the project as a set: they follow the same conventions (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SKIPPED = ("tests", "docs", "benchmarks", "examples", "data", "runs", "site", "build")
LOGGED = {"debug", "info", "warning", "error"}
REPORTING = {"Finding", "_warn", "_report"}
"""Names of functions and classes that print a text or put it into a report."""
VALUE = "{}"
"""Placeholder for a value in a message."""

NAMES = ("Input should", "Parquet files", "Python imports")
"""Beginnings that may have a capital letter: the beginning of pydantic's messages, and names."""
PLAIN_WORDS = {
    "drop it": "remove it",
    "holds no": "contains no",
    "(?<!there )is no": "is not a",
    "is told": "is reported",
    "goes on": "continues",
    "anew": "again",
    "leave it out": "remove it",
    "would do": "would work",
    "mend": "fix",
}


class Message(NamedTuple):
    """A text in the code that a user may see: ``location`` is its file and line."""

    location: str
    text: str


def text_of(node: ast.expr) -> str | None:
    """Returns a literal text with ``{}`` in place of values, or None if the expression is something else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
    return None


def messages_of(path: Path) -> Iterator[Message]:
    """Yields the arguments of errors, of the doctor's findings and of calls to loggers that are texts of several words."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = called.rpartition(".")[2]
            if name.endswith("Error") or name in REPORTING or (name in LOGGED and "log" in called.lower()):
                for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                    for text in texts_of(argument):
                        if " " in text:
                            yield Message(f"{path.relative_to(ROOT)}:{argument.lineno}", text)


def texts_of(node: ast.expr) -> Iterator[str]:
    """Yields the text of an expression. Yields both texts of a conditional expression, and the first text of a sum."""
    if text := text_of(node):
        yield text
    elif isinstance(node, ast.IfExp):
        yield from texts_of(node.body)
        yield from texts_of(node.orelse)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from texts_of(node.left)


MESSAGES = [
    message
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] not in SKIPPED and not path.relative_to(ROOT).parts[0].startswith(".")
    for message in messages_of(path)
]


def test_there_are_messages():
    assert len(MESSAGES) > 1200


def test_messages_do_not_end_with_a_full_stop_or_a_line_break():
    wrong = [message for message in MESSAGES if re.search(r"[^.]\.$|!$", message.text) or message.text.endswith("\n")]
    assert wrong == []


def test_messages_consist_of_one_sentence():
    assert [message for message in MESSAGES if re.search(r"[a-z)}]\. [A-Z]", message.text)] == []


def test_messages_start_with_a_small_letter_or_a_value():
    wrong = [
        message for message in MESSAGES if re.match(r"[A-Z][a-z]", message.text) and not message.text.startswith(NAMES)
    ]
    assert wrong == []


@pytest.mark.parametrize(("phrase", "better"), PLAIN_WORDS.items())
def test_messages_use_one_word_for_one_thing(phrase, better):
    wrong = [message for message in MESSAGES if re.search(rf"(?<![\w-]){phrase}\b", message.text)]
    assert wrong == [], f"write {better!r}"
