"""Ranking of candidate answers by their likelihood under the answer decoder (appendix A.1 of the paper).

As in the authors' code, only the k candidates with the most likely first tokens are scored completely. Candidates share prefixes,
so the distinct prefixes of a question's k candidates form a tree whose nodes are tokens. The decoder processes all nodes of a
tree together, and each node only once. A node attends only to itself and its ancestors. The keys and values of a question are
projected once for all nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.config import Ranking
from models.core.keys_values import KeysValues
from models.core.packing import PackedTexts
from models.tasks.vqa import AnswerDecoder
from utils.accelerator import send

Ints = NDArray[np.int64]

MAX_LOGITS = 2**27
"""Maximum number of logits that are computed at once, which take 0.5 GB in float32. With XLM-R's 250,000 words, the logits of all
nodes of a call would take 8.2 GB."""

ROOT = 0
"""The node of [CLS], the first token of every answer."""

NONE = -1
"""Padding at the end of shorter paths."""


class AnswerTree:
    """A prefix tree of C candidate answers.

    Args:
        candidates: token ids of each candidate, from [CLS], which all candidates share, to [SEP].

    Attributes:
        tokens: (nodes,), the token of each node.
        depths: (nodes,), the position of each node's token in the answers that contain the node.
        path: (C, depth), the nodes of each candidate in order, without the root, padded with :data:`NONE`.
        following: (C, 1 + depth), the tokens that follow the root and each node of the path; the last token is [SEP].
        ancestors: (nodes, depth), the path from the root to each node, including the node but not the root.

    Raises:
        ValueError: if there are no candidates, or if a candidate has no token between [CLS] and [SEP].
    """

    def __init__(self, candidates: Sequence[Sequence[int]]):
        if not candidates or min(map(len, candidates)) < 3:
            raise ValueError("candidate answers need at least one token between [CLS] and [SEP]")
        nodes: dict[tuple[int, ...], int] = {}
        paths = []
        for ids in candidates:
            path = []
            for end in range(2, len(ids)):
                path.append(nodes.setdefault(tuple(ids[1:end]), len(nodes) + 1))
            paths.append(path)
        deepest = max(map(len, paths))
        self.path = _padded(paths, deepest)
        self.following = _padded([ids[1:] for ids in candidates], deepest + 1)
        self.tokens = np.array([candidates[0][0], *(prefix[-1] for prefix in nodes)], dtype=np.int64)
        self.depths = np.array([0, *(len(prefix) for prefix in nodes)], dtype=np.int64)
        ancestors = [[nodes[prefix[:end]] for end in range(1, len(prefix) + 1)] for prefix in nodes]
        self.ancestors = _padded([[], *ancestors], deepest)

    def __len__(self) -> int:
        """The number of candidates."""
        return len(self.path)


@dataclass(frozen=True)
class RankedAnswers:
    """The k best candidates of N questions, most likely first.

    Attributes:
        ids: (N, k) int64, indices into the list of candidates.
        probabilities: (N, k), softmax over the scores of these k candidates, in float32 or higher precision.
    """

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
    """Ranks the candidates for each question.

    Args:
        decoder: the answer decoder, in evaluation mode.
        questions: N fused questions.
        tree: tree of the candidates.
        k: number of candidates that are scored completely.
        ranking: how candidates are scored, and how ties are broken (:func:`best_first`).
        nodes_per_call: approximate maximum number of nodes per call; if None, a default for the device (CPU or GPU).
    """
    if nodes_per_call is None:
        nodes_per_call = 640 if questions.states.device.type == "cpu" else 8192
    keys_values = decoder.project_texts(questions)
    opening = _first_tokens(decoder, keys_values, tree)
    order = best_first(opening, min(k, len(tree)), ranking)
    candidates, device = order.cpu().numpy(), opening.device
    scores = opening.gather(1, order) * (2 if ranking == "released" else 1)
    calls = list(_calls([np.unique(tree.path[each]) for each in candidates], nodes_per_call))
    parts = keys_values.split([len(call) for call, _ in calls])
    for (call, nodes), part in zip(calls, parts, strict=True):
        subtrees = _Subtrees(tree, nodes, candidates[call.start : call.stop])
        scores[call.start : call.stop] += subtrees.score(decoder, part, device)
    ranks = best_first(scores, scores.shape[1], ranking)
    return RankedAnswers(order.gather(1, ranks), scores.gather(1, ranks).softmax(dim=1))


def best_first(scores: Tensor, k: int, ranking: Ranking) -> Tensor:
    """Returns the indices (N, k) of the k highest ``scores`` (N, C), best first.

    Ties are frequent, since candidates share prefixes, and are broken in favour of the earlier candidate. With "released", the
    order of ties is left to ``topk``, which differs between CPU and GPU.
    """
    if ranking == "released":
        return scores.topk(k, dim=1).indices
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


def _first_tokens(decoder: AnswerDecoder, questions: KeysValues, tree: AnswerTree) -> Tensor:
    """Log-probabilities (N, C) of each candidate's token after [CLS]."""
    start = torch.full((len(questions), 1), int(tree.tokens[ROOT]), device=questions.device)
    states = decoder.decode(start, torch.ones(1, 1, 1, dtype=torch.bool, device=questions.device), questions)
    tokens = send(torch.from_numpy(tree.following[:, 0]), questions.device)
    parts = [logits.log_softmax(dim=1).index_select(1, tokens) for _, logits in _logits(decoder, states[:, 0])]
    return torch.cat(parts)


