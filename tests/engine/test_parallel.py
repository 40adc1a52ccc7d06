"""How ranks share a model: the default choice, and rejected settings."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from torch import nn

from engine.config import ShardingConfig, TrainConfig
from engine.parallel import choice
from engine.parallel.ddp import DataParallel
from engine.parallel.fsdp import Groups
from optim.config import OptimConfig
from tasks.config import CaptioningTrainConfig
from tests.messages import naming
from utils import distributed
from utils.config import ConfigError, bind
from utils.errors import UserError

OPTIM = OptimConfig(lr=0.1)


def train(**settings: object) -> TrainConfig:
    return TrainConfig(**{"steps": 1, "precision": "fp32", **settings})


@pytest.fixture
def chosen(monkeypatch):
    """The choice for eight ranks, which does not need a process group."""
    monkeypatch.setattr(distributed, "world_size", lambda: 8)
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value] * 8)
    monkeypatch.setattr(distributed, "move_from_rank_0", lambda model, device: None)
    monkeypatch.setattr(DataParallel, "update_trainable", lambda self: None)
    monkeypatch.setattr(choice, "Sharded", lambda model, device, shape, dtype: shape)
    return lambda config, optim=OPTIM: choice.parallel_of(config, optim, nn.Linear(1000, 1000), torch.device("cpu"))


@pytest.mark.parametrize(("memory", "fits"), [(None, True), (40_000_000, True), (30_000_000, False)])
def test_the_model_is_sharded_if_it_does_not_fit_into_half_of_a_gpu(memory, fits, chosen, monkeypatch, caplog):
    """Weights, gradients and two optimiser states of a million parameters take 16 MB."""
    monkeypatch.setattr(choice, "device_bytes", lambda device: memory)
    with caplog.at_level(logging.INFO):
        found = chosen(train())
    assert isinstance(found, DataParallel) if fits else found == ShardingConfig(shard=8, replicate=1)
    assert ("16.0 of" not in caplog.text) or memory is not None
    if memory == 40_000_000:
        monkeypatch.setattr(choice, "device_bytes", lambda device: 39_000_000)
        assert chosen(train(), OptimConfig(lr=0.1, ema={})) == ShardingConfig(shard=8, replicate=1), (
            "the average is a fifth copy of the weights"
        )


def test_the_mesh_must_match_the_number_of_ranks(chosen):
    assert chosen(train(parallel={"shard": 4, "replicate": 2})) == ShardingConfig(shard=4, replicate=2)
    with pytest.raises(UserError, match=naming("train.parallel", "shard 4", "replicate 3", "12", "the run has 8")):
        chosen(train(parallel={"shard": 4, "replicate": 3}))


@pytest.mark.parametrize("setting", [{"compile": True}, {"precision": "fp16"}, {"precision": "O2"}])
def test_settings_that_do_not_work_with_shards_are_rejected(setting, chosen, monkeypatch, caplog):
    (name,) = setting
    with pytest.raises(ConfigError, match=naming("parallel", name, "FSDP2", "ddp")):
        bind({"steps": 1, "precision": "fp32", "parallel": "fsdp", **setting}, TrainConfig)
    monkeypatch.setattr(choice, "device_bytes", lambda device: 1000)
    with caplog.at_level(logging.INFO):
        assert isinstance(chosen(train(**setting)), DataParallel)
    assert f"train.{name}" in caplog.text


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"fused": "apex"}, "optim.fused = apex"), ({"freeze": {"vision": True, "cache": {}}}, "optim.freeze.cache")],
)
def test_settings_of_the_optimiser_that_do_not_work_with_shards_select_ddp(settings, name, chosen, monkeypatch, caplog):
    optim = OptimConfig(lr=0.1, **settings)
    monkeypatch.setattr(choice, "device_bytes", lambda device: 1000)
    with caplog.at_level(logging.INFO):
        assert isinstance(chosen(train(), optim), DataParallel)
    assert f"because {name} does not work with FSDP2" in caplog.text
    for parallel in ("fsdp", {"shard": 4, "replicate": 2}):
        with pytest.raises(UserError, match=naming(name, "FSDP2", "ddp")):
            chosen(train(parallel=parallel), optim)


def test_two_neighbouring_blocks_are_gathered_at_the_same_time():
    """The peak holds for any order of the blocks."""
    sizes = (1, 5, 7, 2)
    orders = list(itertools.permutations(sizes))
    assert {Groups(10, order, 3).peak for order in orders} == {
        10 + max(a + b for order in orders for a, b in itertools.pairwise(order))
    }
    assert (Groups(10, (4,), 0).peak, Groups(10, (), 0).peak) == (14, 10)


def test_captions_cannot_be_sampled_from_a_sharded_model():
    """Ranks would run the blocks different numbers of times and wait for each other forever."""
    assert bind({"steps": 1, "parallel": "fsdp"}, CaptioningTrainConfig).setting_without_fsdp is None
    with pytest.raises(ConfigError, match=naming("parallel", "self_critical", "ddp")):
        bind({"steps": 1, "parallel": "fsdp", "objective": "self_critical"}, CaptioningTrainConfig)
