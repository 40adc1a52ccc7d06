"""The block shared by text and fusion encoders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.config import BlockConfig, FusionConfig
from models.core.blocks import Attention, QueryPositions, ResidualOutput, attention_bias
from models.core.fusion import FusionEncoder
from models.core.packing import PackedTexts, Packing
from models.core.vision import Concepts
from tests.models.golden import fused_together

LENGTHS = (3, 1, 5, 2, 4, 5, 2, 3)
MASK = torch.arange(5) < torch.tensor(LENGTHS).unsqueeze(1)
SIZES = BlockConfig(width=8, heads=2, intermediate=16)
WITHOUT_DROPOUT = SIZES.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
FAR = 1000.0


def texts(lengths: tuple[int, ...]) -> PackedTexts:
    packing = Packing.of(torch.tensor(lengths), 5)
    return PackedTexts(torch.randn(packing.token_count, 8), packing)


def outputs_of_last_block(encoder: FusionEncoder) -> list[ResidualOutput]:
    block = encoder.layer[-1]
    return [block.attention.output, block.crossattention.output, block.output]


def assert_dropped_whole(kept: Tensor, lengths: list[int]) -> None:
    added = [part.round(decimals=-3) for part in kept.split(lengths)]
    assert all((part == part[0]).all() for part in added), "the whole text must be dropped"
    assert {float(part[0]) for part in added} == {0.0, 2 * FAR}, "some texts must be dropped and the others doubled"


@pytest.mark.parametrize("seeing", [True, False])
def test_drop_path_drops_whole_texts_independently(seeing):
    torch.manual_seed(1)
    encoder = FusionEncoder(FusionConfig(layers=2, drop_path=0.5), WITHOUT_DROPOUT, 8).train()
    kept = []
    for output in outputs_of_last_block(encoder):
        torch.nn.init.zeros_(output.dense.weight)
        torch.nn.init.constant_(output.dense.bias, FAR)
        output.LayerNorm.register_forward_pre_hook(lambda _, given: kept.append(given[0][:, 0].detach()))
    memory = encoder.project_concepts(Concepts.whole(torch.randn(len(LENGTHS), 4, 8))) if seeing else None
    two = None if memory is None else memory.split([2, len(LENGTHS) - 2])[0]
    fused_together(encoder, [(texts(LENGTHS[:2]), two), (texts(LENGTHS), memory)])
    assert len(kept) == (3 if seeing else 2), "self-attention, cross-attention if there are keys, feed-forward"
    for rows in kept:
        assert_dropped_whole(rows, [*LENGTHS[:2], *LENGTHS])


def test_the_drop_path_rate_rises_over_the_blocks_and_replaces_dropout():
    with_path = SIZES.model_copy(update={"drop_path": 0.3})
    blocks = [with_path.at_depth(index, 4) for index in range(4)]
    assert [block.drop_path for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert {block.dropout for block in blocks} == {0}
    assert {block.attention_dropout for block in blocks} == {SIZES.attention_dropout}
    assert with_path.at_depth(0, 1).drop_path == 0
    assert SIZES.at_depth(1, 4) == SIZES


def test_attention_and_residuals_have_their_own_dropout():
    attention = Attention(SIZES.model_copy(update={"dropout": 0.2, "attention_dropout": 0.5})).train()
    assert attention.output.dropout.p == 0.2
    ones = torch.ones(1, 2, 1000, 4)
    torch.manual_seed(0)
    attended = attention.attend(ones, torch.zeros(1, 2, 1, 4), torch.ones(1, 2, 1, 4), None)
    assert attended.unique().tolist() == [0, 2], "each weight must be dropped or doubled"
    assert attended.mean().item() == pytest.approx(1, abs=0.1)
    assert (attention.eval().attend(ones, ones, ones, None) == 1).all()


@pytest.mark.parametrize(
    "mask", [None, MASK[:, None, None], attention_bias(MASK, torch.bfloat16)], ids=["none", "bool", "bias"]
)
def test_attention_in_bf16_has_the_results_and_gradients_of_full_precision(mask):
    attention = Attention(WITHOUT_DROPOUT)
    draws = torch.Generator().manual_seed(0)
    states = [torch.randn(len(LENGTHS), 2, 5, 4, generator=draws) for _ in range(3)]
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        parts = [part.to(torch.bfloat16).to(dtype, copy=True).requires_grad_() for part in states]
        bias = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
        attended = attention.attend(*parts, bias)
        assert attended.dtype == dtype
        attended.pow(2).sum().backward()
        found.append([attended, *(part.grad for part in parts)])
        with torch.no_grad():
            torch.testing.assert_close(attention.attend(*parts, bias), attended.detach(), rtol=0.02, atol=0.02)
    for ours, expected in zip(*found, strict=True):
        assert (ours.double() - expected).norm() < 0.02 * expected.norm()


def test_an_attention_bias_hides_masked_keys_and_has_rows_aligned_to_8_numbers():
    added = attention_bias(MASK, torch.bfloat16)
    assert added.shape == (len(LENGTHS), 1, 1, 5)
    assert added.dtype == torch.bfloat16
    assert torch.equal(added == 0, MASK[:, None, None])
    assert torch.equal(added == -torch.inf, ~MASK[:, None, None])
    assert added.stride()[:3] == (8, 8, 8)
    per_query = MASK[:, None, :] & torch.ones(5, 5, dtype=torch.bool).tril()
    assert torch.equal(attention_bias(per_query, torch.float32) == 0, per_query[:, None])


@pytest.mark.parametrize(("half", "rtol", "atol"), [(False, 1e-5, 1e-6), (True, 0.02, 0.005)])
def test_projecting_patches_once_equals_projecting_copies_for_each_region(half, rtol, atol):
    torch.manual_seed(0)
    encoder = FusionEncoder(FusionConfig(layers=2), SIZES, 12)
    index = torch.tensor([0, 2, 2, 1])
    masks = torch.arange(4) < torch.tensor([[1], [4], [2], [3]])
    found = []
    for shared in (True, False):
        draws = torch.Generator().manual_seed(1)
        patches, mean = (torch.randn(*shape, generator=draws).requires_grad_() for shape in ((3, 4, 12), (4, 12)))
        regions = Concepts(patches, mean, masks, index)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            memory = (
                encoder.project_regions(regions, Concepts.whole(patches))[0]
                if shared
                else encoder.project(regions.states())
            )
        parts = torch.stack([part for layer in memory.layers for part in layer])
        if shared:
            parts = torch.cat([parts[:, :, :1], parts[:, :, 2:]], dim=2)  # the second key belongs to the whole image
        assert parts.dtype == (torch.bfloat16 if half else torch.float32)
        parts.float().pow(2).sum().backward()
        found.append([patches.grad, mean.grad, parts.float()])
        if shared:
            seen = torch.cat([torch.tensor([[True, False]]).expand(4, 2), masks], dim=1)
            assert torch.equal(memory.bias == 0, seen[:, None, None])
            assert memory.bias.dtype == parts.dtype
    torch.testing.assert_close(found[0], found[1], rtol=rtol, atol=atol)


def test_query_positions_of_several_texts_are_packed_in_their_order():
    packing = Packing.of(torch.tensor(LENGTHS), 5)
    requested = QueryPositions(torch.tensor([[2, 0], [0, 0]]), Packing.of(torch.tensor([2, 1]), 2))
    others = QueryPositions.cls(6, packing.padded_index.device)
    both = QueryPositions.concat([requested, others])
    starts = packing.starts.tolist()
    assert both.tokens_of(packing).tolist() == [2, 0, 3, *starts[2:]]


@torch.no_grad()
def test_requested_states_equal_the_states_of_all_tokens():
    torch.manual_seed(0)
    encoder = FusionEncoder(FusionConfig(layers=2), SIZES, 8).eval()
    given = texts(LENGTHS)
    positions = torch.stack([torch.tensor(LENGTHS) - 1, torch.zeros(len(LENGTHS), dtype=torch.int64)], dim=1)
    requested = QueryPositions(positions, Packing.equal_lengths(len(LENGTHS), 2, positions.device))
    bias = attention_bias(given.packing.mask, given.states.dtype)
    every = encoder(given.states, given.packing, bias)
    found = encoder(given.states, given.packing, bias, queries=requested)
    expected = given.packing.pad(every).take_along_dim(positions.unsqueeze(2), dim=1)
    torch.testing.assert_close(found.view(expected.shape), expected)


def test_gradient_checkpointing_of_blocks_gives_the_same_gradients():
    torch.manual_seed(0)
    encoder = FusionEncoder(FusionConfig(layers=2, drop_path=0.5), SIZES, 8).train()
    given, concepts = texts(LENGTHS), Concepts.whole(torch.randn(len(LENGTHS), 4, 8))
    found = []
    for recompute in (False, True):
        encoder.recompute = recompute
        encoder.zero_grad()
        torch.manual_seed(1)
        states = encoder.tokens(given, encoder.project_concepts(concepts)).states
        states.pow(3).sum().backward()
        found.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
    torch.testing.assert_close(found[0], found[1])
