"""Checks of prediction files against the requirements of the evaluation servers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.messages import OneLine, naming
from tools.reproduce.submissions import FORMS, check_submission, check_submissions
from utils.errors import UserError

VQA = FORMS["vqa"]


def test_a_complete_file_is_reported_as_complete(tmp_path):
    path = tmp_path / "predictions_test2015.json"
    path.write_text(json.dumps([{"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": ""}]))
    assert check_submission(path, VQA) == OneLine(path, "2 entries")
    assert check_submission(path, VQA, frozenset({1, 2})).endswith(", all that the server requires")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"question_id": 1}, ("the server accepts a list",)),
        (["yes"], ("[0]: it is not an object",)),
        ([{"question_id": 1, "answer": "yes"}, {"question_id": 2}], ("[1]", "['question_id']")),
        ([{"question_id": "1", "answer": "yes"}], ("[0]", "question_id is '1'")),
        ([{"question_id": True, "answer": "yes"}], ("[0]", "question_id is True")),
        ([{"question_id": 1, "answer": None}], ("[0]: answer is None",)),
        ([{"question_id": 1, "answer": "a"}, {"question_id": 1, "answer": "b"}], ("question_id 1", "2 times")),
        ([{"question_id": 1, "answer": "a"}], ("2 question_ids", "1 are missing", "2")),
        ([{"question_id": n, "answer": "a"} for n in (1, 2, 9)], ("2 question_ids", "1 are unknown", "9")),
    ],
)
def test_a_file_that_a_server_would_reject_is_reported_in_one_line(tmp_path, content, fault):
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=naming(*fault)):
        check_submission(path, VQA, frozenset({1, 2}))
    path.write_text("[")
    with pytest.raises(UserError, match="is not JSON"):
        check_submission(path, VQA)


def test_ids_are_compared_with_the_official_files_of_each_split(tmp_path):
    questions, captions = tmp_path / "questions.json", tmp_path / "dataset_coco.json"
    questions.write_text(json.dumps({"questions": [{"question_id": 5}]}))
    captions.write_text(json.dumps({"images": [{"cocoid": 7, "split": "test"}, {"cocoid": 8, "split": "val"}]}))
    (tmp_path / "predictions_test2015.json").write_text('[{"question_id": 5, "answer": "red"}]')
    (tmp_path / "predictions_coco.json").write_text('[{"image_id": 8, "caption": "a dog"}]')
    vqa = {"test2015": SimpleNamespace(format="vqa2", questions=str(questions))}
    config = SimpleNamespace(task="vqa", evaluation=SimpleNamespace(test=vqa))
    [line] = check_submissions(tmp_path, config)
    assert line == OneLine("predictions_test2015.json", "1")
    coco = {"coco": SimpleNamespace(format="karpathy", annotations=str(captions), splits=["test"])}
    config = SimpleNamespace(task="captioning", evaluation=SimpleNamespace(test=coco))
    with pytest.raises(UserError, match=naming("1 image_ids", "1 are missing", "7")):
        check_submissions(tmp_path, config)
    assert check_submissions(tmp_path, SimpleNamespace(task="nlvr", evaluation=config.evaluation)) == []
