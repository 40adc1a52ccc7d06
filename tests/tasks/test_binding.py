"""Mistakes in a config are reported before torch is imported, with the nearest keys in the whole config."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.run_folder import RunFolder
from tasks.binding import bind_run
from tasks.config import RetrievalConfig, VQAConfig
from tests.messages import OneLine
from utils.config import fields_of
from utils.config_files import ConfigError, nearest_keys
from utils.errors import UserError

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
    assert nearest in nearest_keys(name, [key for key, _ in fields_of(RetrievalConfig)])


def test_nothing_is_suggested_for_a_key_unlike_any_other():
    assert nearest_keys("qqqq", [key for key, _ in fields_of(VQAConfig)]) == []


def test_every_mistake_is_reported_with_its_file_and_line(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "base: base.yaml\ndata:\n  train:\n  - {questoins: a.json}\nevaluation: {test: {mine: {image: b}}}\n"
    )
    (tmp_path / "base.yaml").write_text("task: vqa\n\ntrain: {steps: many}\n")
    with pytest.raises(ConfigError) as error:
        bind_run(file, ["optim.freeze={vison: true}"])
    lines = [line.strip() for line in str(error.value).splitlines()]
    for expected in (
        f"{file}:3: data.train.0.questoins is not a key of this config; did you mean data.train[].questions?",
        f"{file}:5: evaluation.test.mine.image is not a key",
        f"{tmp_path / 'base.yaml'}:3: train.steps = 'many': ",
        "command line: optim.freeze.vison is not a key of this config; did you mean optim.freeze.vision?",
    ):
        assert any(line.startswith(expected) for line in lines), (expected, lines)


WITHOUT = """
import sys
for name in ("torch", "torchvision", "transformers", "timm", "numpy", "PIL", "pyarrow"):
    sys.modules[name] = None  # an import of one of them raises ImportError
"""


def test_every_shipped_config_is_bound_without_torch():
    code = WITHOUT + "from tasks.binding import bind_run\nfor path in sys.argv[1:]: bind_run(path, [])"
    done = subprocess.run([sys.executable, "-c", code, *map(str, CONFIGS)], cwd=ROOT, capture_output=True, text=True)
    assert CONFIGS and done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/demo/vqa.yaml", "lr=3"], "did you mean optim.lr"),
        (["--config", "configs/demo/vqa.yaml", "optim.lr=fast"], "command line: optim.lr = 'fast': "),
        (["--config", "configs/demo/vqa.yaml", "optim.lr=-1"], "command line: optim.lr = -1: "),
        (["--config", "configs/demo/vqa.yaml", "--batch-size", "16"], "did you mean data.batch_size=VALUE"),
        (["doctor", "--config", "configs/demo/vqa.yaml", "lr=3"], "did you mean optim.lr"),
        (["plan", "--config", "configs/demo/vqa.yaml", "lr=3"], "did you mean optim.lr"),
        (["reproduce", "--table", "9"], "--table 9: no such cell"),
    ],
)
def test_a_mistake_does_not_wait_for_torch(arguments, message):
    code = WITHOUT + "import run; sys.exit(run.main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_a_declared_key_needs_no_other_file(tmp_path):
    """A key that is added to a config class can be set at once."""
    code = (
        "from pydantic import create_model; import tasks.config as c; from models.config import LossWeights\n"
        "c.PretrainConfig = type('P', (c.PretrainConfig,), {'__annotations__': {'loss': create_model('L', "
        "__base__=LossWeights, extra_loss=(float, 1.0))}})\n"
        "from tasks.binding import bind_run\n"
        "assert bind_run('configs/demo/pretrain.yaml', ['loss.extra_loss=2']).config.loss.extra_loss == 2"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("override", "lines"),
    [
        ("train.parallel={shard: 2}", ["command line: train.parallel.replicate is missing; add it or pass"]),
        ("train.parallel=fsd", ["command line: train.parallel = 'fsd': Input should be 'auto', 'ddp' or 'fsdp'"]),
        (
            "train.parallel={shard: 2, replicat: 1}",
            ["train.parallel.replicate is missing", "train.parallel.replicat is not"],
        ),
        ("task=pretrian", ["command line: task is 'pretrian', not one of pretrain", "did you mean 'pretrain'?"]),
    ],
)
def test_a_mistake_in_a_value_of_several_types_is_named_by_its_key(override, lines):
    with pytest.raises(UserError) as error:
        bind_run("configs/demo/pretrain.yaml", [override])
    text = str(error.value)
    assert all(line in text for line in lines) and "Config" not in text and "literal" not in text
    assert len(text.splitlines()) == (2 if "replicat:" in override else 1)


def test_malformed_arguments_are_reported_with_all_other_mistakes():
    """A malformed argument must not hide the other mistakes until it is corrected."""
    overrides = ["optim.lr=[1", "data..x=1", "data.images.files.first=1", "train.stepps=3", "optim.weight_decay=no"]
    with pytest.raises(ConfigError) as error:
        bind_run(ROOT / "configs/demo/pretrain.yaml", overrides)
    assert len(error.value.findings) == len(overrides)
    for key in ("optim.lr", "data..x", "data.images.files", "train.stepps", "optim.weight_decay"):
        assert sum(key in str(finding) for finding in error.value.findings) == 1


def test_a_run_of_another_task_is_not_called_damaged(tmp_path):
    """Regression test: the advice was to restore or remove the config of the run, which was intact."""
    folder = RunFolder.open(tmp_path, bind_run(ROOT / "configs/demo/pretrain.yaml", []).config, resume=False)
    folder.metrics.touch()
    with pytest.raises(UserError) as error:
        RunFolder.open(tmp_path, bind_run(None, [], "vqa").config, resume=True)
    assert str(error.value) == OneLine("config.yaml", "a run of the task pretrain", "vqa", "another --output")


def test_a_missing_config_has_its_remedy_apart():
    with pytest.raises(UserError) as error:
        bind_run("configs/demo/pretrian.yaml", [])
    assert (error.value.what, error.value.where) == ("no such config file", "--config configs/demo/pretrian.yaml")
    assert "configs/demo/pretrain.yaml" in error.value.remedy
