"""Text generation, token by token: beam search and sampling over a decoder with a cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.losses import at_least_float32
from utils.batch import IGNORE
from utils.config import Config

UNITS = 2**52
"""Probability 1 in integer units, whose sums are exact in float64, too."""


class SamplingConfig(Config):
    """Tokens are sampled instead of searched for."""

    temperature: float = Field(1.0, gt=0, description="below 1: likely tokens more often")
    top_p: float = Field(
        1.0, gt=0, le=1, description="sample among the likeliest tokens that together have this probability"
    )


class DecodingConfig(Config):
    """How a text is generated. Lengths count tokens, without the prompt."""

    beams: int = Field(3, ge=1, description="hypotheses of the beam search; 1 is greedy")
    max_length: int = Field(
        50,
        ge=1,
        description="most tokens, the end counted (released: prompt counted too, and one more for each image of the batch)",
    )
    min_length: int = Field(5, ge=0, description="tokens before the text may end")
    length_penalty: float = Field(
        0.0, ge=0, description="p: a log-likelihood is divided by ((5 + tokens) / 6)^p; 0 prefers short texts"
    )
    no_repeat_ngram: int = Field(3, ge=0, description="no n-gram of this size occurs twice; 0: no limit")
    sampling: SamplingConfig | None = Field(None, description="sample one text instead of searching for the likeliest")

    @model_validator(mode="after")
    def _fits_together(self) -> DecodingConfig:
        if self.min_length > self.max_length:
            raise ValueError(
                f"min_length is {self.min_length}, more than max_length = {self.max_length}; no text could end"
            )
        if self.sampling is not None and self.beams != 1:
            raise ValueError(f"sampling gives one text, and beams is {self.beams}; set beams to 1")
        return self


@dataclass(frozen=True)
class Generated:
    """``tokens`` (N, max_length) int64, without prompt and end token, :data:`~utils.batch.IGNORE` after the end; ``ended`` (N,)
    bool, whether there is an end token; ``score`` (N,) log-likelihoods, at least float32, after the length penalty."""

    tokens: Tensor
    ended: Tensor
    score: Tensor


class Decoder(Protocol):
    """Gives the logits of the next token of hypotheses, and keeps their states."""

    def start(self, prompt: Tensor) -> Tensor:
        """Logits (N, V) after ``prompt`` (N, P)."""

    def step(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Logits (M, V) after ``tokens`` (M,), where hypothesis m continues hypothesis ``rows[m]`` of the last call.

        The hypotheses of a prompt lie together, equally many of each.
        """


def generate(
    decoder: Decoder, prompt: Tensor, end: int, config: DecodingConfig, uniforms: Tensor | None = None
) -> Generated:
    """A text after each ``prompt`` (N, P), until the token ``end``; ``uniforms`` as in :func:`sample`."""
    if config.sampling is None:
        return beam_search(decoder, prompt, end, config)
    assert uniforms is not None, "sampling needs random numbers"
    return sample(decoder, prompt, end, config, uniforms)


