"""Word maps: the attention of one block, weighted by the gradient of the matching score."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from models.reference import Padded, encode, run_block
from tests.messages import naming
from tests.tasks.painted import SIZE
from x2vlm import UserError
from x2vlm.model import Model
from x2vlm.runtime import TorchRuntime


def test_maps_are_attention_times_the_positive_part_of_its_gradient(model, data):
    """Compares with a direct implementation of the fusion in float64, because the gradients of a random model are tiny."""
    trained, image, text = model("pretrain"), data / "images/2.png", "a small blue star"
    network = copy.deepcopy(trained.network).double()
    ours = Model(TorchRuntime(network), trained.tokenizer, trained.settings, origin="in float64")
    with torch.no_grad():
        ids = ours.tokens([text])
        words = encode(network.text, ids.ids, ids.mask)
        memory = Padded(network.vision(ours.pixels(ours.views([image]))).states())
    block, last = network.fusion.blocks
    attention, kept = block.crossattention, []

    def attend(query, key, value, mask):
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        kept.append(scores.softmax(dim=-1).requires_grad_())
        return (kept[0] @ value).transpose(1, 2).flatten(2)

    attention.attend = attend
    states = run_block(block, words, memory)
    del attention.attend
    fused = run_block(last, Padded(states, ids.mask), memory)
    (gradient,) = torch.autograd.grad(network.matching_head(fused[:, 0])[0, 1], kept)
    by_hand = (kept[0] * gradient.clamp(min=0)).mean(dim=1)[0, 1:-1, 1:].detach().numpy()
    maps = ours.explain(image, text)
    assert [each.word for each in maps] == text.split()
    side = SIZE // network.vision.patch_size
    assert by_hand.max() > 0
    for each, expected in zip(maps, by_hand, strict=True):
        np.testing.assert_allclose(each.weights, expected.reshape(side, side), rtol=1e-9, atol=1e-15)
    assert "attend" not in vars(attention)


def test_the_pieces_of_a_word_are_summed(model, data):
    ours = model("pretrain")
    assert len(ours.text.pieces("starred")[0]) > 1
    maps = ours.explain(data / "images/2.png", "a starred, red")
    assert [each.word for each in maps] == ["a", "starred", "red"]


def test_computing_maps_leaves_no_gradients_in_the_model(model, data):
    ours = model("pretrain")
    ours.explain(data / "images/2.png", "a star")
    assert all(parameter.grad is None for parameter in ours.network.parameters())


def test_the_last_block_has_no_maps(model, data):
    with pytest.raises(UserError, match=naming("layer 1", "0 to 0")):
        model("pretrain").explain(data / "images/2.png", "a star", layer=1)
    with pytest.raises(UserError, match="layer -1: "):
        model("pretrain").explain(data / "images/2.png", "a star", layer=-1)
