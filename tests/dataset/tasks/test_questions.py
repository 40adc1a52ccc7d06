"""Millions of questions as arrays that worker processes share."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from dataset.tasks.questions import Question, QuestionTable


def question(n: int) -> Question:
    return Question(
        question_id=262148000 + n if n % 3 else f"q{n}",
        question=f"What is the größte number {n} in this picture?",
        path=Path(f"/data/images/train2014/COCO_train2014_{n // 5:012d}.jpg"),
        answers=tuple(["yes", "no", f"number {n % 50}"][k % 3] for k in range(10 if n % 2 else 1)),
        answer_type="" if n % 7 else "yes/no",
        weight=0.5 if n % 2 else 1.0,
        place=[f"v2.json: questions[{n}]", f"a.jsonl:{n}", f"vg.json[{n}].qas[3]", f"gqa.json: {n}x"][n % 4],
    )


def test_a_table_gives_back_what_it_was_made_of():
    odd = [
        Question(10**400, "half a pair \ud800", Path("a"), (), "", 1.0, ""),
        Question("", "", Path("."), ("", "é"), "t", 2.5, "file"),
    ]
    listed = [*odd, *map(question, range(200))]
    table = QuestionTable(listed)
    assert list(table) == listed
    assert [table.place(row) for row in range(len(table))] == [each.place for each in listed]
    assert table[-1] == listed[-1]
    assert table[3:9:2] == listed[3:9:2]
    assert list(QuestionTable([])) == []


def test_a_question_takes_its_text_and_few_bytes_more():
    """405 bytes of Python objects before, each of which a worker copies by looking at it."""
    count = 20_000
    table = QuestionTable([question(n) for n in range(count)])
    assert table.nbytes / count < 180
    tracemalloc.start()
    kept = QuestionTable([question(n) for n in range(count)])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1.25 * kept.nbytes, "all of it in arrays: reading it writes to no page"
