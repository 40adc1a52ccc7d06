"""Ranking of candidate answers by their likelihood under the decoder (appendix A.1).

As released, the k candidates with the likeliest first tokens are scored in full. Candidates share beginnings: the distinct
beginnings of a question's k candidates form a tree, each node of which is one token, decoded once. All nodes go through the
decoder together, each seeing its ancestors alone; a question's keys and values are projected once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.memory import CrossMemory
from models.packing import PackedTexts
from models.vqa import AnswerDecoder

Ranking = Literal["likelihood", "released"]
"""A candidate's score. "likelihood": the sum of its tokens' log-probabilities, by the chain rule. "released": the first
token's counts twice."""

Ints = NDArray[np.int64]

ROOT = 0
"""The node of [CLS], with which every answer begins."""

NONE = -1
"""Fills the rows of shorter candidates."""


class AnswerTree:
    """Candidate answers as a tree of their beginnings.

    ``tokens`` (nodes,) each node's token; ``depths`` (nodes,) its position in the answers that go through it; ``path`` (C, D)
    the nodes of a candidate below the root, in order, then :data:`NONE`; ``following`` (C, 1 + D) the tokens that come after
    the root and after each node of the path, the separator last; ``ancestors`` (nodes, D) the path down to a node, itself
    included.

    Args:
        candidates: token ids of each, with the classification token (the same in all) and the separator.

    Raises:
        ValueError: there is no candidate, or one without a token of its own.
    """

    def __init__(self, candidates: Sequence[Sequence[int]]):
        if not candidates or min(map(len, candidates)) < 3:
            raise ValueError("candidate answers need at least one token between [CLS] and [SEP]")
        places: dict[tuple[int, ...], int] = {}
        paths = []
        for ids in candidates:
            path = []
            for end in range(2, len(ids)):
                path.append(places.setdefault(tuple(ids[1:end]), len(places) + 1))
            paths.append(path)
        deepest = max(map(len, paths))
        self.path = _rows(paths, deepest)
        self.following = _rows([ids[1:] for ids in candidates], deepest + 1)
        self.tokens = np.array([candidates[0][0], *(prefix[-1] for prefix in places)], dtype=np.int64)
        self.depths = np.array([0, *(len(prefix) for prefix in places)], dtype=np.int64)
        beginnings = [[places[prefix[:end]] for end in range(1, len(prefix) + 1)] for prefix in places]
        self.ancestors = _rows([[], *beginnings], deepest)

    def __len__(self) -> int:
        """The number of candidates."""
        return len(self.path)


@dataclass(frozen=True)
class RankedAnswers:
    """The k candidates of each question, likeliest first: ``ids`` (N, k) int64 places in the list; ``probabilities`` (N, k)
    among these k, at least float32, by a softmax over their scores."""

    ids: Tensor
    probabilities: Tensor


def rank_answers(
    decoder: AnswerDecoder,
    questions: PackedTexts,
    tree: AnswerTree,
    k: int,
    ranking: Ranking,
    nodes_per_call: int | None = None,
) -> RankedAnswers:
    """Rank the candidates of each question.

    Args:
        decoder: in evaluation mode.
        questions: N fused questions.
        tree: of the candidates.
        k: how many are scored in full.
        ranking: how scores are made, and equal ones ordered (:func:`best_first`).
        nodes_per_call: questions with more nodes go through in several calls; None: what suits a CPU or a GPU.
    """
    if nodes_per_call is None:
        nodes_per_call = 640 if questions.states.device.type == "cpu" else 8192
    memory = decoder.questions_memory(questions)
    first = _first_tokens(decoder, memory, tree)
    opening = first.index_select(1, torch.from_numpy(tree.following[:, 0]).to(first.device))
    order = best_first(opening, min(k, len(tree)), ranking)
    chosen, device = order.cpu().numpy(), first.device
    scores = opening.gather(1, order) * (2 if ranking == "released" else 1)
    calls = list(_calls([np.unique(tree.path[row]) for row in chosen], nodes_per_call))
    memories = memory.split([len(rows) for rows, _ in calls])
    for (rows, nodes), of_call in zip(calls, memories, strict=True):
        subtrees = _Subtrees(tree, nodes, chosen[rows.start : rows.stop])
        scores[rows.start : rows.stop] += subtrees.score(decoder, of_call, device)
    ranks = best_first(scores, scores.shape[1], ranking)
    return RankedAnswers(order.gather(1, ranks), scores.gather(1, ranks).softmax(dim=1))