def beam_search(decoder: Decoder, prompt: Tensor, end: int, config: DecodingConfig) -> Generated:
    """The likeliest text that ``config.beams`` hypotheses find.

    The best of all that ended, in whichever step, and of those still open at the greatest length. The search for a text stops
    when no open hypothesis could become better.
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
        source, token = flat // vocabulary, flat % vocabulary
        rows = (first * tokens.shape[1] + source).flatten()
        tokens = tokens.flatten(0, 1).index_select(0, rows).view(count, beams, longest)
        tokens[:, :, length - 1] = token
        ended = token == end
        value = _penalised(scores, length, config).masked_fill(~(ended | (length == longest)), -torch.inf)
        top, which = value.max(dim=1)
        chosen = tokens.gather(1, which.view(-1, 1, 1).expand(-1, 1, longest)).squeeze(1)
        best_tokens = torch.where((top > best).unsqueeze(1), chosen, best_tokens)
        best = torch.maximum(best, top)
        scores = scores.masked_fill(ended, -torch.inf)
        # Log-likelihoods only fall, and the greatest length is penalised least.
        if length == longest or bool((_penalised(scores, longest, config).amax(dim=1) <= best).all()):
            break
        logits = decoder.step(token.flatten(), rows)
    return _generated(best_tokens, end, best)


def sample(decoder: Decoder, prompt: Tensor, end: int, config: DecodingConfig, uniforms: Tensor) -> Generated:
    """Texts sampled token by token; the scores are log-likelihoods before temperature and ``top_p``.

    Args:
        uniforms: (N, max_length) in 0..1, uniformly random. They alone decide what is sampled: a text does not depend on the
            others of its batch.
    """
    assert config.sampling is not None
    count, longest = len(prompt), config.max_length
    tokens = prompt.new_full((count, 1, longest), IGNORE)
    score = torch.zeros(count, device=prompt.device)
    done = torch.zeros(count, dtype=torch.bool, device=prompt.device)
    rows = torch.arange(count, device=prompt.device)
    logits = decoder.start(prompt)
    for length in range(1, longest + 1):
        likelihood = at_least_float32(logits).log_softmax(dim=1)
        allowed = likelihood.clone().unsqueeze(1)
        forbid(allowed, tokens[:, :, : length - 1], end, config)
        token = sample_token(allowed.squeeze(1), config.sampling, uniforms[:, length - 1])
        score = score + likelihood.gather(1, token.unsqueeze(1)).squeeze(1).masked_fill(done, 0)
        tokens[:, 0, length - 1] = token.masked_fill(done, IGNORE)
        done = done | (token == end)
        if length == longest or bool(done.all()):
            break
        logits = decoder.step(token, rows)
    return _generated(tokens[:, 0], end, score)


def sample_token(likelihood: Tensor, config: SamplingConfig, uniform: Tensor) -> Tensor:
    """One token per row, (N,), from log-likelihoods (N, V), by uniform random numbers ``uniform`` (N,) in 0..1."""
    probability, token = (likelihood / config.temperature).softmax(dim=1).sort(dim=1, descending=True, stable=True)
    # Integers have the same sum in any order; floats on a GPU have not, and deterministic algorithms refuse them.
    parts = (probability.double() * UNITS).long()
    before = parts.cumsum(dim=1) - parts
    kept = parts * (before < math.ceil(config.top_p * UNITS))
    reached = kept.cumsum(dim=1)
    place = (reached <= uniform.double().unsqueeze(1) * reached[:, -1:]).sum(dim=1)
    last = (kept > 0).sum(dim=1) - 1
    return token.gather(1, torch.minimum(place, last).unsqueeze(1)).squeeze(1)


def forbid(likelihood: Tensor, tokens: Tensor, end: int, config: DecodingConfig) -> None:
    """Set to -inf in ``likelihood`` (N, K, V) what must not follow ``tokens`` (N, K, L): an early end, a repeated n-gram."""
    length, size = tokens.shape[2], config.no_repeat_ngram
    if length < config.min_length:
        likelihood[:, :, end] = -torch.inf
    if not size or length < size:
        return
    runs = tokens.unfold(2, size, 1)
    tail = tokens[:, :, length - size + 1 :]
    repeats = (runs[..., :-1] == tail.unsqueeze(2)).all(dim=3)
    limit = likelihood.new_full(repeats.shape, torch.inf).masked_fill(repeats, -torch.inf)
    likelihood.scatter_reduce_(2, runs[..., -1].clamp(min=0), limit, "amin")  # a hypothesis that ended holds no words


def _penalised(scores: Tensor, length: int, config: DecodingConfig) -> Tensor:
    return scores / ((5 + length) / 6) ** config.length_penalty


def _generated(tokens: Tensor, end: int, score: Tensor) -> Generated:
    ends = tokens == end
    return Generated(tokens.masked_fill(ends, IGNORE), ends.any(dim=1), score)
