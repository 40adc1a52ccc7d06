"""The number of bytes that ranks send in a ring, compared with simulated rings. Collectives of real steps are tested in
tests/distributed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tools.steps.communication import Exchange, StepSizes

PART = 5
"""Size in bytes of each of the R parts into which a ring of R ranks divides a tensor."""


class Ring:
    """R ranks, each with a number for each part. In each round, a rank sends one part to the next rank."""

    def __init__(self, ranks: int):
        self.held = [[10**rank * (part + 1) for part in range(ranks)] for rank in range(ranks)]
        self.sums = [sum(column) for column in zip(*self.held, strict=True)]
        self.sent = [0] * ranks

    def pass_on(self, first: int, combine: Callable[[int, int], int]) -> None:
        """R - 1 rounds. In round n, rank r passes on part ``r + first - n``."""
        ranks = len(self.held)
        for number in range(ranks - 1):
            parts = [(rank + first - number) % ranks for rank in range(ranks)]
            values = [self.held[rank][part] for rank, part in enumerate(parts)]
            for rank, (part, value) in enumerate(zip(parts, values, strict=True)):
                receiver = self.held[(rank + 1) % ranks]
                receiver[part] = combine(receiver[part], value)
                self.sent[rank] += PART

    def reduce_scatter(self) -> None:
        self.pass_on(0, lambda own, received: own + received)

    def gather(self) -> None:
        """Rank r has the final part r + 1."""
        self.pass_on(1, lambda own, received: received)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_rank_sends_the_bytes_of_a_simulated_ring(ranks):
    ring, whole = Ring(ranks), PART * ranks
    ring.reduce_scatter()
    assert all(ring.held[rank][(rank + 1) % ranks] == ring.sums[(rank + 1) % ranks] for rank in range(ranks))
    assert {Exchange("any", "reduce-scatter", 1, whole).sent(ranks)} == set(ring.sent)
    ring.sent = [0] * ranks
    ring.gather()
    assert all(held == ring.sums for held in ring.held)
    assert {Exchange("any", "all-gather", 1, whole).sent(ranks)} == set(ring.sent)
    both = Ring(ranks)
    both.reduce_scatter()
    both.gather()
    assert {Exchange("any", "all-reduce", 1, whole).sent(ranks)} == set(both.sent)


def test_a_single_rank_sends_nothing():
    assert StepSizes(gradients=100, losses=2, examples=[4], embed_dim=8).exchanges(1) == []
    assert StepSizes(gradients=100, losses=2, examples=[4], embed_dim=8).sent(1) == 0


def test_a_task_without_a_contrastive_loss_only_sums_gradients():
    exchanges = StepSizes(gradients=100, losses=2, examples=[], embed_dim=8).exchanges(4)
    assert {exchange.kind for exchange in exchanges} == {"all-reduce"}
