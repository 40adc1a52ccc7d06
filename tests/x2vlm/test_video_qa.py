"""A model of the task video_qa answers with its own classes, in the order of their labels."""

from __future__ import annotations

import json
import shutil

import pytest

from models.config import VideoQAModelConfig
from models.tasks.video_qa import VideoQAModel
from tests.messages import naming
from x2vlm import Model, UserError, load
from x2vlm.runtime import TorchRuntime


@pytest.fixture(scope="module")
def classifier(video_model) -> Model:
    """A model without a list of answers."""
    shared = video_model.settings.model
    config = VideoQAModelConfig(vision=shared.vision, text=shared.text, fusion=shared.fusion, classes=3)
    settings = video_model.settings.model_copy(update={"task": "video_qa", "model": config})
    network = VideoQAModel(config, len(video_model.tokenizer))
    return Model(TorchRuntime(network.eval()), video_model.tokenizer, settings, origin="classifier")


def test_answers_are_ordered_by_label(classifier, tmp_path):
    (tmp_path / "train_ans2label.json").write_text(json.dumps({"no": 1, "yes": 0, "two": 2}))
    folder = classifier.save(tmp_path / "saved")
    assert load(folder, answers=tmp_path / "train_ans2label.json").answers == ["yes", "no", "two"]
    (tmp_path / "short.json").write_text('["yes", "no"]')
    with pytest.raises(UserError, match=r"answers: .*short.json lists 2 answers; .*3"):
        load(folder, answers=tmp_path / "short.json")


def test_candidates_alone_do_not_determine_the_order_of_classes(classifier, data, tmp_path):
    shutil.copy(data / "images/4.png", tmp_path)
    with pytest.raises(UserError, match=naming("answer", "answers=")):
        classifier.answer(tmp_path, "what is it?", candidates=["yes", "no", "two"])
    named = Model(
        classifier.runtime, classifier.tokenizer, classifier.settings, answers=["yes", "no", "two"], origin="named"
    )
    best = named.answer(tmp_path, "what is it?")[0]
    assert named.answer(tmp_path, "what is it?", candidates=["two", "yes", "no"]) == [best]
