"""Training with adapters: a layer that the model never calls is reported after the first step."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.messages import naming

pytest.importorskip("peft", reason="adapters need the package peft")

from engine.config import TrainConfig
from engine.run_folder import RunFolder
from engine.trainer import Trainer
from optim.config import LoraConfig, OptimConfig
from optim.lora import inject_adapters
from scheduler import ScheduleConfig
from tests.engine.frozen import Encoders
from tests.engine.toy import Empty, ToyTask, plan_of
from utils.errors import UserError

LORA = LoraConfig(rank=2)


class ReadsAWeight(nn.Module):
    """Reads the weight of a layer instead of calling the layer, as timm's BEiT does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(3, 3)

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states, self.qkv.weight, self.qkv.bias)


def trainer(folder, model, layers) -> Trainer:
    inject_adapters({"vision": model.vision, "text": model.text}, layers, LORA)
    task = ToyTask()
    task.model = model
    sections = {
        "train": TrainConfig(steps=2, precision="fp32", log_every=1),
        "optim": OptimConfig(lr=0.1, lora=LORA),
        "schedule": ScheduleConfig(),
    }
    return Trainer(
        task,
        plan_of(task, **sections),
        **sections,
        seed=0,
        folder=RunFolder.open(folder, Empty(), resume=False),
        device=torch.device("cpu"),
    )


def test_an_adapter_whose_layer_is_not_called_is_reported(tmp_path):
    model = Encoders()
    model.vision, model.text = ReadsAWeight(), nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(UserError, match=naming("2 adapters", "vision.qkv.lora_A.default.weight", "remove vision")):
        trainer(tmp_path, model, ["vision.qkv", "text.0"]).fit()


def test_adapters_whose_layers_are_called_train(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = Encoders()
    model.vision, model.text = nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3))
    run = trainer(tmp_path, model, ["vision.0", "text.0"])
    before = model.vision[0].base_layer.weight.clone()
    run.fit()
    assert "2 adapters of rank 2, 24 parameters" in caplog.text
    assert torch.equal(model.vision[0].base_layer.weight, before)
    assert model.vision[0].lora_B["default"].weight.any()
