"""Captioning as a task: what is said to users' mistakes, ids for the server, and the self-critical second step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.captioning import CaptioningConfig, CaptioningTask, _server_id
from tests.conftest import tiny_run
from utils.config import ConfigError, load_config
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
    return CaptioningTask(load_config(config, overrides_of(scenes_folder, *more), CaptioningConfig))


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
def test_ids_are_what_cocos_server_takes(identity, expected):
    assert _server_id(identity) == expected


def test_the_reward_is_cider_and_its_model_steps(scenes_folder, tmp_path):
    """A reference itself is worth more than the caption of another scene; a step gives a loss to follow."""
    from safetensors.torch import save_file

    save_file(dict(task_of(scenes_folder).model.state_dict()), tmp_path / "model.safetensors")
    task = task_of(
        scenes_folder,
        "train.objective=self_critical",
        f"init.checkpoint={tmp_path}/model.safetensors",
        "self_critical={samples: 2, max_length: 5}",
    )
    references = task.training.references[0]
    other = next(each for each in task.training.references if not set(each) & set(references))
    said = [task.tokenizer.encode(text, add_special_tokens=False) for text in (references[0], other[0])]
    own, foreign = task.model.reward(said, [references] * 2)
    assert own > 2 * foreign
    batch = task.training.make(0)
    terms = task.model.train()(batch)
    assert terms["policy"].total.requires_grad
    assert 0 <= float(terms["reward"].total) <= 10 * int(batch.valid.sum())


def test_a_second_step_needs_a_first(scenes_folder):
    with pytest.raises(ConfigError, match="self_critical is a second step"):
        task_of(scenes_folder, "train.objective=self_critical")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.decoding.min_length=9", "min_length is 9, more than max_length = 8"),
        ("evaluation.decoding.beams=100000", "more than the .* entries of the tokenizer"),
        ("evaluation.decoding.max_length=4000", "evaluation.decoding.max_length: with the prompt"),
        (
            "evaluation.document_frequencies=nowhere.json",
            "evaluation.document_frequencies: nowhere.json does not exist",
        ),
    ],
)
def test_what_cannot_be_decoded_is_told_at_once(scenes_folder, override, message):
    with pytest.raises((ConfigError, UserError), match=message):
        task_of(scenes_folder, override)
