"""Answers the questions about scenes independently, using only the words of the question and the objects."""

import json
import re
from collections import Counter, defaultdict

import pytest

from tests.demo.scene_texts import COUNTS, fitting, further, read, scene_of

TYPES = {"what colour": "other", "how many": "number", "what is": "other", "is there": "yes/no", "what shape": "other"}


@pytest.fixture(scope="module")
def questions(folder):
    return [record for split in COUNTS for record in read(folder, f"vqa_{split}")]


def answer(scene, question: str) -> str:
    if match := re.fullmatch(r"what colour is the (.*)\?", question):
        (obj,) = fitting(scene, match[1])
        return obj.colour
    if match := re.fullmatch(r"how many (.*shape)s are there\?", question):
        return str(len(fitting(scene, match[1])))
    if match := re.fullmatch(r"is there an? (.*)\?", question):
        return "yes" if fitting(scene, match[1]) else "no"
    if match := re.fullmatch(r"what is the (.*shape)\?", question):
        (obj,) = fitting(scene, match[1])
        return obj.shape
    match = re.fullmatch(r"what is (left of|right of|above|below) the (.*)\?", question)
    assert match is not None, question
    (reference,) = fitting(scene, match[2])
    (obj,) = (obj for obj in scene.objects if further(match[1], obj, reference) > 0)
    assert further(match[1], obj, reference) >= 0.2 * 64
    return obj.shape


def kind(question: str) -> str:
    """The first two words of a question, or "what shape" for a question such as "what is the red shape?"."""
    return "what shape" if question.startswith("what is the") else " ".join(question.split()[:2])


def test_every_answer_matches_the_image_and_is_repeated_ten_times(questions):
    kinds = Counter()
    for record in questions:
        assert record["answer"] == [answer(scene_of(record["image"]), record["question"])] * 10, record
        assert record["answer_type"] == TYPES[kind(record["question"])]
        assert record["dataset"] == "vqa"
        kinds[kind(record["question"])] += 1
    assert set(kinds) == set(TYPES)
    assert min(kinds.values()) > 0.1 * kinds.total()


def test_the_questions_of_a_scene_and_all_their_ids_differ(folder):
    for split in COUNTS:
        records = read(folder, f"vqa_{split}")
        by_image = defaultdict(list)
        for record in records:
            by_image[record["image"]].append(record["question"])
        assert len(by_image) == COUNTS[split]
        assert all(len(set(asked)) == len(asked) for asked in by_image.values())
        assert len({record["question_id"] for record in records}) == len(records)


def test_every_scene_has_questions_about_a_present_and_an_absent_object(questions):
    by_image = defaultdict(list)
    for record in questions:
        if record["answer_type"] == "yes/no":
            by_image[record["image"]].append(record["answer"][0])
    assert len(by_image) == sum(COUNTS.values())
    assert all(sorted(answers) == ["no", "yes"] for answers in by_image.values())
    first = Counter(answers[0] for answers in by_image.values())
    assert min(first.values()) > 0.35 * first.total()


def test_the_most_frequent_answer_is_a_weak_guess(questions):
    answers, numbers = Counter(), Counter()
    for record in questions:
        answers[record["answer"][0]] += 1
        if record["answer_type"] == "number":
            numbers[record["answer"][0]] += 1
    assert max(answers.values()) < 0.17 * answers.total()
    assert max(numbers.values()) < 0.35 * numbers.total()
    assert {"0", "1", "2", "3"} <= set(numbers)


def test_absent_objects_often_share_words_with_present_ones(questions):
    near = total = 0
    for record in questions:
        match = re.fullmatch(r"is there an? (\w+) (?!shape)(\w+)\?", record["question"])
        if match and record["answer"][0] == "no":
            total += 1
            scene = scene_of(record["image"])
            near += bool(fitting(scene, match[1])) and bool(fitting(scene, match[2]))
    assert near > 0.3 * total > 10


def test_the_answer_list_has_the_training_answers_most_frequent_first(folder):
    listed = json.loads((folder / "vqa_answers.json").read_text(encoding="utf-8"))
    counts = Counter(record["answer"][0] for record in read(folder, "vqa_train"))
    assert set(listed) == set(counts)
    assert [counts[word] for word in listed] == sorted(counts.values(), reverse=True)
