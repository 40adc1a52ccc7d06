"""Minimum-cost assignment of targets (the boxes of an image) to queries (the predicted boxes), computed on the device."""

from __future__ import annotations

import torch
from torch import Tensor

FREE = -1


@torch.no_grad()
def assign(costs: Tensor, present: Tensor) -> Tensor:
    """Assigns the targets of each example to distinct queries at the minimum total cost.

    All examples are solved in parallel by the method of shortest augmenting paths (Jonker and Volgenant, 1987, "A shortest
    augmenting path algorithm for dense and sparse linear assignment problems"). Targets are added one by one. Each target takes
    the query at the end of a shortest augmenting path, along which previously assigned targets may switch to other queries. The
    number of steps depends on the shapes alone, so the host never waits for the device.

    Args:
        costs: (N, M, Z), the costs of assigning M targets to Z queries, with M <= Z.
        present: (N, M) bool, False for targets to ignore.

    Returns:
        (N, M) int64, the index of each target's query; :data:`FREE` for ignored targets.

    Raises:
        ValueError: if there are more targets than queries.
    """
    count, targets, queries = costs.shape
    if targets > queries:
        raise ValueError(f"{targets} targets cannot each have a query, since there are only {queries} queries")
    every = torch.arange(count, device=costs.device)
    target_duals, query_duals = costs.new_zeros(count, targets), costs.new_zeros(count, queries)  # dual variables
    query_of = torch.full((count, targets), FREE, device=costs.device)
    target_of = torch.full((count, queries), FREE, device=costs.device)
    for new in range(targets):
        searching = present[:, new]
        distance = torch.full_like(query_duals, torch.inf)
        visited = torch.zeros_like(distance, dtype=torch.bool)
        previous = torch.full_like(target_of, new)  # the previous target on the shortest path to each query
        shortest = costs.new_zeros(count)
        target, end = torch.full_like(every, new), torch.zeros_like(every)
        for _ in range(new + 1):  # at most `new` queries are taken
            reduced = costs[every, target] - target_duals[every, target].unsqueeze(1) - query_duals
            through = shortest.unsqueeze(1) + reduced
            shorter = searching.unsqueeze(1) & ~visited & (through < distance)
            distance = torch.where(shorter, through, distance)
            previous = torch.where(shorter, target.unsqueeze(1), previous)
            minimum, nearest = distance.masked_fill(visited, torch.inf).min(dim=1)
            shortest, end = torch.where(searching, minimum, shortest), torch.where(searching, nearest, end)
            visited[every, end] |= searching
            taken_by = target_of[every, end]
            searching = searching & (taken_by != FREE)
            target = torch.where(searching, taken_by, target)
        change = torch.where(visited, shortest.unsqueeze(1) - distance, 0)
        query_duals -= change
        target_duals.scatter_add_(1, target_of.clamp(min=0), change.masked_fill(target_of == FREE, 0))
        target_duals[:, new] += shortest
        walking = present[:, new]
        for _ in range(new + 1):
            target = previous[every, end]
            target_of[every, end] = torch.where(walking, target, target_of[every, end])
            following = query_of[every, target]
            query_of[every, target] = torch.where(walking, end, following)
            walking = walking & (target != new)
            end = torch.where(walking, following, end)
    return query_of
