"""Saying texts word by word: beam search and sampling over a decoder that keeps what it has computed."""

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

WHOLE = 2**52
"""Parts of the probability 1; their sums are exact in float64 too."""


class SamplingConfig(Config):
    """Words are drawn, not searched for."""

    temperature: float = Field(1.0, gt=0, description="below 1: likely words more often")
    top_p: float = Field(
        1.0, gt=0, le=1, description="draw among the likeliest words that together have this probability"
    )


class DecodingConfig(Config):
    """How a text is found. Lengths count word pieces, without the prompt."""

    beams: int = Field(3, ge=1, description="hypotheses that are followed; 1 is greedy")
    max_length: int = Field(
        50,
        ge=1,
        description="pieces at most, the end counted (released: prompt counted too, and one more for each image of the batch)",
    )
    min_length: int = Field(5, ge=0, description="pieces before the text may end")
    length_penalty: float = Field(
        0.0, ge=0, description="p: a log-likelihood is divided by ((5 + pieces) / 6)^p; 0 prefers short texts"
    )
    no_repeat_ngram: int = Field(3, ge=0, description="no run of so many pieces is said twice; 0: anything goes")
    sampling: SamplingConfig | None = Field(None, description="draw one text instead of searching for the likeliest")

    @model_validator(mode="after")
    def _fits_together(self) -> DecodingConfig:
        if self.min_length > self.max_length:
            raise ValueError(
                f"min_length is {self.min_length}, more than max_length = {self.max_length}; no text could end"
            )
        if self.sampling is not None and self.beams != 1:
            raise ValueError(f"sampling draws one text, and beams is {self.beams}; set beams to 1")
        return self


@dataclass(frozen=True)
class Generated:
    """``words`` (N, max_length) int64, without prompt and end, :data:`~utils.batch.IGNORE` where nothing is said; ``ended``
    (N,) bool, whether the end was said; ``score`` (N,) log-likelihoods, at least float32, after the length penalty."""

    words: Tensor
    ended: Tensor
    score: Tensor


class Decoder(Protocol):
    """Gives the logits of the next word of hypotheses, and keeps their states."""

    def start(self, prompt: Tensor) -> Tensor:
        """Logits (N, V) after ``prompt`` (N, P)."""

    def step(self, words: Tensor, rows: Tensor) -> Tensor:
        """Logits (M, V) after ``words`` (M,), where hypothesis m goes on from the ``rows[m]``-th of the last call.

        The hypotheses of a prompt lie together, equally many of each.
        """


def generate(
    decoder: Decoder, prompt: Tensor, end: int, config: DecodingConfig, chances: Tensor | None = None
) -> Generated:
    """A text after each ``prompt`` (N, P), until the word ``end``; ``chances`` as in :func:`sample`."""
    if config.sampling is None:
        return beam_search(decoder, prompt, end, config)
    assert chances is not None, "sampling needs chances"
    return sample(decoder, prompt, end, config, chances)


def beam_search(decoder: Decoder, prompt: Tensor, end: int, config: DecodingConfig) -> Generated:
    """The likeliest text that ``config.beams`` hypotheses come upon.

    The best of all that ended, in whichever step, and of those that go on at the greatest length. The search for a text stops
    when none that goes on could become better.
    """
    count, beams, longest = len(prompt), config.beams, config.max_length
    said = prompt.new_full((count, 1, longest), IGNORE)
    scores = torch.zeros(count, 1, device=prompt.device)
    best, best_said = scores.new_full((count,), -torch.inf), said[:, 0]
    first = torch.arange(count, device=prompt.device).unsqueeze(1)
    logits = decoder.start(prompt)
    for length in range(1, longest + 1):
        likelihood = at_least_float32(logits).log_softmax(dim=1).view(count, said.shape[1], -1)
        forbid(likelihood, said[:, :, : length - 1], end, config)
        vocabulary = likelihood.shape[2]
        scores, found = (scores.unsqueeze(2) + likelihood).flatten(1).topk(beams, dim=1)
        source, word = found // vocabulary, found % vocabulary
        rows = (first * said.shape[1] + source).flatten()
        said = said.flatten(0, 1).index_select(0, rows).view(count, beams, longest)
        said[:, :, length - 1] = word
        ended = word == end
        value = _penalised(scores, length, config).masked_fill(~(ended | (length == longest)), -torch.inf)
        top, which = value.max(dim=1)
        chosen = said.gather(1, which.view(-1, 1, 1).expand(-1, 1, longest)).squeeze(1)
        best_said = torch.where((top > best).unsqueeze(1), chosen, best_said)
        best = torch.maximum(best, top)
        scores = scores.masked_fill(ended, -torch.inf)
        # Log-likelihoods only fall, and the greatest length is penalised least.
        if length == longest or bool((_penalised(scores, longest, config).amax(dim=1) <= best).all()):
            break
        logits = decoder.step(word.flatten(), rows)
    return _generated(best_said, end, best)


