"""Every shipped config binds, builds on the meta device with the published sizes, and names the source of its values."""

import json
from pathlib import Path

import pytest
import torch

from tasks import TASKS
from tasks.grounding import GroundingConfig, GroundingTask
from tasks.nlvr import NLVRConfig, NLVRTask
from tasks.pretrain import PretrainConfig, PretrainTask
from tasks.retrieval import RetrievalConfig, RetrievalTask
from utils.config import Config, dump_config, load_config

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted(ROOT.glob("configs/*/*.yaml"))
RUNS = [path for path in CONFIGS if path.parent.name != "presets"]
COUNTS = json.loads((ROOT / "tests/golden/checkpoint_keys/param_counts.json").read_text())
KINDS = {
    "pretrain": (PretrainConfig, PretrainTask),
    "retrieval": (RetrievalConfig, RetrievalTask),
    "nlvr": (NLVRConfig, NLVRTask),
    "grounding": (GroundingConfig, GroundingTask),
}


def task_of(path: Path) -> str:
    """The folder names the task; in the demo's folder, the file does."""
    return path.stem if path.parent.name == "demo" else path.parent.name


def load(path: Path) -> Config:
    return load_config(path, [], KINDS[task_of(path)][0])


def total(path: Path) -> int:
    config = load(path)
    arch = config.model.text.arch
    with torch.device("meta"):
        model = KINDS[task_of(path)][1].build_model(config, arch.vocab_size or 200)
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_task_has_configs_and_a_demo():
    assert KINDS.keys() == TASKS.keys()
    assert {task_of(path) for path in RUNS} == TASKS.keys()
    for name, entry in TASKS.items():
        assert (ROOT / entry.script).is_file()
        assert task_of(ROOT / entry.demo_config) == name


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_config_binds_and_builds(path):
    assert total(path) > 0


@pytest.mark.parametrize(("name", "published"), [("base_4m", "pretrain_base"), ("large_4m", "pretrain_large")])
def test_presets_have_the_published_number_of_parameters(name, published):
    assert total(ROOT / "configs/pretrain" / f"{name}.yaml") == COUNTS[published]["total"]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_config_opens_with_its_command(path):
    head = path.read_text(encoding="utf-8").split("base:")[0]
    assert all(line.startswith("#") for line in head.strip().splitlines())
    relative = path.relative_to(ROOT).as_posix()
    assert f"--config {relative}" in head or "make demo" in head


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_values_name_their_source(path):
    """Each line with a value says paper, released or ours, itself or in a comment just above."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if any("Every value is ours" in line for line in lines):
        return
    for number, line in enumerate(lines):
        code = line.split("#")[0].strip()
        if not code or code.endswith(":") or code.startswith("base:"):
            continue
        said = " ".join(part.split("#", 1)[1] for part in lines[max(0, number - 1) : number + 1] if "#" in part)
        assert any(source in said for source in ("paper", "released", "ours")), f"{path}:{number + 1}: {line}"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_resolved_config_reads_back_equal(path, tmp_path):
    config = load(path)
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy, [], KINDS[task_of(path)][0]) == config
