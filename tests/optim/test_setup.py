"""Freezing, gradient checkpointing, compiling and sharding work with any model, not only X²-VLM."""

from __future__ import annotations

import copy

import torch
from torch import nn

from optim.setup import compile_encoders, set_frozen, set_gradient_checkpointing


class Plain(nn.Module):
    """A plain model with two parts, one of which has a parameter that is never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
        self.second = nn.Linear(3, 1)
        self.first[0].bias.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs))


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_frozen_part_stays_in_evaluation_mode_and_is_restored_when_unfrozen():
    model = Plain().train()
    before = trainable(model)
    set_frozen(model, ["first"])
    assert trainable(model) == {"second.weight", "second.bias"}
    for mode in (True, False, True):
        model.train(mode)
        assert not any(each.training for each in model.first.modules())
        assert model.second.training == mode
    set_frozen(model, [])
    assert trainable(model) == before
    assert all(each.training for each in model.modules())
    assert "train" not in vars(model.first)


def test_a_copy_of_a_frozen_model_is_frozen_independently():
    model = Plain().train()
    set_frozen(model, ["first"])
    other = copy.deepcopy(model).train()
    set_frozen(model, [])
    assert not other.first[1].training and model.first[1].training
    assert trainable(other) == {"second.weight", "second.bias"}
    set_frozen(other, [])
    assert trainable(other) == trainable(model)


class Blocks(nn.Module):
    """A part that supports gradient checkpointing, compiling and sharding."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks_to_shard: list[nn.Module] = []
        self.asked: list[object] = []

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        self.asked.append(enabled)

    def compile_blocks(self, **options: object) -> None:
        self.asked.append(options)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision, self.fusion, self.decoder = Blocks(), nn.Sequential(nn.Linear(1, 1), Blocks()), Blocks()


def test_every_part_that_supports_a_setting_gets_it():
    model = Parts()
    set_gradient_checkpointing(model, ["fusion"])
    compile_encoders(model, mode=None)
    assert model.vision.asked == [False, {"mode": None}]
    assert model.fusion[1].asked == model.decoder.asked == [True, {"mode": None}], (
        "a decoder must follow the setting of the fusion"
    )
