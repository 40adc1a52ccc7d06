"""Every shipped config has a global batch that the GPUs of its command can form."""

import re
from pathlib import Path

import pytest

from tasks.binding import bind_run
from utils.config import Config, load_config

ROOT = Path(__file__).parent.parent.parent
RUNS = sorted(path for path in ROOT.glob("configs/*/*.yaml") if path.parent.name != "presets")


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def gpus(path: Path) -> int | None:
    """The number of GPUs in the command at the top of a config, over all nodes; None if it does not give a number."""
    head = path.read_text(encoding="utf-8").split("base:")[0]
    each, nodes = re.search(r"--gpus (\d+)", head), re.search(r"--nodes (\d+)", head)
    return int(each[1]) * (int(nodes[1]) if nodes else 1) if each else None


def load(path: Path) -> Config:
    return load_config(path, [], bind_run(path, []).source.load().config)


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_config_for_several_gpus_has_a_global_batch_that_they_can_form(path):
    """Other configs, such as the demo's, use the batch that results from the machine's number of GPUs."""
    config, ranks = load(path), gpus(path)
    assert (config.train.global_batch is None) == (ranks is None)
    if ranks is not None:
        accumulation = config.plan(ranks).accumulation
        assert config.data.micro_batch.size * ranks * accumulation == config.train.global_batch