def _logits(decoder: AnswerDecoder, states: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Computes the logits of states (M, D) for at most :data:`MAX_LOGITS` logits at once.

    Yields:
        The index of the first state of a part, and the logits (rows of the part, V).
    """
    rows = max(1, MAX_LOGITS // len(decoder.words))
    for start in range(0, len(states), rows):
        yield start, decoder.logits(states[start : start + rows])


def _calls(nodes: Sequence[Ints], max_nodes: int) -> Iterator[tuple[range, list[Ints]]]:
    """Groups adjacent questions into calls of at most about ``max_nodes`` nodes, including padding.

    Args:
        nodes: the nodes of each question.
        max_nodes: approximate maximum number of nodes per call. A question with more nodes is processed in a separate call.

    Yields:
        For each call, the range of its questions, and their nodes without :data:`NONE`.
    """
    start = widest = 0
    for question, question_nodes in enumerate(nodes):
        count = len(question_nodes)
        widest = max(widest, count)
        if question > start and widest * (question + 1 - start) > max_nodes:
            yield range(start, question), [padded[padded != NONE] for padded in nodes[start:question]]
            start, widest = question, count
    yield range(start, len(nodes)), [padded[padded != NONE] for padded in nodes[start:]]


class _Subtrees:
    """For each of N questions, a sequence of tree nodes: the root, then the ``nodes`` on the paths of ``candidates`` (N, k)."""

    def __init__(self, tree: AnswerTree, nodes: Sequence[Ints], candidates: Ints):
        width = 1 + max(map(len, nodes))
        self.ids = np.full((len(nodes), width), tree.tokens[ROOT])
        self.depths = np.zeros((len(nodes), width), dtype=np.int64)
        self.mask = np.zeros((len(nodes), width, width), dtype=bool)
        self.mask[:, :, 0] = True  # padding attends to the root as well, because attending to nothing gives NaN
        self.positions = np.zeros((*candidates.shape, tree.path.shape[1]), dtype=np.int64)
        for question, question_nodes in enumerate(nodes):
            end = 1 + len(question_nodes)
            self.ids[question, 1:end] = tree.tokens[question_nodes]
            self.depths[question, 1:end] = tree.depths[question_nodes]
            self._attend_to_ancestors(question, question_nodes, tree.ancestors[question_nodes])
            self.positions[question] = 1 + np.searchsorted(question_nodes, tree.path[candidates[question]])
        self.on_path = tree.path[candidates] != NONE
        self.following = tree.following[candidates][..., 1:]

    def _attend_to_ancestors(self, question: int, nodes: Ints, ancestors: Ints) -> None:
        node, level = np.nonzero(ancestors != NONE)
        self.mask[question, 1 + node, 1 + np.searchsorted(nodes, ancestors[node, level])] = True

    def score(self, decoder: AnswerDecoder, keys_values: KeysValues, device: torch.device) -> Tensor:
        """Sums the log-probabilities of each candidate's tokens after the first token, including [SEP]. Returns (N, k)."""
        ids, depths, mask, positions, on_path, following = (
            send(torch.from_numpy(array), device)
            for array in (self.ids, self.depths, self.mask, self.positions, self.on_path, self.following)
        )
        questions = torch.arange(len(ids), device=device)
        # The states of all nodes except the root, which predicts the first token.
        states = decoder.decode(ids, mask, keys_values, positions=depths)[:, 1:]
        positions, following = (part.masked_fill(~on_path, 0).flatten(1) for part in (positions - 1, following))
        state_index = questions.unsqueeze(1) * states.shape[1] + positions
        likelihood = torch.zeros_like(state_index, dtype=torch.promote_types(states.dtype, torch.float32))
        for start, logits in _logits(decoder, states.flatten(0, 1)):
            row = state_index - start
            in_part, row = (row >= 0) & (row < len(logits)), row.clamp(0, len(logits) - 1)
            log_probability = logits[row, following] - logits.logsumexp(dim=1)[row]
            likelihood = torch.where(in_part, log_probability, likelihood)
        return likelihood.view(on_path.shape).masked_fill(~on_path, 0).sum(dim=2)


def _padded(lists: Sequence[Sequence[int]], width: int) -> Ints:
    """Converts ``lists`` to an array (len(lists), width), padded with :data:`NONE`."""
    padded = np.full((len(lists), width), NONE, dtype=np.int64)
    for index, numbers in enumerate(lists):
        padded[index, : len(numbers)] = numbers
    return padded