def sample(decoder: Decoder, prompt: Tensor, end: int, config: DecodingConfig, chances: Tensor) -> Generated:
    """Texts drawn word by word; the scores are log-likelihoods before temperature and ``top_p``.

    Args:
        chances: (N, max_length) in 0..1, uniformly random. They alone decide what is drawn: a text does not depend on the
            others of its batch.
    """
    assert config.sampling is not None
    count, longest = len(prompt), config.max_length
    said = prompt.new_full((count, 1, longest), IGNORE)
    score = torch.zeros(count, device=prompt.device)
    done = torch.zeros(count, dtype=torch.bool, device=prompt.device)
    rows = torch.arange(count, device=prompt.device)
    logits = decoder.start(prompt)
    for length in range(1, longest + 1):
        likelihood = at_least_float32(logits).log_softmax(dim=1)
        allowed = likelihood.clone().unsqueeze(1)
        forbid(allowed, said[:, :, : length - 1], end, config)
        word = draw(allowed.squeeze(1), config.sampling, chances[:, length - 1])
        score += likelihood.gather(1, word.unsqueeze(1)).squeeze(1).masked_fill(done, 0)
        said[:, 0, length - 1] = word.masked_fill(done, IGNORE)
        done = done | (word == end)
        if length == longest or bool(done.all()):
            break
        logits = decoder.step(word, rows)
    return _generated(said[:, 0], end, score)


def draw(likelihood: Tensor, config: SamplingConfig, chance: Tensor) -> Tensor:
    """One word a row, (N,), from log-likelihoods (N, V), by ``chance`` (N,) in 0..1."""
    probability, word = (likelihood / config.temperature).softmax(dim=1).sort(dim=1, descending=True, stable=True)
    # Whole numbers have the same sums in any order. Those of floats on a GPU do not: deterministic algorithms refuse them.
    parts = (probability.double() * WHOLE).long()
    before = parts.cumsum(dim=1) - parts
    kept = parts * (before < math.ceil(config.top_p * WHOLE))
    reached = kept.cumsum(dim=1)
    place = (reached <= chance.double().unsqueeze(1) * reached[:, -1:]).sum(dim=1)
    last = (kept > 0).sum(dim=1) - 1
    return word.gather(1, torch.minimum(place, last).unsqueeze(1)).squeeze(1)


def forbid(likelihood: Tensor, said: Tensor, end: int, config: DecodingConfig) -> None:
    """Set what may not come next to -inf in ``likelihood`` (N, K, V), after ``said`` (N, K, L): an early end, a repeated run."""
    length, size = said.shape[2], config.no_repeat_ngram
    if length < config.min_length:
        likelihood[:, :, end] = -torch.inf
    if not size or length < size:
        return
    runs = said.unfold(2, size, 1)
    tail = said[:, :, length - size + 1 :]
    again = (runs[..., :-1] == tail.unsqueeze(2)).all(dim=3)
    limit = likelihood.new_full(again.shape, torch.inf).masked_fill(again, -torch.inf)
    likelihood.scatter_reduce_(2, runs[..., -1].clamp(min=0), limit, "amin")  # a hypothesis that ended holds no words


def _penalised(scores: Tensor, length: int, config: DecodingConfig) -> Tensor:
    return scores / ((5 + length) / 6) ** config.length_penalty


def _generated(said: Tensor, end: int, score: Tensor) -> Generated:
    ends = said == end
    return Generated(said.masked_fill(ends, IGNORE), ends.any(dim=1), score)
