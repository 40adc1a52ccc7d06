"""The cross-lingual sets are read in the format of their official files."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from dataset.config import CaptionedSplitConfig, NLVRSplitConfig, QuestionsConfig
from dataset.formats.captioned import read_captioned_images
from dataset.tasks.nlvr import check_statements, read_statements
from dataset.tasks.vqa import read_questions
from metrics.vqa import EXACT, accuracy_type, exact_match
from tests.messages import naming
from utils.errors import UserError


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes rows as JSON lines, or an object as JSON, and images with the given names below
    ``images``."""

    def write(content, *pictures: str) -> str:
        for name in pictures:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
        path = tmp_path / "file.json"
        lines = "".join(json.dumps(row) + "\n" for row in content) if isinstance(content, list) else json.dumps(content)
        path.write_text(lines)
        return str(path)

    return write


def statements(path: str, folder, name: str):
    config = NLVRSplitConfig(format=name, annotations=path, images=str(folder / "images"))
    return read_statements(config, "evaluation.test.a", 0.0)


def test_xvnli_has_one_image_and_three_classes_and_skips_unlabelled_rows(write, tmp_path):
    labels = ("contradiction", "entailment", "neutral", "-")
    rows = [
        {
            "gold_label": label,
            "sentence1": "un chat",
            "sentence2": f"un chien {n}",
            "Flikr30kID": "12",
            "captionID": "12.jpg#2",
        }
        for n, label in enumerate(labels)
    ]
    items = statements(write(rows, "12.jpg"), tmp_path, "xvnli")
    assert [item.label for item in items] == [0, 1, 2]
    assert [item.sentence for item in items] == ["un chien 0", "un chien 1", "un chien 2"]
    assert all(len(item.images) == 1 for item in items)
    check_statements(items, 1, 3, "data.train")
    with pytest.raises(UserError, match=r"^data.train: .*file.json:1 has 1 images, but model.images is 2"):
        check_statements(items, 2, 3, "data.train")
    with pytest.raises(UserError, match=naming("data.train", "file.json:3", "2", "model.classes", "set it to 3")):
        check_statements(items, 1, 2, "data.train")


def test_marvl_finds_its_images_by_concept_and_keeps_left_and_right(write, tmp_path):
    row = {
        "concept": "39-Panci",
        "language": "id",
        "caption": "dua panci",
        "left_img": "39-0.jpg",
        "right_img": "39-1.jpg",
    }
    path = write([{**row, "label": True, "id": "id-0"}], "39-Panci/39-0.jpg", "39-Panci/39-1.jpg")
    (item,) = statements(path, tmp_path, "marvl")
    assert [picture.path.name for picture in item.images] == ["39-0.jpg", "39-1.jpg"]
    assert item.label == 1
    few = {**row, "left_img": "39-Panci/39-0.jpg", "right_img": "39-Panci/39-1.jpg", "label": False}
    (item,) = statements(write([few]), tmp_path, "marvl")
    assert item.label == 0


def gqa_config(name: str, path: str, folder) -> QuestionsConfig:
    return QuestionsConfig(format=name, questions=path, images=str(folder / "images"))


def test_xgqa_counts_only_exact_answers(write, tmp_path):
    content = {"2014": {"question": "Ist es bewölkt?", "imageId": "n16", "answer": "no", "fullAnswer": "No."}}
    config = gqa_config("gqa", write(content, "gqa/images/n16.jpg"), tmp_path)
    (item,) = read_questions(config, "evaluation.test.de", 0.0, answered=True)
    assert (item.question_id, item.question) == ("2014", "Ist es bewölkt?")
    assert accuracy_type([item.answers]) == EXACT
    assert exact_match("no", item.answers) == 1
    assert exact_match("yes", item.answers) == 0


def test_gqa_is_read_in_the_format_of_lxmert(write, tmp_path):
    rows = [{"img_id": "n16", "label": {"no": 1.0}, "question_id": "20", "sent": "Is it overcast?"}]
    config = gqa_config("gqa_lxmert", write(rows, "gqa/images/n16.jpg"), tmp_path)
    (item,) = read_questions(config, "data.train", 0.0, answered=True)
    assert item.weighted_answers() == [("no", 1.0)]


def test_a_broken_gqa_question_is_counted_without_raising_an_error(write, tmp_path):
    rows = [
        {"img_id": "n16", "label": {"no": 1.0}, "question_id": "20", "sent": "Is it?"},
        {"img_id": 7, "sent": "What?"},
    ]
    config = gqa_config("gqa_lxmert", write(rows, "gqa/images/n16.jpg"), tmp_path)
    with pytest.raises(UserError, match=naming("data.train", "1 of 2", "1 wrong type", "file.json:2", "img_id")):
        read_questions(config, "data.train", 0.0, answered=True)


def test_xflickrco_finds_the_images_of_both_sets(write, tmp_path):
    rows = [
        {"sentences": ["ein Hund"], "id": "12", "img_path": "12.jpg"},
        {"sentences": ["eine Katze"], "id": 34, "img_path": "COCO_val2014_000000000034.jpg"},
    ]
    names = ("flickr30k/flickr30k-images/12.jpg", "coco/val2014/COCO_val2014_000000000034.jpg")
    images = str(tmp_path / "images")
    config = CaptionedSplitConfig(format="xflickrco", annotations=write(rows, *names), images=images)
    items = read_captioned_images(config, "evaluation.test.de", 0.0)
    assert list(items.captions) == ["ein Hund", "eine Katze"]
    assert [str(image.path.relative_to(tmp_path / "images")) for image in items.images] == list(names)


def test_unknown_xvnli_labels_are_broken_rows_and_a_file_without_labels_is_rejected(write, tmp_path):
    """Annotators mark missing agreement with "-"."""
    row = {"sentence2": "un chien", "Flikr30kID": "12"}
    path = write([{**row, "gold_label": "neutral"}, {**row, "gold_label": "Maybe"}], "12.jpg")
    with pytest.raises(UserError, match=naming("1 of 2", "1 wrong type", ":2", "label", "Maybe")):
        statements(path, tmp_path, "xvnli")
    with pytest.raises(UserError, match=naming("evaluation.test.a", "file.json", "label")):
        statements(write([{**row, "gold_label": "-"}], "12.jpg"), tmp_path, "xvnli")
