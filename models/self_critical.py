"""Self-critical training of captioning (Rennie et al. 2017): sampled captions better than the others of an image are reinforced.

An optional second stage after the likelihood, as strong captioning systems have it; the paper has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from models.captioning import CaptionDecoder, CaptioningModel, CaptionTokens
from models.flops import frames_of
from models.generation import DecodingConfig, Generated, SamplingConfig, sample
from models.losses import at_least_float32
from models.memory import CrossMemory
from utils.batch import IGNORE, CaptioningBatch, LeftToRightText, Losses, Term, Work, to_device
from utils.config import Config

Reward = Callable[[Sequence[Sequence[int]], Sequence[tuple[str, ...]]], Sequence[float]]
"""Token ids of captions, with the end token if there is one, and the references of each -> their rewards."""


class SelfCriticalConfig(Config):
    """How captions are sampled to be rewarded."""

    samples: int = Field(
        5, ge=2, description="captions sampled per image; the mean reward of the others is the baseline"
    )
    max_length: int = Field(32, ge=1, description="most tokens of a caption, the end counted")
    temperature: float = Field(
        1.0,
        gt=0,
        description="of the sampled captions, and so of what is learned; below 1 where label smoothing has flattened the model",
    )


class SelfCriticalModel(CaptioningModel):
    """:class:`~models.captioning.CaptioningModel` whose loss is the negative expected reward.

    :meth:`set_reward` has to be called before the first step.
    """

    critic: SelfCriticalConfig
    reward: Reward
    tokens: CaptionTokens

    def set_reward(self, reward: Reward, tokens: CaptionTokens, config: SelfCriticalConfig) -> None:
        """Set the reward of captions, and how they are sampled."""
        self.reward, self.tokens, self.critic = reward, tokens, config

    def forward(self, batch: CaptioningBatch) -> Losses:
        """``policy``, whose gradient is that of the negative expected reward; and the ``reward`` itself, for the log."""
        count, samples = len(batch.pixels), self.critic.samples
        memory = self.images_memory(batch.pixels)
        captions = self._captions(self._sample(memory))
        references = [of_image for of_image in batch.references for _ in range(samples)]
        rewards = torch.tensor(list(self.reward(captions, references)), device=batch.pixels.device).view(count, samples)
        # Against the mean of the others, (sum - own) / (samples - 1): a baseline without a pass of its own.
        advantage = (rewards - rewards.mean(dim=1, keepdim=True)) * (samples / (samples - 1))
        likelihood = self._likelihood(captions, memory).view(count, samples)
        policy = -(advantage * likelihood).mean(dim=1).masked_fill(~batch.valid, 0).sum()
        mean = rewards.mean(dim=1).masked_fill(~batch.valid, 0).sum()
        return {"policy": Term(policy, 1.0), "reward": Term(mean, 0.0)}

    def counts(self, batch: CaptioningBatch) -> dict[str, Tensor]:
        """Both are divided by the images that count."""
        return {"policy": batch.valid.sum(), "reward": batch.valid.sum()}

    def work(self, batch: CaptioningBatch) -> Work:
        """See :class:`engine.task.TaskModel`. How long the captions are that it draws is not known before the step."""
        rows = int(batch.valid.sum())
        return Work(rows, rows * frames_of(batch.pixels), math.nan, math.nan)

    @torch.no_grad()
    def _sample(self, memory: CrossMemory) -> Generated:
        """Captions of each image, sampled without dropout, those of an image side by side."""
        config = DecodingConfig(
            beams=1,
            min_length=1,
            max_length=self.critic.max_length,
            no_repeat_ngram=0,
            sampling=SamplingConfig(temperature=self.critic.temperature),
        )
        device, rows = memory.device, len(memory) * self.critic.samples
        prompt = torch.tensor(self.tokens.prompt, device=device).expand(rows, -1)
        uniforms = torch.rand(rows, config.max_length, device=device)
        training = self.training
        self.eval()
        try:
            return sample(CaptionDecoder(self, memory, self.tokens.mask), prompt, self.tokens.end, config, uniforms)
        finally:
            self.train(training)

    def _captions(self, generated: Generated) -> list[list[int]]:
        """The tokens of each caption, with its end if it has one."""
        return [
            [*(token for token in tokens if token != IGNORE), *([self.tokens.end] if ended else [])]
            for tokens, ended in zip(generated.tokens.tolist(), generated.ended.tolist(), strict=True)
        ]

    def _likelihood(self, captions: list[list[int]], memory: CrossMemory) -> Tensor:
        """The log-likelihood of each caption, (N * samples,), at the temperature at which it was sampled, with its gradient."""
        prompt = self.tokens.prompt
        texts = [[*prompt, *tokens] for tokens in captions]
        places = [list(range(len(prompt), len(text))) for text in texts]
        text = to_device(LeftToRightText.of(texts, places, self.tokens.mask, self.tokens.pad), memory.device)
        logits = self.logits(text, memory) / self.critic.temperature
        counts = text.labels != IGNORE
        each = at_least_float32(logits).log_softmax(dim=2).gather(2, text.labels.masked_fill(~counts, 0).unsqueeze(2))
        return each.squeeze(2).masked_fill(~counts, 0).sum(dim=1)