def best_first(scores: Tensor, k: int, ranking: Ranking) -> Tensor:
    """Places (N, k) of the best scores of each row. Equal scores are frequent, since candidates begin
    alike: the earlier candidate comes first; "released" leaves that to ``topk``, which differs between kinds of device."""
    if ranking == "released":
        return scores.topk(k, dim=1).indices
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


def _first_tokens(decoder: AnswerDecoder, memory: CrossMemory, tree: AnswerTree) -> Tensor:
    """Log-probabilities (N, V) of what follows [CLS]."""
    start = torch.full((len(memory), 1), int(tree.tokens[ROOT]), device=memory.device)
    states = decoder.decode(start, torch.ones(1, 1, 1, dtype=torch.bool, device=memory.device), memory)
    return decoder.logits(states[:, 0]).log_softmax(dim=1)


def _calls(nodes: Sequence[Ints], most: int) -> Iterator[tuple[range, list[Ints]]]:
    """Neighbouring questions, with their nodes, so that all nodes of a call, padded to the most of any question, are at most
    ``most``."""
    start = widest = 0
    for place, own in enumerate(nodes):
        widest = max(widest, len(own))
        if place > start and widest * (place + 1 - start) > most:
            yield range(start, place), [each[each != NONE] for each in nodes[start:place]]
            start, widest = place, len(own)
    yield range(start, len(nodes)), [each[each != NONE] for each in nodes[start:]]


class _Subtrees:
    """The ``nodes`` of n questions that their chosen candidates (n, k) go through: one sequence per question, the root first."""

    def __init__(self, tree: AnswerTree, nodes: Sequence[Ints], chosen: Ints):
        width = 1 + max(map(len, nodes))
        self.ids = np.full((len(nodes), width), tree.tokens[ROOT])
        self.depths = np.zeros((len(nodes), width), dtype=np.int64)
        self.mask = np.zeros((len(nodes), width, width), dtype=bool)
        self.mask[:, :, 0] = True  # padding, too: attention to nothing is not a number
        self.at = np.zeros((*chosen.shape, tree.path.shape[1]), dtype=np.int64)
        for question, own in enumerate(nodes):
            count = 1 + len(own)
            self.ids[question, 1:count] = tree.tokens[own]
            self.depths[question, 1:count] = tree.depths[own]
            self._attend_to_ancestors(question, own, tree.ancestors[own])
            self.at[question] = 1 + np.searchsorted(own, tree.path[chosen[question]])
        self.used = tree.path[chosen] != NONE
        self.following = tree.following[chosen][..., 1:]

    def _attend_to_ancestors(self, question: int, nodes: Ints, ancestors: Ints) -> None:
        node, level = np.nonzero(ancestors != NONE)
        self.mask[question, 1 + node, 1 + np.searchsorted(nodes, ancestors[node, level])] = True

    def score(self, decoder: AnswerDecoder, memory: CrossMemory, device: torch.device) -> Tensor:
        """For each candidate (n, k) the sum of the log-probabilities of its tokens after the first, the separator's too."""
        ids, depths, mask, at, used, following = (
            torch.from_numpy(part).to(device)
            for part in (self.ids, self.depths, self.mask, self.at, self.used, self.following)
        )
        rows = torch.arange(len(ids), device=device)
        states = decoder.decode(ids, mask, memory, positions=depths)[:, 1:]
        logits = decoder.logits(states)
        total = logits.logsumexp(dim=2)
        at, following = (part.masked_fill(~used, 0).flatten(1) for part in (at - 1, following))
        spot = rows.unsqueeze(1) * logits.shape[1] + at
        likelihood = logits.flatten(0, 1)[spot, following] - total.gather(1, at)
        return likelihood.view(used.shape).masked_fill(~used, 0).sum(dim=2)


def _rows(lists: Sequence[Sequence[int]], width: int) -> Ints:
    out = np.full((len(lists), width), NONE, dtype=np.int64)
    for place, each in enumerate(lists):
        out[place, : len(each)] = each
    return out
