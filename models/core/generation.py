"""Text generation, token by token: beam search and sampling over a decoder with a cache."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from batches.base import IGNORE
from models.config import BeamConfig, DecodingConfig, SamplingConfig
from models.core.keys_values import KVCache
from models.core.losses import at_least_float32

UNITS = 2**52
"""The number of integer units that make up the probability 1. Sums of units are exact, even in float64."""


@dataclass(frozen=True)
class Generated:
    """N generated texts.

    Attributes:
        tokens: (N, max_length) int64, without the prompt and the end token, and padded with :data:`~batches.base.IGNORE`.
        ended: (N,) bool, True if the end token was generated.
        score: (N,) log-likelihoods after the length penalty, in float32 or higher precision.
    """

    tokens: Tensor
    ended: Tensor
    score: Tensor


class Decoder(Protocol):
    """Predicts the next token of hypotheses (partly generated texts), and keeps their states between calls."""

    def start(self, prompt: Tensor) -> Tensor:
        """Logits (N, V) after ``prompt`` (N, L)."""

    def step(self, tokens: Tensor, sources: Tensor) -> Tensor:
        """Logits (M, V) after ``tokens`` (M,), where hypothesis m continues hypothesis ``sources[m]`` of the previous call.

        The hypotheses of a prompt are adjacent, and every prompt has the same number of hypotheses.
        """


class CachedDecoder(ABC):
    """A :class:`Decoder` that keeps the keys and values of earlier tokens in ``cache``; ``length`` is the number of these
    tokens."""

    def __init__(self) -> None:
        self.length = 0
        self.cache = KVCache()

    def start(self, prompt: Tensor) -> Tensor:
        return self.append(prompt)

    def step(self, tokens: Tensor, sources: Tensor) -> Tensor:
        self.cache.reorder(sources)
        return self.append(tokens.unsqueeze(1))

    @abstractmethod
    def append(self, tokens: Tensor) -> Tensor:
        """Appends ``tokens`` (N, L) to the tokens of earlier calls, and returns the logits (N, V) of the next token."""


def generate(
    decoder: Decoder, prompt: Tensor, end: int, config: DecodingConfig, uniforms: Tensor | None = None
) -> Generated:
    """Continues each prompt in ``prompt`` (N, L) up to the token ``end``, by beam search or sampling. ``uniforms`` are random
    numbers for sampling; see :func:`sample`."""
    if config.sampling is None:
        return beam_search(decoder, prompt, end, config)
    assert uniforms is not None, "config.sampling is set, but uniforms are missing; pass random numbers (N, max_length)"
    return sample(decoder, prompt, end, config, uniforms)


def beam_search(decoder: Decoder, prompt: Tensor, end: int, config: BeamConfig) -> Generated:
    """Searches for the most likely continuation of each prompt in ``prompt`` (N, L) with ``config.beams`` hypotheses.

    The result is the best of all hypotheses that have ended or have reached the maximum length. The search stops when, for every
    prompt, no open hypothesis can become better than the best result so far.
    """
    count, beams, longest = len(prompt), config.beams, config.max_length
    tokens = prompt.new_full((count, 1, longest), IGNORE)
    scores = torch.zeros(count, 1, device=prompt.device)
    best, best_tokens = scores.new_full((count,), -torch.inf), tokens[:, 0]
    first = torch.arange(count, device=prompt.device).unsqueeze(1)
    logits = decoder.start(prompt)
    for length in range(1, longest + 1):
        likelihood = at_least_float32(logits).log_softmax(dim=1).view(count, tokens.shape[1], -1)
        forbid(likelihood, tokens[:, :, : length - 1], end, config)
        vocabulary = likelihood.shape[2]
        scores, flat = (scores.unsqueeze(2) + likelihood).flatten(1).topk(beams, dim=1)
        beam, token = flat // vocabulary, flat % vocabulary
        sources = (first * tokens.shape[1] + beam).flatten()
        tokens = tokens.flatten(0, 1).index_select(0, sources).view(count, beams, longest)
        tokens[:, :, length - 1] = token
        ended = token == end
        value = _penalised(scores, length, config).masked_fill(~(ended | (length == longest)), -torch.inf)
        top, top_beam = value.max(dim=1)
        top_tokens = tokens.gather(1, top_beam.view(-1, 1, 1).expand(-1, 1, longest)).squeeze(1)
        best_tokens = torch.where((top > best).unsqueeze(1), top_tokens, best_tokens)
        best = torch.maximum(best, top)
        scores = scores.masked_fill(ended, -torch.inf)
        # No open hypothesis can exceed this value: log-likelihoods only fall, and the maximum length has the largest divisor.
        if length == longest or bool((_penalised(scores, longest, config).amax(dim=1) <= best).all()):
            break
        logits = decoder.step(token.flatten(), sources)
    return _generated(best_tokens, end, best)


def sample(decoder: Decoder, prompt: Tensor, end: int, config: DecodingConfig, uniforms: Tensor) -> Generated:
    """Continues each prompt in ``prompt`` (N, L) by sampling token by token.

    The scores are log-likelihoods before temperature and ``top_p``.

    Args:
        decoder: predicts the next token.
        prompt: (N, L) int64.
        end: id of the end token.
        config: settings, with ``sampling`` set.
        uniforms: (N, max_length), uniform random numbers in 0..1. They are the only source of randomness, so a text does not
            depend on the other texts in its batch.
    """
    assert config.sampling is not None
    count, longest = len(prompt), config.max_length
    tokens = prompt.new_full((count, 1, longest), IGNORE)
    score = torch.zeros(count, device=prompt.device)
    ended = torch.zeros(count, dtype=torch.bool, device=prompt.device)
    sources = torch.arange(count, device=prompt.device)
    logits = decoder.start(prompt)
    for length in range(1, longest + 1):
        likelihood = at_least_float32(logits).log_softmax(dim=1)
        allowed = likelihood.clone().unsqueeze(1)
        forbid(allowed, tokens[:, :, : length - 1], end, config)
        token = sample_token(allowed.squeeze(1), config.sampling, uniforms[:, length - 1])
        score = score + likelihood.gather(1, token.unsqueeze(1)).squeeze(1).masked_fill(ended, 0)
        tokens[:, 0, length - 1] = token.masked_fill(ended, IGNORE)
        ended = ended | (token == end)
        if length == longest or bool(ended.all()):
            break
        logits = decoder.step(token, sources)
    return _generated(tokens[:, 0], end, score)


def sample_token(likelihood: Tensor, config: SamplingConfig, uniform: Tensor) -> Tensor:
    """Samples a token (N,) for each sequence from the log-likelihoods (N, V), using uniform random numbers ``uniform`` (N,) in
    0..1."""
    probability, token = (likelihood / config.temperature).softmax(dim=1).sort(dim=1, descending=True, stable=True)
    # A sum of integers does not depend on the order of addition, but a cumulative sum of floats on a GPU does, so PyTorch refuses
    # to compute it when deterministic algorithms are required.
    units = (probability.double() * UNITS).long()
    units_before = units.cumsum(dim=1) - units
    nucleus = units * (units_before < math.ceil(config.top_p * UNITS))
    cumulative = nucleus.cumsum(dim=1)
    rank = (cumulative <= uniform.double().unsqueeze(1) * cumulative[:, -1:]).sum(dim=1)
    last = (nucleus > 0).sum(dim=1) - 1
    return token.gather(1, torch.minimum(rank, last).unsqueeze(1)).squeeze(1)


def forbid(likelihood: Tensor, tokens: Tensor, end: int, config: BeamConfig) -> None:
    """Sets ``likelihood`` (N, beams, V) to -inf for end tokens that come too early, and for tokens that would repeat an n-gram of
    ``tokens`` (N, beams, L)."""
    length, size = tokens.shape[2], config.no_repeat_ngram
    if length < config.min_length:
        likelihood[:, :, end] = -torch.inf
    if not size or length < size:
        return
    ngrams = tokens.unfold(2, size, 1)
    tail = tokens[:, :, length - size + 1 :]
    repeats = (ngrams[..., :-1] == tail.unsqueeze(2)).all(dim=3)
    limit = likelihood.new_full(repeats.shape, torch.inf).masked_fill(repeats, -torch.inf)
    # After its end, a hypothesis contains IGNORE, which is negative and therefore not a valid index.
    likelihood.scatter_reduce_(2, ngrams[..., -1].clamp(min=0), limit, "amin")


def _penalised(scores: Tensor, length: int, config: BeamConfig) -> Tensor:
    return scores / ((5 + length) / 6) ** config.length_penalty


def _generated(tokens: Tensor, end: int, score: Tensor) -> Generated:
    ends = tokens == end
    return Generated(tokens.masked_fill(ends, IGNORE), ends.any(dim=1), score)
