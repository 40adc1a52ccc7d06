"""Captioning as a task: messages about mistakes, ids for the server, and the self-critical second stage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from models.checkpoints import LoadReport
from tasks.base import _check_origin
from tasks.captioning import CaptioningTask, _server_id
from tasks.config import CaptioningConfig, PretrainConfig
from tasks.pretrain import PretrainTask
from tests.conftest import tiny_run
from tests.messages import OneLine, naming
from utils.config import dump_config, load_config
from utils.config_files import ConfigError
from utils.errors import UserError

ROOT = Path(__file__).parent.parent.parent


def overrides_of(scenes_folder: Path, *more: str) -> list[str]:
    return [
        *(each for each in tiny_run(scenes_folder) if each.startswith(("model.", "train.", "schedule."))),
        "init.checkpoint=null",
        "data.workers=0",
        "data.batch_size=4",
        f"data.train.annotations={scenes_folder}/captioning_train.jsonl",
        "evaluation.validation=null",
        f"evaluation.test.test.annotations={scenes_folder}/captioning_test.jsonl",
        "evaluation.decoding.max_length=8",
        *more,
    ]


def task_of(scenes_folder: Path, *more: str) -> CaptioningTask:
    config = ROOT / "configs/demo/captioning.yaml"
    return CaptioningTask.build(load_config(config, overrides_of(scenes_folder, *more), CaptioningConfig))


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ("391895", 391895),
        ("coco_391895", 391895),
        ("val2014/COCO_val2014_000000391895.jpg", 391895),
        ("test/000007", "test/000007"),
        ("a.jpg", "a.jpg"),
    ],
)
def test_ids_have_the_format_of_the_coco_server(identity, expected):
    assert _server_id(identity) == expected


def test_the_reward_is_cider_and_a_step_has_a_loss(scenes_folder, tmp_path):
    """A reference caption gets a higher reward than the caption of another scene. A step returns a loss that can be
    backpropagated."""
    save_file(dict(task_of(scenes_folder).model.state_dict()), tmp_path / "model.safetensors")
    task = task_of(
        scenes_folder,
        "train.objective=self_critical",
        f"init.checkpoint={tmp_path}/model.safetensors",
        "self_critical={samples: 2, max_length: 5}",
    )
    references = task.training.items.captions_of(0)
    other = next(each for each in task.training.items.references() if not set(each) & set(references))
    fragments = [task.tokenizer.encode(text, add_special_tokens=False) for text in (references[0], other[0])]
    own, foreign = task.model.reward(fragments, [references] * 2)
    assert own > 2 * foreign
    batch = task.training.make(0)
    terms = task.model.train()(batch)
    assert terms["policy"].total.requires_grad
    assert 0 <= float(terms["reward"].total) <= 10 * int(batch.valid.sum())


def test_the_second_stage_needs_the_first(scenes_folder):
    with pytest.raises(ConfigError, match="self_critical is a second training stage"):
        task_of(scenes_folder, "train.objective=self_critical")


def run_of_task(folder: Path, task: CaptioningTask | PretrainTask) -> Path:
    """A run folder with the weights of a task and its config."""
    folder.mkdir()
    save_file({name: each.clone() for name, each in task.model.state_dict().items()}, folder / "best.safetensors")
    (folder / "config.yaml").write_text(dump_config(task.config))
    return folder


def test_the_second_stage_starts_only_from_a_captioning_run(scenes_folder, tiny_overrides, tmp_path, caplog):
    pretraining = PretrainTask.build(load_config(ROOT / "configs/demo/pretrain.yaml", tiny_overrides, PretrainConfig))
    folder = run_of_task(tmp_path / "pretrain", pretraining)
    second = ("train.objective=self_critical", f"init.checkpoint={folder}")
    with pytest.raises(UserError, match=naming("init.checkpoint", "best.safetensors", "a pretrain run", "captioning")):
        task_of(scenes_folder, *second)
    task_of(scenes_folder, second[1])  # the first stage may start there
    shutil.move(folder / "best.safetensors", tmp_path / "alone.safetensors")
    caplog.clear()
    task_of(scenes_folder, second[0], f"init.checkpoint={tmp_path}/alone.safetensors")
    assert OneLine("alone.safetensors", "train.objective", "self_critical") in caplog.messages
    caplog.clear()
    first = run_of_task(tmp_path / "captioning", task_of(scenes_folder))
    task_of(scenes_folder, second[0], f"init.checkpoint={first}")
    assert "second training stage" not in caplog.text


@pytest.mark.parametrize("folder", [".", "checkpoints/step-00000008"])
def test_a_setting_that_shapes_do_not_show_must_match_the_run(scenes_folder, tmp_path, folder):
    run = run_of_task(tmp_path / "run", task_of(scenes_folder))
    weights = run / folder / "model.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(run / "best.safetensors", weights)
    task_of(scenes_folder, f"init.checkpoint={run}")
    for path in (run, weights):
        with pytest.raises(
            UserError, match=r"config.yaml\): model.fusion.heads is 4 instead of 2; set model.fusion.heads=2$"
        ):
            task_of(scenes_folder, f"init.checkpoint={path}", "model.fusion.heads=4")
    (run / "config.yaml").unlink()
    task_of(scenes_folder, f"init.checkpoint={weights}", "model.fusion.heads=4")


def test_a_published_file_with_unusual_heads_causes_a_warning(scenes_folder, tmp_path, caplog):
    task = task_of(scenes_folder)
    _check_origin(CaptioningTask, task.config, task.model, tmp_path / "a.th", LoadReport("a.th", published=True))
    assert OneLine("a.th", "model.fusion.heads", "2", "16", "64") in caplog.messages
    caplog.clear()
    _check_origin(CaptioningTask, task.config, task.model, tmp_path / "a.th", LoadReport("a.th"))
    assert not caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.decoding.min_length=9", ("min_length", "9", "max_length", "8")),
        ("evaluation.decoding.beams=100000", ("tokenizer", "entries")),
        ("evaluation.decoding.max_length=4000", ("evaluation.decoding.max_length",)),
        ("evaluation.document_frequencies=nowhere.json", ("evaluation.document_frequencies", "nowhere.json")),
    ],
)
def test_decoding_settings_that_cannot_work_are_reported_at_once(scenes_folder, override, message):
    with pytest.raises((ConfigError, UserError), match=naming(*message)):
        task_of(scenes_folder, override)
