"""Runs in other languages: the text encoder is replaced, languages are measured separately, and text pairs are trained on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tasks.config import NLVRConfig, PretrainConfig, RetrievalConfig
from tasks.nlvr import NLVRTask
from tasks.pretrain import PretrainTask
from tasks.retrieval import RetrievalTask
from tasks.run import run_script
from tests.conftest import tiny_run
from tests.messages import OneLine, naming
from utils.config import load_config
from utils.errors import UserError

ROOT = Path(__file__).parent.parent.parent
LANGUAGE = "configs/demo/retrieval_language.yaml"
FUSION = "model.fusion={layers: 1, width: 16, heads: 2, intermediate: 32}"


@pytest.fixture(scope="module")
def pretrained(tiny_overrides, tmp_path_factory) -> Path:
    """Weights of a small version of the demo's pre-training, in English."""
    task = PretrainTask.build(load_config("configs/demo/pretrain.yaml", tiny_overrides, PretrainConfig))
    path = tmp_path_factory.mktemp("english") / "model.safetensors"
    save_file({name: value.clone() for name, value in task.model.state_dict().items()}, path)
    return path


@pytest.fixture
def overrides(scenes_folder, pretrained) -> list[str]:
    """Overrides for a small version of the demo in another language, with two measured languages."""
    kept = ("model.vision", "model.text.dropout", "schedule.", "train.")
    splits = [
        f"evaluation.test.{name}={{annotations: {scenes_folder}/multilingual_test.jsonl, language: {language}}}"
        for name, language in (("test", "de"), ("zh", "zh"))
    ]
    return [
        *(each for each in tiny_run(scenes_folder) if each.startswith(kept)),
        f"model.text.encoder={scenes_folder}/tokenizer_multilingual",
        "model.text.arch={family: bert, width: 24, layers: 2, heads: 2, intermediate: 32, max_positions: 64}",
        FUSION,
        f"init.checkpoint={pretrained}",
        f"data.train.annotations={scenes_folder}/multilingual_train.jsonl",
        "data.workers=0",
        "data.batch_size=4",
        f"evaluation.validation.annotations={scenes_folder}/multilingual_val.jsonl",
        *splits,
        "evaluation.candidates=4",
        "train.steps=4",
        "train.validate_every=2",
    ]


def test_a_run_replaces_the_text_encoder_and_measures_each_language(overrides, tmp_path, capsys):
    arguments = ["--config", LANGUAGE, "--output", str(tmp_path / "run"), *overrides]
    assert run_script(arguments, "retrieval") == 0
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    mean = report.pop("mean of splits")
    assert report.keys() == {"test", "zh"}
    assert mean["mean recall"]["value"] == pytest.approx(
        (report["test"]["mean recall"]["value"] + report["zh"]["mean recall"]["value"]) / 2
    )
    assert "captions" not in mean
    assert "mean of splits" in capsys.readouterr().out
    assert all(found["captions"]["value"] == 16 for found in report.values())
    assert all("chance" in found["mean recall"] for found in report.values())
    log = (tmp_path / "run" / "log.txt").read_text()
    assert OneLine("text encoder", "checkpoint") in log.splitlines()
    assert re.search(r"weights: .*model.safetensors; \d+ of text.* random.*\n", log)


def test_the_new_text_encoder_learns_faster_and_the_rest_as_before(overrides):
    task = RetrievalTask.build(load_config(LANGUAGE, overrides, RetrievalConfig))
    assert task.fresh == {f"text.{name}" for name, _ in task.model.text.named_parameters()}
    assert task.model.text.projection is not None


def test_a_new_encoder_that_the_config_does_not_declare_is_reported_in_one_line(overrides):
    config = load_config(LANGUAGE, [*overrides, "init.new_text=false"], RetrievalConfig)
    with pytest.raises(
        UserError, match=r"shapes differ \(width 16 in the file, 24 in the model\): .*init.new_text=true"
    ) as error:
        RetrievalTask.build(config)
    assert len(str(error.value).splitlines()) == 1


def test_a_language_that_no_record_has_is_reported_with_the_key(overrides):
    config = load_config(LANGUAGE, [*overrides, "data.train.language=it"], RetrievalConfig)
    with pytest.raises(UserError, match=naming("data.train", "'it'", "en, de, fr, cs, zh, ja")):
        RetrievalTask.build(config)


