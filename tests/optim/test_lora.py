"""The config of low-rank adapters, their learning rate, and the formula for merging their weights."""

import pytest
import torch
from pydantic import ValidationError

from optim.config import LoraConfig, OptimConfig
from optim.groups import learning_rate
from optim.lora import DOWN, UP, check_package, merged
from tests.messages import naming
from utils.errors import UserError


def test_an_adapter_trains_at_the_learning_rate_of_adapters():
    name = f"vision.backbone.blocks.0.attn.qkv{DOWN}"
    for lora, rate in (({"rank": 2, "lr": 0.5}, 0.5), ({"rank": 2}, 0.1)):
        config = OptimConfig(lr=0.1, vision_lr=0.2, text_lr=0.3, lora=lora)
        assert learning_rate(name, config, ()) == rate
        assert learning_rate("vision.norm.weight", config, ()) == 0.2


def test_a_part_cannot_have_adapters_and_be_frozen():
    with pytest.raises(ValidationError, match=r"lora.targets contains text.*freeze.text"):
        OptimConfig(lr=0.1, lora={"rank": 2, "targets": ["vision", "text"]}, freeze={"text": True})
    OptimConfig(lr=0.1, lora={"rank": 2}, freeze={"text": True})


@pytest.mark.parametrize("targets", [[], ["vision", "vision"], ["heads"]])
def test_targets_are_unique_parts(targets):
    with pytest.raises(ValidationError):
        LoraConfig(rank=2, targets=targets)


def test_merging_adds_the_scaled_product_and_keeps_the_rest():
    w, bias, a, b = torch.randn(5, 3), torch.randn(5), torch.randn(2, 3), torch.randn(5, 2)
    tensors = {"x.q.base_layer.weight": w, "x.q.base_layer.bias": bias, f"x.q{DOWN}": a, f"x.q{UP}": b, "y.weight": a}
    result = merged(tensors, LoraConfig(rank=2, alpha=6).metadata, "a file")
    assert result.keys() == {"x.q.weight", "x.q.bias", "y.weight"}
    torch.testing.assert_close(result["x.q.weight"], w + 3 * b @ a)
    assert result["x.q.bias"] is bias


def test_adapters_without_base_weights_are_not_dropped_silently():
    """If all base weights are missing, the file contains only adapters. If one is missing, the file is damaged."""
    about = LoraConfig(rank=2).metadata
    alone = {f"x.q{DOWN}": torch.ones(2, 3), f"x.q{UP}": torch.ones(5, 2), "head.weight": torch.ones(2)}
    with pytest.raises(UserError, match=naming("a file", "run.py checkpoint merge")):
        merged(alone, about, "a file")
    one = {"x.k.base_layer.weight": torch.ones(5, 3), f"x.k{DOWN}": torch.ones(2, 3), f"x.k{UP}": torch.ones(5, 2)}
    with pytest.raises(UserError, match=r"a file: x\.q\.base_layer\.weight.*missing"):
        merged({**alone, **one}, about, "a file")


def test_without_the_package_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setattr("optim.lora.find_spec", lambda name: None)
    check_package(None)
    with pytest.raises(UserError, match=naming("optim.lora", 'pip install -e ".[lora]"', "peft")):
        check_package(LoraConfig(rank=2))
