"""Features shared by the models of all tasks: gradient checkpointing, compiling, and modules wrapped by other libraries."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from models.core.blocks import Block, BlockStack
from models.tasks.vqa import VQAModel
from optim.setup import compile_encoders, set_gradient_checkpointing
from tests.models.test_flops import FINE_TUNING, made


@pytest.fixture
def vqa():
    model, batch = made(FINE_TUNING["vqa"], ["data.batch_size=2", "model.decoder.layers=2"])
    assert isinstance(model, VQAModel)
    return model.eval(), batch


def calls(model: nn.Module, kind: type[nn.Module]) -> dict[str, int]:
    """Returns a dictionary that counts how often each module of a type is called after this call, by name of the module."""
    counted: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, kind):
            counted[name] = 0

            def count(_: nn.Module, __: object, name: str = name) -> None:
                counted[name] += 1

            module.register_forward_pre_hook(count)
    return counted


def backward(model: VQAModel, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(batch)["answers"].total.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def test_checkpointing_the_fusion_includes_the_answer_decoder_with_the_same_gradients(vqa):
    model, batch = vqa
    expected = backward(model, batch)
    counted = calls(model, Block)
    set_gradient_checkpointing(model, ["fusion"])
    found = backward(model, batch)
    assert {name.split(".")[0]: count for name, count in counted.items()} == {"text": 1, "fusion": 2, "decoder": 2}
    torch.testing.assert_close(found, expected)
    set_gradient_checkpointing(model, ["text"])
    backward(model, batch)
    assert {name.split(".")[0]: count for name, count in counted.items()} == {"text": 3, "fusion": 3, "decoder": 3}


@pytest.mark.slow
def test_an_answer_decoder_is_compiled_with_the_other_encoders(vqa):
    model, batch = vqa
    expected = model(batch)["answers"].total
    torch._dynamo.reset()
    try:
        counter = CompileCounter()
        compile_encoders(model, fullgraph=True, backend=counter)
        torch.testing.assert_close(model(batch)["answers"].total, expected)
        assert counter.frame_count == 4, "vision, text, fusion and decoder"
    finally:
        torch._dynamo.reset()
    assert [name for name, each in model.named_modules() if isinstance(each, BlockStack)] == [
        "text.encoder",
        "fusion",
        "decoder",
    ]


CROSS = ("crossattention.self.key", "crossattention.self.value")


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_keys_and_values_are_projected_by_the_forward_of_their_modules(vqa, precision):
    """FSDP gathers a module's parameters when it is called and would otherwise miss them. This includes autocast."""
    model, batch = vqa
    counted = calls(model, nn.Linear)
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        model(batch)
    of_cross = {name: count for name, count in counted.items() if name.endswith(CROSS)}
    assert len(of_cross) == 8
    assert set(of_cross.values()) == {1}, "each module must be called once for all texts"
