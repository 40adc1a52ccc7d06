"""Models with frozen encoders: gradients, the FLOPs count, and determinism."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations

import pytest
import torch

from models.flops import step_flops
from models.tasks.vqa import VQAModel
from optim.setup import set_frozen, set_gradient_checkpointing
from tests.models.test_flops import CASES, FINE_TUNING, counted, made, pretraining
from tests.models.test_streams import ALL, built, only

PARTS = ("vision", "text", "fusion")
CHOICES = list(chain.from_iterable(combinations(PARTS, count) for count in (1, 2, 3)))
IDS = [name for _, name in CASES]


def part_of(name: str) -> str:
    return name.partition(".")[0]


def backward(model, batch) -> dict[str, bool]:
    """Whether each parameter has a gradient after a step."""
    model.zero_grad()
    torch.manual_seed(0)
    torch.stack([term.total for term in model(batch).values()]).sum().backward()
    return {name: each.grad is not None for name, each in model.named_parameters()}


@pytest.mark.parametrize(("make", "name"), CASES, ids=IDS)
def test_only_parameters_outside_frozen_encoders_have_gradients(make, name):
    """Otherwise DDP would wait for the gradient forever."""
    model, batch = make(name)
    before = backward(model, batch)
    for parts in CHOICES:
        set_frozen(model, parts)
        has = backward(model, batch)
        assert has == {key: each and part_of(key) not in parts for key, each in before.items()}, parts
        assert has == {key: each.requires_grad for key, each in model.named_parameters()}, parts
    set_frozen(model, ())
    assert backward(model, batch) == before


@pytest.mark.slow
@pytest.mark.parametrize(("make", "name"), CASES[2::3], ids=IDS[2::3])
def test_the_flops_count_equals_the_real_step(make, name):
    """The tolerance is the same as without frozen parts: the uncounted operations, which have no backward pass or a frozen
    one."""
    model, batch = make(name)
    beyond = counted(model, batch) - model.work(batch).flops
    for parts in CHOICES:
        set_frozen(model, parts)
        runs, count = counted(model, batch), model.work(batch).flops
        assert runs - beyond <= count <= runs, parts
    set_frozen(model, ())
    assert counted(model, batch) - model.work(batch).flops == beyond


def test_a_frozen_vision_encoder_counts_only_its_forward_pass():
    model, batch = pretraining("images")
    whole, vision = model.work(batch).flops, model.cost.vision
    set_frozen(model, ["vision"])
    embedding = 2 * vision.patches * model.vision.backbone.patch_embed.proj.weight.numel()  # forward pass
    blocks = (vision.image - 2 * embedding) // 3
    spared = 6 * (embedding + 2 * blocks)  # backward pass; pixels have no gradient
    spared += (
        step_flops(6 * vision.width * (2 * 128 * 2 * (1 + vision.patches) + 256), True) // 2
    )  # the gradients of its states
    assert whole - model.work(batch).flops == spared


def test_unfreezing_keeps_parameters_frozen_that_no_loss_trains():
    model, batch = built(ALL, **only("contrastive"))
    assert not any(each.requires_grad for each in model.fusion.parameters())
    set_frozen(model, PARTS)
    set_frozen(model, ())
    assert not any(each.requires_grad for each in model.fusion.parameters())
    assert all(each.requires_grad for each in model.text.parameters())
    assert backward(model, batch) == {name: each.requires_grad for name, each in model.named_parameters()}


def test_a_step_without_matching_losses_has_every_gradient():
    model, batch = built(ALL, **only("matching"))
    set_frozen(model, ["vision", "text"])
    has = backward(model, replace(batch, unmatched=("images", "regions", "videos", "translations")))
    assert has == {name: each.requires_grad for name, each in model.named_parameters()}
    assert any(has.values())


@pytest.mark.parametrize("parts", CHOICES)
def test_frozen_encoders_have_no_dropout_whatever_mode_the_model_is_set_to(parts):
    overrides = ["data.batch_size=2", "model.vision.drop_path=0.5", "model.text.dropout=0.5", "model.decoder.layers=2"]
    model, _ = made(FINE_TUNING["vqa"], overrides)
    assert isinstance(model, VQAModel)
    set_frozen(model.train(), parts)
    for mode in (True, False, True):
        model.train(mode)
        training = {part: [each.training for each in model.get_submodule(part).modules()] for part in PARTS}
        assert {part: any(each) for part, each in training.items()} == {p: mode and p not in parts for p in PARTS}
        assert all(all(each) == any(each) for each in training.values())
        assert model.decoder.training == model.training == mode
    set_frozen(model, ())
    assert all(each.training for each in model.modules())


def test_a_frozen_encoder_has_the_states_of_evaluation_mode():
    overrides = ["data.batch_size=2", "model.vision.drop_path=0.5", "model.decoder.layers=2"]
    model, batch = made(FINE_TUNING["vqa"], overrides)
    model.eval()
    expected = model.vision(batch.pixels).patches
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model.vision(batch.pixels).patches, expected), "drop path must be disabled"
    set_frozen(model, ["vision"])
    frozen = model.vision(batch.pixels).patches
    torch.testing.assert_close(frozen, expected.detach())  # a step without gradients uses different kernels
    assert not frozen.requires_grad
    torch.manual_seed(1)
    assert torch.equal(model.vision(batch.pixels).patches, frozen)


def test_gradient_checkpointing_may_include_a_frozen_encoder():
    """Checkpointing starts when the encoder is unfrozen, because a frozen encoder keeps no activations."""
    model, batch = pretraining("both")
    set_frozen(model, ["vision", "text"])
    set_gradient_checkpointing(model, PARTS)
    before = backward(model, batch)
    assert before == {name: each.requires_grad for name, each in model.named_parameters()}
    set_frozen(model, ())
    assert all(backward(model, batch).values())
