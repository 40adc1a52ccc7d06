"""Tables that store millions of questions as arrays, which worker processes share."""

from __future__ import annotations

import gc
import pathlib
import tracemalloc
from pathlib import Path

from dataset.media.sources import ImageSource, VideoSource
from dataset.tasks.questions import Question, QuestionGroups, QuestionTable

ROOT = Path(__file__).parents[3]


def question(n: int) -> Question:
    return Question(
        question_id=262148000 + n if n % 3 else f"q{n}",
        question=f"What is the größte number {n} in this picture?",
        source=ImageSource(
            location=[f"v2.json: questions[{n}]", f"a.jsonl:{n}", f"vg.json[{n}].qas[3]", f"gqa.json: {n}x"][n % 4],
            path=Path(f"/data/images/train2014/COCO_train2014_{n // 5:012d}.jpg"),
        ),
        answers=tuple(["yes", "no", f"number {n % 50}"][k % 3] for k in range(10 if n % 2 else 1)),
        answer_type="" if n % 7 else "yes/no",
        weight=0.5 if n % 2 else 1.0,
    )


def test_a_table_returns_the_questions_it_was_built_from():
    odd = [
        Question(10**400, "half a pair \ud800", ImageSource("", path=Path("a")), (), "", 1.0),
        Question("", "", ImageSource("file", path=Path(".")), ("", "é"), "t", 2.5),
    ]
    listed = [*odd, *map(question, range(200))]
    table = QuestionTable(listed)
    assert list(table) == listed
    assert [table.location(row) for row in range(len(table))] == [each.location for each in listed]
    assert table[-1] == listed[-1]
    assert table[3:9:2] == listed[3:9:2]
    assert list(QuestionTable([])) == []


def rows_of(groups: QuestionGroups) -> list[list[int]]:
    return [groups.rows(number) for number in range(len(groups))]


def test_groups_contain_each_question_once_with_others_about_its_image():
    """The questions of the table are about 40 images, five per image. Every third question is kept separate from the others."""
    table = QuestionTable([question(n) for n in range(200)])
    separate = [n % 3 == 0 for n in range(200)]
    groups = rows_of(QuestionGroups(table, 2, separate))
    assert sorted(number for group in groups for number in group) == list(range(200))
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)
    for group in groups:
        assert group == sorted(group) and len(group) <= 2
        assert len({table.source(number).path for number in group}) == len({separate[number] for number in group}) == 1
    assert groups[:4] == [[0, 3], [1, 2], [4], [5, 7]]
    assert [len(group) for group in rows_of(QuestionGroups(table, 9))] == 40 * [5]
    assert rows_of(QuestionGroups(table, 1, separate)) == [[number] for number in range(200)]


def test_images_without_a_file_are_never_shared():
    several = [Question(n, "what?", ImageSource(f"a:{n}", content=b"x"), ("a",)) for n in range(3)]
    assert rows_of(QuestionGroups(QuestionTable([*several, question(0), question(1)]), 5)) == [[0], [1], [2], [3, 4]]


def test_a_question_takes_its_text_and_a_few_bytes_more():
    """A question used to take 405 bytes of Python objects, which a worker copies when it reads them."""
    count = 20_000
    table = QuestionTable([question(n) for n in range(count)])
    assert table.nbytes / count < 180
    tracemalloc.start()
    kept = QuestionTable([question(n) for n in range(count)])
    gc.collect()
    snapshot = tracemalloc.take_snapshot()
    tracemalloc.stop()
    # Pathlib interns the parts of paths, which may enlarge Python's table of interned strings.
    held = sum(each.size for each in snapshot.filter_traces([tracemalloc.Filter(False, pathlib.__file__)]).traces)
    assert held < 1.25 * kept.nbytes, "everything must be in arrays, so that reading does not write to memory pages"


def test_a_table_of_videos_stores_each_video_once_and_keeps_embedded_frames():
    frames = (ImageSource("b.jsonl:2", base64="/9j/"),)
    videos = [
        VideoSource("b.jsonl:1", path=Path("7.mp4")),
        VideoSource("b.jsonl:2", frames=frames),
        VideoSource("b.jsonl:3", path=Path("7.mp4")),
    ]
    questions = [Question(n, "what is it?", video, ("a dog",)) for n, video in enumerate(videos)]
    table = QuestionTable(questions)
    assert list(table) == questions
    assert table.sources() == videos[:2]
