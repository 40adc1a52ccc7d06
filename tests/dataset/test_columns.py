"""Columns of arrays read like the lists they were built from, and forked workers share them."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dataset.columns import RepeatedTextColumn, SourceColumn, TextColumn
from dataset.media.sources import ImageSource
from dataset.tasks.questions import Question, QuestionTable

ROOT = Path(__file__).parent.parent.parent

TEXTS = ["a dog", "", "犬 \ud800", "a dog", "e\u0301"]
SOURCES = [
    ImageSource("a.json[0]", path=Path("train/1.jpg")),
    ImageSource("a.json[1]", base64="/9j/"),
    ImageSource("b.jsonl:12", path=Path("train/1.jpg")),
    ImageSource("no row", content=b"\xff\xd8"),
]


@pytest.mark.parametrize(("column", "listed"), [(TextColumn(TEXTS), TEXTS), (SourceColumn(SOURCES), SOURCES)])
def test_a_column_reads_like_the_list_it_was_built_from(column, listed):
    assert len(column) == len(listed) and list(column) == listed
    assert column[-1] == listed[-1] and column[1:3] == listed[1:3] and column[::-2] == listed[::-2]
    with pytest.raises(IndexError):
        column[len(listed)]


def test_columns_may_be_empty():
    assert list(TextColumn([])) == list(SourceColumn([])) == []


def test_repeated_texts_are_stored_once():
    column = RepeatedTextColumn(TEXTS)
    assert [column[row] for row in range(len(column))] == TEXTS
    assert len(column.texts) == 4 and column.numbers.tolist() == [0, 1, 2, 0, 3]


def question(number: int) -> Question:
    source = ImageSource(f"vqa.json[{number}]", path=Path(f"train2014/{number // 5}.jpg"))
    answers = tuple(f"answer {(number + each) % 100}" for each in range(10))
    return Question(number, f"what is in picture {number} of this long list?", source, answers)


LISTS: dict[str, tuple[Callable[[int], Any], Callable[[Sequence[Any]], Any]]] = {
    "captions": (lambda number: f"picture {number} of this long list shows a dog and a cat", TextColumn),
    "images": (lambda number: question(5 * number).source, SourceColumn),
    "questions": (question, QuestionTable),
}
"""By name: a function that creates an element of a list, and a function that builds a column from the list."""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").is_file(),
    reason="the kernel does not report which pages a process has written to",
)
@pytest.mark.parametrize("name", LISTS)
def test_a_worker_that_reads_a_whole_column_shares_its_memory(name):
    """Reading Python objects would copy their memory pages into every forked worker. The test measures this in a separate
    process, because other objects on the heap of this process would count too."""
    measure = f"import tests.dataset.test_columns as measuring; print(*measuring.grown_in_forks({name!r}))"
    printed = subprocess.run([sys.executable, "-c", measure], cwd=ROOT, capture_output=True, text=True, check=True)
    of_list, of_column, in_column = map(int, printed.stdout.split())
    assert of_column < 0.2 * of_list
    assert of_list > in_column, "the measurement must detect the pages that reading a list copies"


def grown_in_forks(name: str) -> tuple[int, int, int]:
    """Returns the bytes that a fork copies when it reads a list, the bytes it copies when it reads a column of the list, and the
    size of the column."""
    make, column_of = LISTS[name]
    listed = [make(number) for number in range(50_000)]
    column, of_list = column_of(listed), grown_in_a_fork(listed)
    del listed  # Python interns the parts of paths, so the column's parts would be shared with the list's
    return of_list, grown_in_a_fork(column), column.nbytes


def grown_in_a_fork(elements: Sequence[Any]) -> int:
    """Bytes that a forked process copies while it reads all elements."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        gc.disable()
        before = private_bytes()
        for element in elements:
            assert str(element)  # reads all parts of the element
        os.write(writer, str(private_bytes() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        return int(file.read())


def private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
