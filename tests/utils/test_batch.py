"""Text keys and row stacking."""

import torch

from utils.batch import stack_rows, text_keys


def test_keys_are_equal_exactly_for_equal_texts_whatever_the_padding():
    rows = [[2, 7, 8, 3], [2, 7, 8, 3], [2, 8, 7, 3], [2, 7, 3], [2, 7, 8, 9, 3]]
    ids = stack_rows(rows, 0)
    mask = stack_rows([[1] * len(row) for row in rows], 0).bool()
    keys = text_keys(ids, mask)
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 4
    padded = torch.nn.functional.pad(ids, (0, 3), value=5)
    assert text_keys(padded, torch.nn.functional.pad(mask, (0, 3))).tolist() == keys.tolist()


def test_rows_are_padded_on_the_right():
    assert stack_rows([[1, 2], [3]], 9).tolist() == [[1, 2], [3, 9]]
    assert stack_rows([], 9).shape == (0, 0)
