"""Models with low-rank adapters: gradients, the FLOPs count, and merged weights that give the same model."""

from __future__ import annotations

import pytest
import torch

from tests.messages import naming

pytest.importorskip("peft", reason="adapters need the package peft")

from optim.config import LoraConfig
from optim.lora import has_adapters, is_adapter, merged
from optim.setup import add_adapters
from tests.models.test_flops import CASES, counted, fine_tuning, pretraining
from utils.errors import UserError


def adapted(make, name, **options):
    """A model with adapters and a batch. B is initialised with zeros and is filled with random numbers here."""
    model, batch = make(name)
    add_adapters(model, LoraConfig(**{"rank": 2, **options}))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if ".lora_B." in parameter_name:
                parameter.normal_(std=0.05)
    return model, batch


def backward(model, batch):
    torch.stack([term.total * term.weight for term in model(batch).values()]).sum().backward()


@pytest.mark.parametrize(("make", "name"), CASES, ids=[name for _, name in CASES])
@pytest.mark.parametrize("layers", ["attention", "all"])
def test_every_adapter_and_head_has_a_gradient_and_weights_of_targets_have_none(make, name, layers):
    model, batch = adapted(make, name, layers=layers)
    backward(model, batch)
    for parameter_name, parameter in model.named_parameters():
        trains = parameter.grad is not None
        assert trains == parameter.requires_grad, parameter_name
        if is_adapter(parameter_name):
            assert trains and parameter.grad.any(), parameter_name
        elif parameter_name.startswith(
            ("vision.backbone.", "text.encoder.", "text.embeddings.", "fusion.", "decoder.layer.")
        ):
            assert not trains, parameter_name


@pytest.mark.slow
@pytest.mark.parametrize(("make", "name"), CASES[2::3], ids=[name for _, name in CASES[2::3]])
def test_the_flops_count_equals_the_real_step(make, name):
    for layers in ("attention", "all"):
        model, batch = adapted(make, name, layers=layers)
        runs, count = counted(model, batch), model.work(batch).flops
        assert 0.99 * runs <= count <= runs


@pytest.mark.parametrize("name", ["retrieval", "vqa", "retrieval of videos"])
def test_merged_weights_give_the_losses_of_the_adapters(name):
    model, batch = adapted(fine_tuning, name)
    plain, _ = fine_tuning(name)
    config = LoraConfig(rank=2)
    plain.load_state_dict(merged(model.state_dict(), config.metadata, "a file"))
    with torch.no_grad():
        torch.manual_seed(1)
        with_adapters = model.eval()(batch)
        torch.manual_seed(1)
        without = plain.eval()(batch)
    for loss, term in with_adapters.items():
        torch.testing.assert_close(term.total, without[loss].total, rtol=1e-5, atol=1e-5)


def test_a_new_adapter_does_not_change_the_output():
    plain, batch = fine_tuning("nlvr")
    expected = plain.eval().classify(batch.pixels, batch.text)
    add_adapters(plain, LoraConfig(rank=2))
    torch.testing.assert_close(plain.eval().classify(batch.pixels, batch.text), expected)


def test_parameters_that_no_loss_trains_get_no_adapter():
    model, _ = pretraining("texts")
    idle = {name.rpartition(".")[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    add_adapters(model, LoraConfig(rank=2))
    assert not any(f"{layer}.lora_A.default.weight" in model.state_dict() for layer in idle)


def test_only_targets_get_adapters_and_other_parts_train_as_before():
    model, batch = fine_tuning("vqa")
    add_adapters(model, LoraConfig(rank=2, targets=["vision"]))
    backward(model, batch)
    with_adapters = {name.split(".")[0] for name in model.state_dict() if is_adapter(name)}
    assert with_adapters == {"vision"}
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name.startswith("fusion."))


def test_frame_positions_train_alongside_adapters():
    model, batch = fine_tuning("retrieval of videos")
    add_adapters(model, LoraConfig(rank=2))
    backward(model, batch)
    assert model.vision.frame_positions.grad is not None


def test_frozen_parts_get_no_adapters_unless_named():
    model, _ = fine_tuning("vqa")
    add_adapters(model, LoraConfig(rank=2), frozen=("vision", "decoder"))
    assert {name.split(".")[0] for name in model.state_dict() if is_adapter(name)} == {"text", "fusion"}


def test_a_part_that_the_model_lacks_is_rejected_by_name():
    model, _ = fine_tuning("nlvr")
    with pytest.raises(UserError, match=naming("decoder", "vision, text, fusion")):
        add_adapters(model, LoraConfig(rank=2, targets=["decoder"]))
    assert not has_adapters(model.state_dict())


def test_a_rank_at_which_no_adapter_is_smaller_than_its_weight_is_rejected():
    model, _ = fine_tuning("nlvr")
    widest = max(min(layer.weight.shape) for layer in model.vision.modules() if isinstance(layer, torch.nn.Linear))
    with pytest.raises(UserError, match=naming("optim.lora.rank", widest, "vision.backbone.blocks.0.attn.qkv")):
        add_adapters(model, LoraConfig(rank=widest, targets=["vision"]))
    add_adapters(model, LoraConfig(rank=widest - 1, targets=["vision"]))
