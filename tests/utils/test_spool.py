"""Rows that are spooled to disk are read back unchanged."""

from __future__ import annotations

import pytest
import torch

from utils.spool import TensorSpool

ROWS = torch.arange(7 * 2 * 3, dtype=torch.float32).view(7, 2, 3) / 7


@pytest.fixture
def spool():
    with TensorSpool() as spool:
        spool.append(ROWS[:2])
        spool.append(ROWS[2:3])
        spool.append(ROWS[3:])
        yield spool


def test_every_block_equals_the_same_slice_of_the_tensor(spool):
    """Compares with slicing, which also truncates at the end and is empty beyond it."""
    for start in range(10):
        for stop in range(start, 12):
            found = spool.read(start, stop)
            assert found.dtype == torch.float32
            assert torch.equal(found, ROWS[start:stop]), (start, stop)
    assert spool.count == 7


def test_reading_between_appends_does_not_change_the_append_position(spool):
    spool.read(0, 2)
    spool.append(ROWS[:1])
    assert torch.equal(spool.read(6, 8), torch.cat([ROWS[6:], ROWS[:1]]))
    assert torch.equal(spool.read(0, 7), ROWS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_the_dtype_of_the_rows_is_kept(dtype):
    rows = (ROWS * 7).to(dtype)
    with TensorSpool() as spool:
        spool.append(rows)
        assert spool.read(1, 4).dtype == dtype
        assert torch.equal(spool.read(1, 4), rows[1:4])


def test_rows_that_are_not_contiguous_in_memory_keep_their_order():
    with TensorSpool() as spool:
        spool.append(ROWS.transpose(1, 2))
        spool.append(ROWS.transpose(1, 2).flip(0))
        assert torch.equal(spool.read(0, 7), ROWS.transpose(1, 2))
        assert torch.equal(spool.read(7, 14), ROWS.flip(0).transpose(1, 2))


def test_tensors_of_another_shape_or_dtype_are_rejected(spool):
    for wrong in (ROWS[:, :1], ROWS.double(), ROWS.flatten(1)):
        with pytest.raises(AssertionError, match="a different shape or dtype"):
            spool.append(wrong)
    assert spool.count == 7
    assert torch.equal(spool.read(0, 9), ROWS)


def test_a_block_without_rows_changes_nothing(spool):
    spool.append(ROWS[:0])
    assert torch.equal(spool.read(0, 9), ROWS)


def test_a_first_block_may_be_empty():
    with TensorSpool() as spool:
        spool.append(ROWS[:0])
        assert len(spool.read(0, 3)) == 0
        spool.append(ROWS)
        assert torch.equal(spool.read(0, 9), ROWS)


def test_reading_returns_a_copy(spool):
    spool.read(0, 1).zero_()
    assert torch.equal(spool.read(0, 1), ROWS[:1])


def test_rows_with_a_gradient_are_stored_without_it():
    with TensorSpool() as spool:
        spool.append(ROWS.clone().requires_grad_())
        assert not spool.read(0, 7).requires_grad


def test_a_closed_spool_leaves_no_file():
    spool = TensorSpool()
    with spool:
        spool.append(ROWS)
    with pytest.raises(ValueError, match="closed file"):
        spool.read(0, 1)
