"""The assignment of targets to queries, compared with scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from models.core.assignment import FREE, assign


def assert_cheapest(costs: torch.Tensor, present: torch.Tensor) -> None:
    found = assign(costs, present)
    for cost, there, queries in zip(costs.numpy(), present.numpy(), found.numpy(), strict=True):
        assert (queries[~there] == FREE).all()
        chosen = queries[there]
        assert len(set(chosen.tolist())) == len(chosen) and (chosen >= 0).all()
        rows, columns = linear_sum_assignment(cost[there])
        best = cost[there][rows, columns].sum()
        assert cost[there][np.arange(len(chosen)), chosen].sum() == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(("targets", "queries"), [(1, 1), (1, 7), (3, 3), (5, 8), (12, 12), (9, 30)])
def test_the_assignment_is_as_cheap_as_scipys(targets, queries):
    generator = torch.Generator().manual_seed(targets)
    costs = torch.randn(300, targets, queries, generator=generator, dtype=torch.float64)
    assert_cheapest(costs, torch.rand(300, targets, generator=generator) < 0.7)
    assert_cheapest(costs, torch.ones(300, targets, dtype=torch.bool))


def test_the_assignment_is_as_cheap_if_costs_are_equal():
    generator = torch.Generator().manual_seed(0)
    costs = torch.randint(0, 3, (300, 6, 7), generator=generator).double()
    assert_cheapest(costs, torch.rand(300, 6, generator=generator) < 0.8)
    assert_cheapest(torch.zeros(2, 4, 4).double(), torch.ones(2, 4, dtype=torch.bool))


def test_an_example_does_not_affect_the_assignment_of_another():
    generator = torch.Generator().manual_seed(1)
    costs, present = torch.randn(20, 4, 6, generator=generator), torch.ones(20, 4, dtype=torch.bool)
    alone = torch.cat([assign(costs[n : n + 1], present[n : n + 1]) for n in range(20)])
    assert torch.equal(assign(costs, present), alone)


def test_more_targets_than_queries_are_an_error():
    with pytest.raises(ValueError, match="3 targets"):
        assign(torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool))


def test_with_non_finite_costs_the_search_still_returns_valid_queries():
    """The loss is not finite then, so the step is skipped."""
    costs = torch.full((2, 3, 4), torch.nan)
    found = assign(costs, torch.ones(2, 3, dtype=torch.bool))
    assert ((found >= FREE) & (found < 4)).all()
