"""Keys and values that texts attend to: rows shared by texts and passes, and tokens that have been generated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.config import BlockConfig, FusionConfig
from models.core.fusion import FusionEncoder
from models.core.keys_values import KeysValues, KVCache, SharedRows
from models.core.packing import PackedTexts, Packing
from tests.models.golden import fused_together

ROWS, KEYS, WIDTH = 3, 4, 8


@pytest.fixture(scope="module")
def fusion() -> FusionEncoder:
    torch.manual_seed(0)
    config = BlockConfig(width=WIDTH, heads=2, intermediate=16, init_std=0.3)
    return FusionEncoder(FusionConfig(layers=2), config, WIDTH).eval()


@pytest.fixture(scope="module")
def keys_values(fusion) -> KeysValues:
    states = torch.randn(ROWS, KEYS, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return fusion.project(states, torch.arange(KEYS) < torch.tensor([[4], [2], [3]]))


def read(keys_values: KeysValues) -> list[Tensor]:
    """Keys, values and bias of all layers."""
    keys_and_values = [part for index in range(len(keys_values.layers)) for part in keys_values.layer(index)]
    (rows,) = SharedRows.of([keys_values], len(keys_values), 1)
    return keys_and_values if rows.bias is None else [*keys_and_values, rows.bias]


def texts(count: int, seed: int) -> PackedTexts:
    packing = Packing.of(1 + torch.arange(count) % 3, 3)
    return PackedTexts(torch.randn(packing.token_count, WIDTH, generator=torch.Generator().manual_seed(seed)), packing)


def test_select_returns_the_selected_rows(keys_values):
    rows = torch.tensor([2, 0, 2, 1])
    found = keys_values.select(rows)
    assert (len(keys_values), len(found)) == (3, 4)
    for ours, all_rows in zip(read(found), read(keys_values), strict=True):
        assert torch.equal(ours, all_rows[rows])


def test_rows_can_be_selected_from_selected_rows(keys_values):
    rows = torch.tensor([2, 0, 2, 1])
    again = keys_values.select(rows).select(torch.tensor([3, 0]))
    for ours, expected in zip(read(again), read(keys_values.select(torch.tensor([1, 2]))), strict=True):
        assert torch.equal(ours, expected)


def test_split_returns_parts_without_copying(keys_values):
    found = keys_values.split([1, 2])[1]
    assert len(found) == 2
    for ours, all_rows in zip(read(found), read(keys_values), strict=True):
        assert torch.equal(ours, all_rows[1:3])
        assert ours.untyped_storage().data_ptr() == all_rows.untyped_storage().data_ptr()
    assert [len(part) for part in read(found.select(torch.tensor([1])))] == [1] * 5
    with pytest.raises(AssertionError, match="before selecting"):
        keys_values.select(torch.tensor([0])).split([1])


def test_keys_and_values_without_a_bias_hide_nothing(fusion):
    with torch.no_grad():
        states = torch.randn(ROWS, KEYS, WIDTH)
        bare, masked = fusion.project(states), fusion.project(states, torch.ones(ROWS, KEYS, dtype=torch.bool))
        assert bare.bias is bare.split([1, ROWS - 1])[0].bias is None
        given = texts(ROWS, 2)
        for selected in (torch.tensor([1, 0, 2]), torch.arange(ROWS)):
            passes = [(given, each.select(selected)) for each in (bare, masked)]
            torch.testing.assert_close(*fused_together(fusion, passes))


def one_by_one(fusion: FusionEncoder, given: PackedTexts, keys_values: KeysValues) -> list[Tensor]:
    """The states of each text of a pass, fused separately with its own row."""
    share = given.packing.count // len(keys_values)
    rows = [(given.select(torch.tensor([text])), torch.tensor([text // share])) for text in range(given.packing.count)]
    return [fusion.tokens(text, keys_values.select(row)).states for text, row in rows]


@torch.no_grad()
@pytest.mark.parametrize("share", [1, 2])
def test_in_each_pass_text_m_attends_to_row_m_over_s(fusion, keys_values, share):
    """Some passes attend to the same rows, others to a part of the rows or to selected rows."""
    other_bias = KeysValues(keys_values.layers, keys_values.bias.flip(0))
    passes = [
        (texts(share * 3, 2), keys_values),
        (texts(share * 3, 3), keys_values),
        (texts(share * 3, 4), other_bias),
        (texts(share * 2, 5), keys_values.split([2, ROWS - 2])[0]),
        (texts(share * 3, 6), keys_values.select(torch.tensor([2, 2, 0]))),
        (texts(share * 3, 7), keys_values),
    ]
    for each, states in zip(passes, fused_together(fusion, passes), strict=True):
        torch.testing.assert_close(states, torch.cat(one_by_one(fusion, *each)), atol=1e-5, rtol=1e-5)


def test_passes_with_different_numbers_of_texts_per_row_cannot_be_mixed(fusion, keys_values):
    with pytest.raises(AssertionError, match="texts per row"):
        fused_together(fusion, [(texts(3, 0), keys_values), (texts(6, 0), keys_values)])


def test_neighbouring_passes_over_the_same_rows_share_one_call_of_attention(keys_values):
    other = keys_values.select(torch.tensor([1, 0, 2]))
    other_bias = KeysValues(keys_values.layers, keys_values.bias.flip(0))
    without_bias = KeysValues(keys_values.layers)
    found = SharedRows.of(
        [keys_values, other_bias, other, other, keys_values, without_bias], text_count=6 * ROWS, length=2
    )
    assert [each.pass_count for each in found] == [2, 2, 1, 1]
    assert [each.keys_values.selected for each in found] == [None, other.selected, None, None]
    both, selected, alone, nothing = (each.bias for each in found)
    assert torch.equal(both, torch.cat([keys_values.bias] * 2 + [other_bias.bias] * 2, dim=2)), (
        "two queries in each pass"
    )
    assert torch.equal(selected, keys_values.bias[other.selected]) and alone is keys_values.bias and nothing is None


def test_passes_with_and_without_keys_and_values_cannot_be_mixed(fusion, keys_values):
    with pytest.raises(AssertionError, match="others do not"):
        fused_together(fusion, [(texts(3, 0), keys_values), (texts(3, 0), None)])


def test_a_text_without_keys_and_values_skips_cross_attention(fusion):
    with torch.no_grad():
        given = texts(3, 0)
        states = fusion.tokens(given, None).states
        alone = fused_together(fusion, [(given.select(torch.tensor([text])), None) for text in range(3)])
        torch.testing.assert_close(states, torch.cat(alone), atol=1e-5, rtol=1e-5)


def new_tokens(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 1, count, 4), torch.randn(2, 1, count, 4)


def test_a_cache_appends_new_tokens_for_each_attention_separately():
    cache, layers = KVCache(), [nn.Identity(), nn.Identity()]
    given = [[new_tokens(count) for count in (3, 1)] for _ in layers]
    for layer, (first, second) in zip(layers, given, strict=True):
        assert all(map(torch.equal, cache.update(layer, *first), first))
        expected = [torch.cat(parts, dim=2) for parts in zip(first, second, strict=True)]
        assert all(map(torch.equal, cache.update(layer, *second), expected))


def test_a_cropped_cache_drops_the_last_tokens_and_a_reordered_cache_follows_its_hypotheses():
    cache, layer = KVCache(), nn.Identity()
    first, second = new_tokens(4), new_tokens(1)
    cache.update(layer, *first)
    cache.crop(3)
    cache.reorder(torch.tensor([1, 1]))
    expected = [torch.cat([old[[1, 1], :, :3], new], dim=2) for old, new in zip(first, second, strict=True)]
    assert all(map(torch.equal, cache.update(layer, *second), expected))
