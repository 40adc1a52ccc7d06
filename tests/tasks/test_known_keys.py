"""Misspelled keys are reported before torch is imported, with the nearest keys in the whole config."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.known_keys import check_keys, known_keys
from utils.config_files import ConfigError, nearest_keys, read_config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if path.parent.name != "presets")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("lr", "optim.lr"),
        ("train.batch_size", "data.batch_size"),
        ("model.image_size", "model.vision.image_size"),
        ("batch_size", "data.batch_size"),
        ("optim.lrr", "optim.lr"),
        ("modle.embed_dim", "model.embed_dim"),
        ("data.augmnt", "data.augment"),
    ],
)
def test_a_misplaced_or_misspelled_key_is_found_in_the_whole_config(name, nearest):
    assert nearest in nearest_keys(name, known_keys("retrieval"))


def test_nothing_is_suggested_for_a_key_unlike_any_other():
    assert nearest_keys("qqqq", known_keys("vqa")) == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_keys_of_every_shipped_config_are_known(config):
    check_keys(read_config(config, [])["task"], config, [])


def test_unknown_keys_are_found_in_sections_lists_and_below_names(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("task: vqa\ndata:\n  train:\n  - {questoins: a.json}\nevaluation: {test: {mine: {image: b}}}\n")
    with pytest.raises(ConfigError) as error:
        check_keys("vqa", file, ["optim.freeze={vison: true}"])
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert [line.split(" is not")[0] for line in lines] == [
        f"{file}:3: data.train.0.questoins",
        f"{file}:5: evaluation.test.mine.image",
        "command line: optim.freeze.vison",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/demo/vqa.yaml", "lr=3"], "did you mean optim.lr"),
        (["--config", "configs/demo/vqa.yaml", "--batch-size", "16"], "did you mean data.batch_size=VALUE"),
        (["reproduce", "--table", "9"], "--table 9: no such cell"),
    ],
)
def test_a_mistake_does_not_wait_for_torch(arguments, message, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import run; sys.exit(run.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and message in done.stderr, done.stderr
