"""Ids that identify equal texts, and stacking rows of different lengths."""

import torch

from utils.sequences import stack_rows, text_ids


def test_text_ids_are_equal_only_for_equal_texts_with_any_padding():
    rows = [[2, 7, 8, 3], [2, 7, 8, 3], [2, 8, 7, 3], [2, 7, 3], [2, 7, 8, 9, 3]]
    ids = stack_rows(rows, 0)
    mask = stack_rows([[1] * len(row) for row in rows], 0).bool()
    keys = text_ids(ids, mask)
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 4
    padded = torch.nn.functional.pad(ids, (0, 3), value=5)
    assert text_ids(padded, torch.nn.functional.pad(mask, (0, 3))).tolist() == keys.tolist()


def test_rows_are_padded_on_the_right():
    assert stack_rows([[1, 2], [3]], 9).tolist() == [[1, 2], [3, 9]]
    assert stack_rows([], 9).shape == (0, 0)


def test_a_text_id_is_a_polynomial_modulo_2_to_the_64():
    ids = torch.randint(0, 30522, (5, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(40) < torch.tensor([[40], [13], [2], [1], [0]])
    for row, kept, key in zip(ids.tolist(), mask.sum(dim=1).tolist(), text_ids(ids, mask).tolist(), strict=True):
        expected = 0
        for token in row[:kept]:
            expected = (expected * 6364136223846793005 + token + 1442695040888963407) % 2**64
        assert key % 2**64 == expected
