"""Packed texts have the same content as padded texts, wherever the number of tokens comes from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from batches.texts import Text
from models.core import packing
from models.core.packing import PackedTexts, Packing, packings_of, select_rows

LENGTHS = (3, 5, 1, 4)
MASK = torch.arange(5) < torch.tensor(LENGTHS).unsqueeze(1)
KNOWN, BOUNDED, PADDED = sum(LENGTHS), sum(LENGTHS) + 3, 20
COUNTS = pytest.mark.parametrize(
    "tokens", [None, KNOWN, BOUNDED, PADDED], ids=["counted", "known", "bounded", "padded"]
)


def packing_to(tokens: int | None, lengths: tuple[int, ...] = LENGTHS, length: int = 5) -> Packing:
    return Packing.of(torch.tensor(lengths), length, tokens)


def random_states(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def texts_to(tokens: int | None) -> PackedTexts:
    made = packing_to(tokens)
    return PackedTexts(made.pack(random_states(4, 5, 2)), made)


def tokens_of(texts: PackedTexts) -> list[Tensor]:
    """The tokens of each text."""
    return [row[kept] for row, kept in zip(texts.padded(), texts.packing.mask, strict=True)]


@COUNTS
def test_packing_and_padding_again_restores_the_states(tokens):
    made, states = packing_to(tokens), random_states(4, 5, 2)
    packed = made.pack(states)
    assert len(packed) == made.token_count == (tokens or KNOWN)
    assert torch.equal(made.pad(packed)[MASK], states[MASK])
    assert torch.equal(made.mask, MASK)


@COUNTS
def test_tokens_know_their_text_and_their_position(tokens):
    made = packing_to(tokens)
    numbers = torch.arange(20).view(4, 5)
    real = made.text_index < 4
    assert torch.equal(made.text_index[real] * 5 + made.positions[real], made.pack(numbers)[real])
    assert torch.equal(made.padded_index[made.starts], torch.arange(4) * 5)


@pytest.mark.parametrize("tokens", [KNOWN, BOUNDED])
def test_padding_is_zero(tokens):
    assert not texts_to(tokens).padded()[~MASK].any()


def test_unused_tokens_are_never_read():
    texts = texts_to(BOUNDED)
    spoilt = texts.states.clone()
    spoilt[KNOWN:] = 1e9
    found = PackedTexts(spoilt, texts.packing)
    every = torch.arange(4)
    for read in (PackedTexts.padded, lambda each: each.select(every, KNOWN).states):
        assert torch.equal(read(found), read(texts))
    several = PackedTexts.concat([found, found])
    assert torch.equal(several.padded(), PackedTexts.concat([texts, texts]).padded())


@COUNTS
def test_the_first_token_of_each_text_is_its_cls(tokens):
    assert torch.equal(texts_to(tokens).cls, random_states(4, 5, 2)[:, 0])


INDEX = torch.tensor([3, 1, 1, 0, 2])


@COUNTS
@pytest.mark.parametrize("requested", [None, 18, 21, 25], ids=["counted", "known", "bounded", "padded"])
def test_selected_texts_equal_a_selection_from_padded_texts(tokens, requested):
    texts = texts_to(tokens)
    found = texts.select(INDEX, requested)
    assert torch.equal(found.packing.lengths, texts.packing.lengths[INDEX])
    assert len(found.states) == found.packing.token_count == (requested or 18)
    assert torch.equal(found.padded()[MASK[INDEX]], random_states(4, 5, 2)[INDEX][MASK[INDEX]])


@COUNTS
def test_selected_texts_are_the_same_if_the_host_cannot_count(tokens, monkeypatch):
    texts = texts_to(tokens)
    monkeypatch.setattr(packing, "on_host", lambda tensor: False)
    found = texts.select(INDEX)
    assert found.packing.dense
    assert torch.equal(found.padded()[MASK[INDEX]], random_states(4, 5, 2)[INDEX][MASK[INDEX]])


def test_selected_texts_can_be_padded_to_less():
    found = texts_to(KNOWN).select(torch.tensor([2, 0]), length=3)
    assert found.packing.length == 3
    assert torch.equal(found.padded()[found.packing.mask], random_states(4, 5, 2)[[2, 0], :3][MASK[[2, 0], :3]])


@COUNTS
@pytest.mark.parametrize("other", [7, 9, 12], ids=["known", "bounded", "padded"])
def test_concatenated_parts_keep_their_texts(tokens, other):
    second = packing_to(other, (2, 1, 4), 4)
    parts = [texts_to(tokens), PackedTexts(second.pack(random_states(3, 4, 2)), second), texts_to(tokens)]
    together = PackedTexts.concat(parts)
    assert together.packing.length == 5
    assert len(together.states) == together.packing.token_count == sum(len(part.states) for part in parts)
    expected = [tokens_of_text for part in parts for tokens_of_text in tokens_of(part)]
    assert [each.tolist() for each in tokens_of(together)] == [each.tolist() for each in expected]
    apart = PackedTexts.split(together.states, [part.packing for part in parts])
    assert all(torch.equal(a.states, b.states) for a, b in zip(apart, parts, strict=True))
    index = torch.tensor([5, 0, 6, 9])
    assert [each.tolist() for each in tokens_of(together.select(index))] == [expected[row].tolist() for row in index]


def gradient(states: Tensor, function) -> Tensor:
    leaf = states.clone().requires_grad_()
    result = function(leaf)
    (result * torch.linspace(1, 2, result.numel()).view_as(result)).sum().backward()
    return leaf.grad


@COUNTS
def test_gradients_equal_those_of_plain_indexing(tokens):
    made, padded = packing_to(tokens), random_states(4, 5, 2)
    packed, real = made.pack(padded), made.text_index < 4
    found = gradient(packed, lambda states: made.pad(states)[MASK])
    assert torch.equal(found, gradient(packed, lambda states: states[real][made.pack(MASK)[real]]))
    found = gradient(padded, lambda states: made.pack(states)[real])
    assert torch.equal(found, gradient(padded, lambda states: states.flatten(0, 1)[made.padded_index[real]]))
    found = gradient(packed, lambda states: PackedTexts(states, made).select(INDEX).padded()[MASK[INDEX]])
    rows = [made.starts[text] + torch.arange(LENGTHS[text]) for text in INDEX.tolist()]
    torch.testing.assert_close(found, gradient(packed, lambda states: states[torch.cat(rows)]))


def test_a_batch_is_packed_with_its_own_token_count_if_it_has_one(monkeypatch):
    assert packings_of([Text(MASK.long(), MASK)])[0].token_count == KNOWN
    assert packings_of([Text(MASK.long(), MASK, token_count=BOUNDED)])[0].token_count == BOUNDED
    monkeypatch.setattr(packing, "on_host", lambda tensor: False)
    assert packings_of([Text(MASK.long(), MASK)])[0].dense
    assert packings_of([Text(MASK.long(), MASK, token_count=KNOWN)])[0].token_count == KNOWN


def test_texts_of_equal_length_are_not_moved():
    states = random_states(6, 2)
    made = Packing.equal_lengths(3, 2, states.device)
    assert made.dense
    assert made.pad(states).data_ptr() == states.data_ptr()
    assert torch.equal(made.pack(made.pad(states)), states)


@pytest.mark.parametrize("rows", [torch.tensor([2, 0, 2, 2]), torch.tensor([[1, 1], [0, 2]])])
def test_rows_are_selected_with_the_gradients_of_indexing(rows):
    gradients = []
    for select in (select_rows, lambda table, rows: table[rows]):
        table = random_states(4, 3, 2).requires_grad_()
        selected = select(table, rows)
        assert selected.shape == (*rows.shape, 3, 2)
        (selected * torch.arange(selected.numel()).view_as(selected)).sum().backward()
        gradients.append(table.grad)
    torch.testing.assert_close(*gradients)
