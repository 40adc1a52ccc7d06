"""Muon on two ranks, each of which orthogonalises some of the matrices."""

from __future__ import annotations

from unittest import mock

import torch

from tests.optim.test_muon import network, optimizer_of, steps
from tests.ranks import on_two_ranks


def trained_weights() -> dict[str, torch.Tensor]:
    """Four steps, of which the third must change nothing; then the momentum of each matrix decides another step."""
    model = network()
    optimizer = optimizer_of(model)
    for number in range(4):
        optimizer.found_inf = torch.tensor(float(number == 2))
        steps(model, [optimizer], 1, first=number)
    averages = {
        f"{id_}/momentum": state.get("momentum_buffer") for id_, state in optimizer.state_dict()["state"].items()
    }
    return {**model.state_dict(), **{name: average for name, average in averages.items() if average is not None}}


def on_a_rank() -> tuple[dict[str, torch.Tensor], int]:
    with mock.patch.object(torch.optim.Muon, "step", autospec=True, side_effect=torch.optim.Muon.step) as step:
        return trained_weights(), step.call_count


def test_two_ranks_share_the_matrices_and_get_exactly_the_weights_of_one(tmp_path):
    expected = trained_weights()
    results = on_two_ranks(on_a_rank, tmp_path)
    for weights, _ in results:
        torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    assert [updates for _, updates in results] == [4, 4]  # one of two matrices in each of four steps
