"""Muon for matrices in blocks, and AdamW for all other parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from engine.config import TrainConfig
from engine.parallel.choice import mesh_of
from models.config import PretrainModelConfig, TextArchitecture, TextConfig
from models.pretraining.model import PretrainModel
from optim.config import MuonConfig, OptimConfig
from optim.groups import build_optimizer, parameter_groups
from optim.muon import matrices_in_blocks
from tests.messages import naming
from utils.errors import UserError

CONFIG = OptimConfig(lr=0.01, lr_mult=1.0, muon=MuonConfig(lr_factor=3.0))


def blocks(*sizes: tuple[int, int]) -> nn.ModuleList:
    return nn.ModuleList(nn.ModuleDict({"dense": nn.Linear(*size)}) for size in sizes)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"blocks": blocks((6, 4), (4, 8)), "head": nn.Linear(8, 3)})


def optimizer_of(model: nn.Module, config: OptimConfig = CONFIG) -> torch.optim.Optimizer:
    groups = parameter_groups(model.named_parameters(), config, (), matrices=matrices_in_blocks(model))
    return build_optimizer(groups, config)


def steps(model: nn.Module, optimizers: list[torch.optim.Optimizer], count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        gradients = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=gradients)
        for optimizer in optimizers:
            optimizer.step()


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_each_parameter_is_updated_as_by_its_own_optimiser():
    found, expected = network(), network()
    steps(found, [optimizer_of(found)], 3)
    names = dict(expected.named_parameters())
    matrices = [names.pop(name) for name in ("blocks.0.dense.weight", "blocks.1.dense.weight")]
    biases = [names.pop(name) for name in list(names) if name.endswith("bias")]
    muon = torch.optim.Muon(matrices, lr=0.03, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    decays = [{"params": list(names.values()), "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}]
    steps(expected, [muon, torch.optim.AdamW(decays, lr=0.01, betas=(0.9, 0.98), eps=1e-8)], 3)
    torch.testing.assert_close(found.state_dict(), expected.state_dict())


def test_an_update_changes_all_directions_by_about_the_same_amount():
    model = nn.ModuleDict({"blocks": blocks((32, 32))})
    weight = model.get_parameter("blocks.0.dense.weight")
    before, config = weight.detach().clone(), CONFIG.model_copy(update={"weight_decay": 0.0})
    optimizer = optimizer_of(model, config)
    weight.grad = torch.diag(10.0 ** -torch.arange(32).remainder(3))  # directions with gradients of 1, 0.1 and 0.01
    optimizer.step()
    sizes = torch.linalg.svdvals(weight.detach() - before)
    assert sizes.max() < 2 * sizes.min()
    root_mean_square = (weight.detach() - before).square().mean().sqrt()
    assert root_mean_square == pytest.approx(0.2 * 3 * 0.01, rel=0.2)


def test_a_resumed_optimiser_continues_exactly():
    whole, resumed = network(), network()
    optimizer = optimizer_of(whole)
    steps(whole, [optimizer], 2)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(whole.state_dict())
    steps(whole, [optimizer], 2, first=2)
    resumed.load_state_dict(weights)
    again = optimizer_of(resumed)
    again.load_state_dict(saved)
    steps(resumed, [again], 2, first=2)
    assert_equal(resumed, whole)


def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing():
    found, expected = network(), network()
    skipping, other = optimizer_of(found), optimizer_of(expected)
    for first, not_finite in enumerate((False, True, False)):
        skipping.found_inf = torch.tensor(float(not_finite))
        steps(found, [], 1, first)
        if not_finite:
            for parameter in found.parameters():
                parameter.grad = torch.full_like(parameter, torch.nan)
        else:
            steps(expected, [other], 1, first)
        skipping.step()
    assert_equal(found, expected)


def test_the_matrices_in_the_blocks_of_all_encoders_are_trained_with_muon():
    text = TextConfig(arch=TextArchitecture(vocab_size=30522))
    with torch.device("meta"):
        model = PretrainModel(PretrainModelConfig(text=text))
    found, parameters = matrices_in_blocks(model), dict(model.named_parameters())
    assert {name.partition(".")[0] for name in found} == {"vision", "text", "fusion"}
    assert all(parameters[name].ndim == 2 for name in found)
    others = {name for name, parameter in parameters.items() if parameter.ndim >= 2 and name not in found}
    assert {name for name in others if ".layer." in name or ".blocks." in name} == {
        name for name in parameters if name.endswith("relative_position_bias_table")
    }


def test_only_groups_that_exist_have_an_optimiser():
    model = network()
    for parameter in model["blocks"].parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    steps(model, [optimizer_of(model)], 1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.parametrize(("others", "words"), [({"fused": "apex"}, "apex"), ({"lora": {}}, "lora")])
def test_muon_is_refused_with_settings_that_exclude_it(others, words):
    with pytest.raises(ValidationError, match=words):
        OptimConfig.model_validate({"lr": 0.1, "muon": {}, **others})


def test_muon_is_refused_with_sharded_matrices():
    train = TrainConfig(steps=1, precision="fp32", parallel="fsdp")
    with pytest.raises(UserError, match=naming("optim.muon", "FSDP2", "train.parallel")):
        mesh_of(train, CONFIG, 2, 1, None)
