"""Question answering data: VQA's and Visual Genome's official files, and lists. Answers keep their weights from file to batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from batches.texts import Text
from dataset.config import AugmentConfig, QuestionsConfig, VQADataConfig
from dataset.tasks.questions import QuestionTable
from dataset.tasks.vqa import VQABatches, frequent_answers, read_candidates, read_questions
from metrics.vqa import soft_accuracy
from tests.messages import OneLine, naming
from utils.errors import UserError

WHOLE = AugmentConfig(scale=(1, 1), ratio=(1, 1), flip=0, rand_augment_ops=0)
FLIPPED = WHOLE.model_copy(update={"flip": 1.0})
SIZE = 16


@pytest.fixture
def picture(tmp_path) -> Callable[[str], str]:
    """Returns a function that writes an image whose right half is white, and returns its name."""

    def write(name: str) -> str:
        pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        pixels[:, SIZE // 2 :] = 255
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, "PNG")
        return name

    return write


@pytest.fixture
def write(tmp_path) -> Callable[..., str]:
    """Returns a function that writes a value as JSON, or a list as JSON lines, and returns the path."""

    def write(name: str, value: Any) -> str:
        lines = name.endswith("l")
        text = "".join(json.dumps(row) + "\n" for row in value) if lines else json.dumps(value)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def source(tmp_path) -> Callable[..., QuestionsConfig]:
    def made(questions: str, **more: Any) -> QuestionsConfig:
        return QuestionsConfig(questions=questions, images=str(tmp_path / "images"), **more)

    return made


def processed(number: int, image: str, answers: Any, **more: Any) -> dict[str, Any]:
    return {
        "question_id": number,
        "question": "What is it?",
        "image": image,
        "dataset": "vqa",
        "answer": answers,
        **more,
    }


def asked(numbers: list[int], subset: str = "val2014") -> dict[str, Any]:
    """A VQA v2 question file."""
    return {
        "info": {},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {},
        "data_subtype": subset,
        "questions": [{"image_id": n, "question": f"Is this picture {n}?", "question_id": 1000 * n} for n in numbers],
    }


def annotated(numbers: list[int]) -> dict[str, Any]:
    """A VQA v2 answer file."""
    answers = [
        {"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(["yes"] * 7 + ["no"] * 3)
    ]
    return {
        "annotations": [
            {
                "question_type": "is this",
                "multiple_choice_answer": "yes",
                "answers": answers,
                "image_id": n,
                "answer_type": "yes/no",
                "question_id": 1000 * n,
            }
            for n in numbers
        ]
    }


def test_official_questions_are_joined_with_their_answers_and_images(picture, write, source, tmp_path):
    for number in (9, 458752):
        picture(f"val2014/COCO_val2014_{number:012d}.jpg")
    config = source(
        write("questions.json", asked([9, 458752])),
        format="vqa2",
        annotations=write("answers.json", annotated([458752, 9])),
    )
    first, second = read_questions(config, "data.train[0]", 0.0, answered=True)
    assert first.question_id == 9000
    assert second.source.path == tmp_path / "images/val2014/COCO_val2014_000000458752.jpg"
    assert first.answer_type == "yes/no"
    assert first.answers == ("yes",) * 7 + ("no",) * 3
    assert dict(first.weighted_answers()) == {"yes": 0.7, "no": pytest.approx(0.3)}
    assert first.most_frequent() == "yes"


def test_dev_uses_the_images_of_test_and_has_no_answers(picture, write, source):
    picture("test2015/COCO_test2015_000000000001.jpg")
    config = source(write("questions.json", asked([1], "test-dev2015")), format="vqa2")
    (only,) = read_questions(config, "evaluation.test.dev", 0.0, answered=False)
    assert only.answers == ()
    with pytest.raises(UserError, match=naming("data.train[0]", "annotations")):
        read_questions(config, "data.train[0]", 0.0, answered=True)


@pytest.mark.parametrize("folder", ["", "VG_100K/", "VG_100K_2/"])
def test_visual_genome_is_read_from_any_image_folder_with_half_the_weight(picture, write, source, tmp_path, folder):
    picture(f"{folder}1.jpg")
    qas = [
        {"qa_id": 986768, "image_id": 1, "question": "What color is the clock?", "answer": "Green.", "a_objects": []},
        {"qa_id": 986769, "image_id": 1, "question": "Where?", "answer": "On the left", "a_objects": []},
    ]
    config = source(write("qa.json", [{"id": 1, "qas": qas}]), format="visual_genome")
    first, second = read_questions(config, "data.train[1]", 0.0, answered=True)
    assert (first.question_id, first.answers, first.weighted_answers()) == (986768, ("green",), [("green", 0.5)])
    assert second.location == f"{config.questions}[0].qas[1]"
    assert first.source.path == tmp_path / f"images/{folder}1.jpg"
    qas.insert(1, {"qa_id": 5, "image_id": 1, "question": "Where?"})
    broken = source(write("broken.json", [{"id": 1, "qas": [*qas, "no object"]}, {"id": 2}]), format="visual_genome")
    assert len(read_questions(broken, "data.train[1]", 0.9, answered=True)) == 2
    with pytest.raises(UserError, match=naming("3 of 5", "3 missing key", "[0].qas[1]", "answer")):
        read_questions(broken, "data.train[1]", 0.0, answered=True)
    heavier = read_questions(config.model_copy(update={"weight": 2.0}), "k", 0.0, answered=True)
    assert heavier[0].weighted_answers() == [("green", 2.0)]


@pytest.mark.parametrize("name", ["vqa.json", "vqa.jsonl"])
def test_processed_lists_have_answers_of_annotators_or_one_text(picture, write, source, name):
    rows = [
        processed(3, picture("a.png"), ["net"] * 9 + ["ball"], answer_type="other"),
        {"image": "a.png", "question": "What?", "answer": "green", "dataset": "vg"},
    ]
    first, second = read_questions(source(write(name, rows)), "data.train[0]", 0.0, answered=True)
    assert dict(first.weighted_answers()) == {"net": 0.9, "ball": 0.1}
    assert (first.answer_type, second.answer_type) == ("other", "")
    assert second.weighted_answers() == [("green", 0.5)]
    assert second.question_id == second.location


def test_some_images_are_held_out_with_all_their_questions(picture, write, source):
    rows = [processed(10 * n + m, picture(f"{n}.png"), ["yes"] * 10) for n in range(40) for m in range(2)]
    path = write("vqa.jsonl", rows)
    kept = read_questions(source(path, image_share=(0.25, 1.0)), "k", 0.0, answered=True)
    held_out = read_questions(source(path, image_share=(0.0, 0.25)), "k", 0.0, answered=True)
    everything = read_questions(source(path), "k", 0.0, answered=True)
    numbers = [{each.question_id for each in part} for part in (kept, held_out, everything)]
    assert numbers[0] | numbers[1] == numbers[2]
    assert not {each.source.path for each in kept} & {each.source.path for each in held_out}
    assert 4 < len(held_out) < 40
    with pytest.raises(UserError, match=naming("image_share", "[0.0, 1e-09]")):
        read_questions(source(path, image_share=(0.0, 1e-9)), "k", 0.0, answered=True)
    for share in ((0.5, 0.5), (0.5, 0.2), (-0.1, 1.0)):
        with pytest.raises(ValidationError, match="two increasing numbers between 0 and 1"):
            source(path, image_share=share)


BROKEN = {
    "missing key": {"image": "a.png", "question": "What?"},
    "missing image": {"image": "gone.png", "question": "What?", "answer": ["a"]},
    "wrong type": {"image": "a.png", "question": "What?", "answer": [1]},
    "empty text": {"image": "a.png", "question": "What?", "answer": [" "]},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_rows_are_counted_with_a_location(picture, write, source, kind):
    path = write("vqa.jsonl", [processed(1, picture("a.png"), ["yes"]), BROKEN[kind]])
    with pytest.raises(UserError) as error:
        read_questions(source(path), "data.train[0]", 0.0, answered=True)
    assert str(error.value) == OneLine("data.train[0]", "1 of 2", f"1 {kind}", f"{path}:2")
    assert "\n" not in str(error.value)
    assert len(read_questions(source(path), "data.train[0]", 0.5, answered=True)) == 1


def test_blank_answers_count_as_annotators_and_are_not_trained_on(picture, write, source):
    """The official evaluation treats a blank answer like any other. If five of ten annotators say yes, "yes" gets full marks; if
    two of four do, it does not."""
    answers = ["yes", "yes", "", " "]
    (question,) = read_questions(
        source(write("vqa.jsonl", [processed(1, picture("a.png"), answers)])), "k", 0.0, answered=True
    )
    assert question.answers == tuple(answers)
    assert question.weighted_answers() == [("yes", 0.5)] and question.most_frequent() == "yes"
    assert soft_accuracy("yes", question.answers) == pytest.approx((2 * 1 / 3 + 2 * 2 / 3) / 4)
    table = QuestionTable([question])
    assert table[0].answers == question.answers and table.answer_counts() == {"yes": 2}


def test_a_question_without_words_is_broken(picture, write, source):
    path = write("vqa.jsonl", [processed(1, picture("a.png"), ["yes"]) | {"question": " ? "}])
    with pytest.raises(UserError, match=naming("1 empty text", "question")):
        read_questions(source(path), "k", 0.0, answered=True)


def test_wrong_files_are_reported_in_one_line(picture, write, source):
    picture("val2014/COCO_val2014_000000000001.jpg")
    questions, answers = write("q.json", asked([1])), write("a.json", annotated([2]))
    official = partial(source, format="vqa2")
    cases = [
        (source("gone.json"), r"^k: gone\.json does not exist"),
        (official(questions, annotations="gone.json"), r"^k\.annotations: gone\.json does not exist"),
        (official(questions, annotations=questions), "has no list 'annotations'"),
        (
            official(questions, annotations=answers),
            r"1 missing key \(.*q\.json: questions\[0\]: .*a\.json has no question_id 1000\)",
        ),
        (
            official(write("b.json", {"annotations": [{}]}), annotations=answers),
            "has no list 'questions', so it is not VQA v2's",
        ),
        (source(questions), r"q\.json is VQA v2's file of questions, not records; set format: vqa2$"),
        (
            official(questions, annotations=write("c.json", {"annotations": [{"question_id": 1}]})),
            r"annotations\[0\] lacks",
        ),
        (official(write("d.json", {"questions": []}), annotations=answers), "lacks VQA v2's 'data_subtype'"),
    ]
    for config, message in cases:
        with pytest.raises(UserError, match=message) as error:
            read_questions(config, "k", 0.0, answered=True)
        assert "\n" not in str(error.value)


def test_a_held_out_split_needs_all_answers_or_none(picture, write, source):
    rows = [processed(1, picture("a.png"), ["yes"]), {"image": "a.png", "question": "What?", "question_id": 2}]
    with pytest.raises(UserError, match=naming("k", "1 of 2", ":2")):
        read_questions(source(write("vqa.jsonl", rows)), "k", 0.0, answered=False)


def test_candidates_are_a_list_or_label_keys_without_nulls_and_duplicates(write):
    assert read_candidates(write("a.json", ["yes", None, "no", "", "yes"]), "k") == ["yes", "no"]
    assert read_candidates(write("b.json", {"yes": 0, "no": 1}), "k") == ["yes", "no"]
    for value in ([1], "yes", [None]):
        with pytest.raises(UserError, match=r"^k: "):
            read_candidates(write("c.json", value), "k")


def test_frequent_answers_are_majority_answers_to_enough_questions(picture, write, source):
    """Answers are normalised before they are counted, and the answer of a single annotator does not count."""
    rows = [
        *(processed(n, picture("a.png"), ["Net"] * 6 + ["ball"] * 4) for n in range(3)),
        *(processed(n, "a.png", ["net"] * 10) for n in range(3, 5)),
        *(processed(n, "a.png", ["yes"] * 10) for n in range(5, 8)),
        *(processed(n, "a.png", ["rare"] * 10) for n in range(8, 10)),
        *({"image": "a.png", "question": "What?", "answer": "green", "dataset": "vg"} for _ in range(20)),
    ]
    questions = read_questions(source(write("vqa.jsonl", rows)), "k", 0.0, answered=True)
    assert frequent_answers(questions, str.lower, 3) == ["net", "yes"]
    assert frequent_answers(questions, str.lower, 2) == ["net", "yes", "rare"]
    assert frequent_answers(questions, str, 3) == ["Net", "yes"]


@pytest.fixture
def batches(tokenizer) -> Callable[..., VQABatches]:
    def made(*sources: QuestionsConfig, **more: Any) -> VQABatches:
        data = VQADataConfig(train=list(sources), **{"batch_size": 4, "augment": WHOLE, "max_broken": 0.5} | more)
        return VQABatches(data, tokenizer=tokenizer, image_size=SIZE, seed=0)

    return made


def test_a_batch_contains_every_answer_with_its_question(batches, picture, write, source, tokenizer):
    rows = [
        processed(1, picture("a.png"), ["a"] * 6 + ["dog"] * 4) | {"question": "what is a man?"},
        processed(2, "a.png", ["a man"] * 10) | {"question": "who?"},
    ]
    genome = {"image": "a.png", "question": "what dog?", "answer": "dog", "dataset": "vg"}
    made = batches(source(write("a.jsonl", rows)), source(write("b.json", [genome])), batch_size=3)
    assert made.stream_sizes == {"questions": 3}
    batch = made.make(0)
    assert batch.pixels.shape == (3, 3, SIZE, SIZE)
    assert batch.valid.tolist() == [True] * 3
    assert len(batch.answers.ids) == 4
    found = {}
    for row, question, weight in zip(range(4), batch.question_of_answer.tolist(), batch.weights.tolist(), strict=True):
        ids = batch.answers.ids[row][batch.answers.mask[row]]
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        words = tokenizer.decode(ids, skip_special_tokens=True)
        asked = tokenizer.decode(batch.text.ids[question], skip_special_tokens=True)
        found[asked, words] = round(weight, 6)
    assert sorted(found.values()) == [0.4, 0.5, 0.6, 1.0]
    assert len({asked for asked, _ in found}) == 3
    assert torch.equal(made.make(0).answers.ids, batch.answers.ids)


def words(text: Text, tokenizer: Any) -> list[str]:
    return [
        tokenizer.decode(ids[mask], skip_special_tokens=True) for ids, mask in zip(text.ids, text.mask, strict=True)
    ]


def test_questions_about_an_image_share_it(batches, picture, write, source, tokenizer, tmp_path):
    """All questions about an image get the same view of the image, except that a question that names a side gets a separate view
    that is not flipped. If an image is broken, all its questions are dropped."""
    picture("a.png"), picture("b.png")
    (tmp_path / "images" / "bad.png").write_bytes(b"no picture")
    asked = [
        ("a.png", "star", ["dog", "dog", "cat"]),
        ("b.png", "number", ["a circle"]),
        ("a.png", "left of star", ["dog"]),
        ("a.png", "a dog", ["red"]),
        ("bad.png", "street", ["dog"]),
        ("bad.png", "cat", ["dog"]),
    ]
    rows = [processed(n, image, answers) | {"question": question} for n, (image, question, answers) in enumerate(asked)]
    data = source(write("a.jsonl", rows))
    made = batches(data, batch_size=4, questions_per_example=3, augment=FLIPPED)
    assert made.stream_sizes == {"questions": 4}
    batch = made.make(0)
    assert (batch.read, len(batch.records), len(batch.broken)) == (4, 3, 1)
    mirrored = (batch.pixels[:, 0, 0, 0] > 128).tolist()
    found = {}
    owners = batch.question_of_answer.tolist()
    answers = words(batch.answers, tokenizer)
    for number, (question, image) in enumerate(
        zip(words(batch.text, tokenizer), batch.image_of_question.tolist(), strict=True)
    ):
        own = [answer for answer, owner in zip(answers, owners, strict=True) if owner == number]
        found[question] = (bool(batch.valid[number]), mirrored[image], own)
    assert found == {
        "star": (True, True, ["dog", "cat"]),
        "a dog": (True, True, ["red"]),
        "left of star": (True, False, ["dog"]),
        "number": (True, True, ["a circle"]),
        "a": (False, False, ["a"]),
    }
    together = batch.image_of_question[[words(batch.text, tokenizer).index(q) for q in ("star", "a dog")]]
    assert together[0] == together[1] and len(batch.pixels) == 4
    alone = batches(data, batch_size=4, augment=FLIPPED).make(0)
    assert alone.image_of_question is None and len(alone.pixels) == len(alone.text.ids) == 4


def test_an_unreadable_image_does_not_count(batches, picture, write, source, tmp_path):
    picture("a.png")
    (tmp_path / "images" / "bad.png").write_bytes(b"no picture")
    rows = [processed(1, "a.png", ["dog"] * 10), processed(2, "bad.png", ["dog"] * 5 + ["man"] * 5)]
    batch = batches(source(write("a.jsonl", rows)), batch_size=2).make(0)
    assert sorted(batch.valid.tolist()) == [False, True]
    assert batch.read == 2
    assert [each.reason for each in batch.broken] == ["unreadable image"]
    assert sorted(batch.weights.tolist()) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("question", "answers", "flips"),
    [
        ("what is on the left?", ["dog"], False),
        ("where is the dog?", ["dog", "to the right"], False),
        ("is the light bright?", ["leftover"], True),
        ("what is it?", ["dog"], True),
    ],
)
def test_an_image_is_flipped_only_if_no_text_names_a_side(batches, picture, write, source, question, answers, flips):
    rows = [processed(1, picture("a.png"), answers) | {"question": question}]
    config = source(write("a.jsonl", rows))
    batch = batches(config, batch_size=1, augment=FLIPPED).make(0)
    mirrored = bool(batch.pixels[0, 0, 0, 0] > 128)
    assert mirrored == flips
    careless = batches(config, batch_size=1, augment=FLIPPED, careful_flip=False).make(0)
    assert bool(careless.pixels[0, 0, 0, 0] > 128)


def test_long_questions_and_answers_are_truncated(batches, picture, write, source):
    rows = [processed(1, picture("a.png"), ["dog " * 60] * 10) | {"question": "dog " * 60}]
    batch = batches(source(write("a.jsonl", rows)), batch_size=1, max_answer_tokens=7).make(0)
    assert batch.text.ids.shape[1] == 32  # 30 words
    assert batch.answers.ids.shape[1] == 7