@pytest.fixture
def with_translations(tiny_overrides, tmp_path) -> list[str]:
    path = tmp_path / "pairs.jsonl"
    rows = [{"source_text": f"a small red star {n}", "target_text": f"a large blue circle {n}"} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [*tiny_overrides, f"data.translations={{files: [{path}], batch_size: 3, weight: 0.5}}"]


def test_translations_are_trained_on_alongside_the_images(with_translations):
    task = PretrainTask.build(load_config("configs/demo/pretrain.yaml", with_translations, PretrainConfig))
    batch = next(task.train_loader().batches(0, 1))
    terms, counts = task.model(batch), task.model.counts(batch)
    assert (
        terms.keys()
        == counts.keys()
        >= {"translations/contrastive", "translations/matching", "translations/mlm", "images/mlm", "regions/l1"}
    )
    assert [terms[f"translations/{name}"].weight for name in ("contrastive", "matching", "mlm")] == [0.5, 2.5, 0.5]
    sum(terms[f"translations/{name}"].total for name in ("contrastive", "matching", "mlm")).backward()
    assert task.model.text.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0
    assert task.model.vision.backbone.blocks[0].mlp.fc1.weight.grad is None


def test_padding_of_a_translation_does_not_change_the_losses(with_translations):
    task = PretrainTask.build(load_config("configs/demo/pretrain.yaml", with_translations, PretrainConfig))
    task.model.eval()
    whole = next(task.train_loader().batches(0, 1))
    batch = whole.translations
    other = replace(
        batch.other,
        ids=torch.nn.functional.pad(batch.other.ids, (0, 3)),
        mask=torch.nn.functional.pad(batch.other.mask, (0, 3)),
    )
    found = []
    for each in (batch, replace(batch, other=other)):
        torch.manual_seed(0)
        terms = task.model(replace(whole, images=None, regions=None, translations=each))
        found.append({name: term.total.item() for name, term in terms.items()})
    assert found[0].keys() == {"translations/contrastive", "translations/matching", "translations/mlm"}
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_translations_need_equal_widths_and_enough_positions(with_translations):
    wide = [*with_translations, "model.vision.width=32", FUSION]
    with pytest.raises(
        UserError,
        match=naming("data.translations", "width 32", "texts 16", "model.vision", "model.fusion"),
    ):
        PretrainTask.build(load_config("configs/demo/pretrain.yaml", wide, PretrainConfig))
    long = [*with_translations, "data.translations.text={max_tokens: 65}"]
    with pytest.raises(UserError, match=naming("data.translations.text.max_tokens", "65", "model.text", "64 tokens")):
        PretrainTask.build(load_config("configs/demo/pretrain.yaml", long, PretrainConfig))


def test_entailment_is_trained_with_the_task_for_statements(scenes_folder, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "7.jpg")
    rows = [
        {"gold_label": label, "sentence2": f"a red star {n}", "Flikr30kID": "7"}
        for n, label in enumerate(("contradiction", "entailment", "neutral", "neutral", "-"))
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = ("model.", "schedule.", "train.")
    overrides = [
        *(each for each in tiny_run(scenes_folder) if each.startswith(kept)),
        "init.checkpoint=null",
        "model.images=1",
        "model.classes=3",
        "data.workers=0",
        "data.batch_size=2",
        f"data.train={{format: xvnli, annotations: {path}}}",
        "evaluation.validation=null",
        f"evaluation.test.test={{format: xvnli, annotations: {path}}}",
    ]
    task = NLVRTask.build(load_config("configs/demo/nlvr.yaml", overrides, NLVRConfig))
    batch = next(task.train_loader().batches(0, 1))
    assert batch.pixels.shape[0] == 2
    assert task.model(batch)["classes"].total > 0
    task.model.eval()
    with torch.no_grad():
        found = task.evaluate(task.held_out.test["test"])
    assert found["statements"].value == 4
    assert found["accuracy"].chance == 0.5
    with pytest.raises(UserError, match=r"^evaluation.test.test: .*test.jsonl:1 has 1 images, but model.images is 2"):
        NLVRTask.build(load_config("configs/demo/nlvr.yaml", [*overrides, "model.images=2"], NLVRConfig))
