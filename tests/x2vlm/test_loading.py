"""A model is found, loaded completely, and saved so that it loads anywhere. Failures are reported in one line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import x2vlm.settings
import x2vlm.weights
from engine.checkpoint import MODEL_FILE, find_weights
from engine.saving import write_checkpoint
from models.checkpoints.files import read_weights
from models.checkpoints.recognise import VOCABULARIES, XLM_R_WORDS, Recognised, Stack
from run import main
from tasks import ROOT
from tasks.kinds import find_task, model_section
from tests.messages import OneLine, naming
from utils.config_files import read_config, read_yaml
from utils.weight_file import save_weights
from x2vlm import UserError, load, loading
from x2vlm.saving import HEADING
from x2vlm.settings import settings_of, task_of

NAMES = ("pretrain", "retrieval", "grounding", "nlvr", "vqa", "captioning")


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_gives_the_same_results_in_another_folder(name, run, model, tmp_path, monkeypatch):
    ours = model(name)
    folder = ours.save(tmp_path / "saved")
    moved = shutil.move(folder, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    again = load(moved)
    for key, tensor in ours.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[key]), key
    assert again.settings.model_copy(update={"model": None}) == ours.settings.model_copy(update={"model": None})
    assert again.answers == ours.answers
    assert again.tokenizer.get_vocab() == ours.tokenizer.get_vocab()
    assert str(run(name)) not in "".join(path.read_text() for path in Path(moved).rglob("*.yaml"))
    with pytest.raises(UserError, match=naming("empty folder")):
        ours.save(moved)


def test_a_run_may_start_from_a_saved_model(model, tmp_path):
    folder = model("pretrain").save(tmp_path / "saved")
    assert find_weights(folder) == folder / "model.safetensors"
    assert read_yaml(folder / "config.yaml")["task"] == "pretrain"


def test_the_card_has_the_results_of_the_run_and_its_receipt(run, tmp_path):
    folder = shutil.copytree(run("vqa"), tmp_path / "cell" / "seed-0")
    metrics = {
        "questions": {"value": 14, "unit": "count"},
        "accuracy": {"value": 0.515, "unit": "share", "chance": 0.25},
    }
    (folder / "evaluation.json").write_text(json.dumps({"test": metrics}))
    (folder.parent / "receipt.md").write_text("# demo/tiny/vqa\n\nmeasured on 14 questions\n")
    saved = load(folder).save(tmp_path / "saved")
    card = (saved / "README.md").read_text()
    assert "| test | accuracy | 51.5 | 25.0 |" in card and "### demo/tiny/vqa\n\nmeasured on 14 questions" in card
    assert "It supports `answer`." in card
    again = (load(saved).save(tmp_path / "again") / "README.md").read_text()
    assert again[again.index(HEADING) :] == card[card.index(HEADING) :]


@pytest.mark.parametrize("name", ["seed-0/README.md", "receipt.md"])
def test_a_card_or_receipt_that_cannot_be_read_is_left_out_with_a_warning(run, tmp_path, caplog, name):
    folder = shutil.copytree(run("vqa"), tmp_path / "cell" / "seed-0")
    (folder / "evaluation.json").write_text(json.dumps({"test": {"accuracy": {"value": 0.515, "unit": "share"}}}))
    path = folder.parent / name
    path.write_bytes(b"caf\xe9")
    card = (load(folder).save(tmp_path / "saved") / "README.md").read_text()
    assert "| test | accuracy | 51.5 |" in card
    assert OneLine(str(path), "cannot be read", "leaves it out") in caplog.messages


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_weights_are_rejected_in_one_line(value, run, tmp_path):
    shutil.copytree(run("pretrain"), tmp_path / "ruined")
    weights = load_file(tmp_path / "ruined" / MODEL_FILE)
    weights[min(weights)].view(-1)[0] = value
    save_weights(tmp_path / "ruined" / MODEL_FILE, weights)
    with pytest.raises(UserError, match=naming("ruined/model.safetensors", "NaN", "different weights")):
        load(tmp_path / "ruined")


def test_non_finite_results_are_rejected_in_one_line(run, data):
    model = load(run("pretrain"))
    with torch.no_grad():  # as if a lower precision overflowed
        for parameter in model.network.vision.parameters():
            parameter.fill_(3e38)
    image = str(data / "images/1.png")
    for call in (
        lambda: model.match(image, "a star"),
        lambda: model.locate(image, "a star"),
        lambda: model.embed_images(image),
    ):
        with pytest.raises(UserError, match=naming("NaN", "fp32")):
            call()


def test_a_damaged_answer_list_is_reported_in_one_line(run, tmp_path):
    shutil.copytree(run("vqa"), tmp_path / "run")
    for content in ("[" * 100_000, "{", "[1]"):
        (tmp_path / "run/answers.json").write_text(content)
        with pytest.raises(UserError, match=r"^answers: .*answers\.json"):
            load(tmp_path / "run")


def test_without_best_weights_the_newest_checkpoint_of_a_run_is_used(run, tmp_path):
    folder = shutil.copytree(run("grounding"), tmp_path / "run")
    state = read_weights(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_checkpoint(folder / "checkpoints", 3, {name: value + 1 for name, value in state.items()}, {})
    loaded = load(folder).network.state_dict()
    assert all(torch.equal(loaded[name], value + 1) for name, value in state.items())


def test_a_published_file_is_loaded_with_the_given_config(run, model, data, tmp_path):
    """The file is as published by the authors, with other names and as a PyTorch file."""
    folder = run("captioning")
    assert (
        main(
            [
                "checkpoint",
                "convert",
                str(folder / "model.safetensors"),
                "--form",
                "published",
                "--out",
                str(tmp_path / "model.th"),
            ]
        )
        == 0
    )
    words = folder / "tokenizer"
    again = load(tmp_path / "model.th", config=folder / "config.yaml", tokenizer=words)
    images = [data / f"images/{number}.png" for number in range(3)]
    assert again.caption(images) == model("captioning").caption(images)


SIZES = {"base": Stack(768, 12), "large": Stack(1024, 24)}


def found(task: str, size: str = "base", words: int = 30522, frames: int | None = None, **more) -> Recognised:
    kind = "X²-VLM with XLM-R (CCLM)" if words == XLM_R_WORDS else "X²-VLM"
    known = {"vision": SIZES.get(size), "image_size": 384, "words": words, "frames": frames} | more
    return Recognised(**({"kind": kind, "names": "published", "shapes": {}, "task": task} | known))


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize(
    ("task", "more"),
    [
        *((name, {}) for name in NAMES),
        ("retrieval", {"frames": 12}),
        ("video_qa", {"frames": 5}),
        ("pretrain", {"words": XLM_R_WORDS}),
        ("retrieval", {"words": XLM_R_WORDS}),
    ],
)
def test_an_authors_file_gets_the_settings_of_its_run(task, more, size):
    config = ROOT / "configs" / x2vlm.settings._published_config(found(task, size, **more), Path("x.th"))
    values = read_config(config).values
    source = task_of(values, None, "x")
    settings = settings_of(values, str(config), source)
    assert settings.task == task and size in config.name
    assert type(settings.model) is model_section(source.config_class())
    if more.get("words"):
        assert settings.model.text.encoder.startswith("xlm-roberta")
    assert (settings.model.vision.video is not None) == ("frames" in more)


def test_a_model_of_another_task_than_the_named_one_is_rejected():
    with pytest.raises(UserError, match=naming("model of the task pretrain", "vqa", "task=")):
        task_of({"task": "pretrain"}, find_task("vqa"), "x")
    assert task_of({"task": "video_qa"}, find_task("vqa"), "x").entry == "video_qa"


def test_a_pre_trained_model_reads_videos_like_its_stream():
    values = read_config(ROOT / "configs/pretrain/base_1b_stage2.yaml").values
    reading = values["data"]["videos"]["reading"]
    read = settings_of(values, "x", find_task("pretrain")).data.video
    assert reading and reading == {name: getattr(read, name) for name in reading}
    reading["frames_per_second"] = 4.0
    assert settings_of(values, "x", find_task("pretrain")).data.video.frames_per_second == 4.0


def test_settings_are_derived_from_the_shapes_of_an_authors_file(monkeypatch):
    classes = {"classifier.3.weight": (1234, 1536)}
    monkeypatch.setattr(x2vlm.settings, "read_weights", lambda path: {})
    monkeypatch.setattr(
        x2vlm.settings, "recognise", lambda shapes: found("video_qa", frames=5, image_size=320, shapes=classes)
    )
    model = x2vlm.settings.settings_of_weights(Path("x.th"), None, None, None)[0].model
    assert (model.vision.image_size, model.classes) == (320, 1234)


@pytest.mark.parametrize(
    ("recognised", "reported"),
    [
        (found("none"), ("without a head",)),
        (found("vqa", words=XLM_R_WORDS), ("task vqa", "config=")),
        (found("vqa", size="tiny"), ("of an unknown size",)),
        (found("vqa", kind=None), ("not in a run's folder", "config=")),
        (found("vqa", kind="X-VLM with a Swin transformer"), ("X-VLM", "Swin", "config=")),
    ],
)
def test_a_file_with_unknown_settings_needs_a_config(recognised, reported):
    assert 30522 in VOCABULARIES
    with pytest.raises(UserError, match=naming(*reported)):
        x2vlm.settings._published_config(recognised, Path("x.th"))


@pytest.mark.parametrize(
    ("source", "options", "reported"),
    [
        ("nowhere", {}, ("nowhere", "hub:owner/name")),
        ("{run}", {"config": "nowhere.yaml"}, ("config", "nowhere.yaml")),
        ("{run}", {"tokenizer": "./nowhere"}, ("tokenizer", "./nowhere")),
        ("{run}", {"answers": "nowhere.json"}, ("answers", "nowhere.json")),
        ("{run}", {"device": "gpu"}, ("'gpu'", "cpu")),
        ("{run}", {"precision": "float16"}, ("precision", "'float16'", "bf16, fp16, fp32")),
    ],
)
def test_missing_files_are_reported_in_one_line(source, options, reported, run):
    with pytest.raises(UserError, match=naming(*reported)) as raised:
        load(source.format(run=run("vqa")), **options)
    assert "\n" not in str(raised.value)


def test_a_user_defined_task_is_reported(run, tmp_path):
    folder = shutil.copytree(run("vqa"), tmp_path / "run")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("task: vqa", "task: entailment"))
    with pytest.raises(UserError, match=naming("config.yaml", "'entailment'", "pretrain, retrieval")):
        load(folder)


def test_a_model_on_the_hub_is_downloaded_as_a_folder(run, monkeypatch):
    asked = []

    def local_folder(name, files, key, extra_files):
        asked.append((name, key))
        return run("grounding")

    monkeypatch.setattr(x2vlm.weights, "local_folder", local_folder)
    assert load("hub:somebody/model").settings.task == "grounding"
    assert asked == [("somebody/model", "hub:somebody/model")]


def test_bf16_is_close_to_fp32(run, model, data):
    half = load(run("retrieval"), precision="bf16")
    texts = ["a star", "a circle"]
    np.testing.assert_allclose(half.embed_texts(texts), model("retrieval").embed_texts(texts), atol=0.05)


def test_attention_of_a_loaded_model_is_computed_as_in_training(monkeypatch):
    """Without cuDNN, which would build a plan for each new length of a text."""
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # there may be no GPU
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for device, uses_cudnn in (("cpu", True), ("cuda", False)):
            torch.backends.cuda.enable_cudnn_sdp(True)
            loading._device(device)
            assert torch.backends.cuda.cudnn_sdp_enabled() == uses_cudnn
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
