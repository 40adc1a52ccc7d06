"""Self-critical training for captioning (Rennie et al. 2017), which reinforces sampled captions that get a higher reward than the
other captions of their image.

Self-critical training is an optional second stage after training with cross-entropy. Strong captioning systems use it, but the
paper does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from batches.base import IGNORE, to_device
from batches.captioning import CaptioningBatch, LeftToRightText
from batches.losses import Losses, Term, Work
from models.config import DecodingConfig, SamplingConfig, SelfCriticalConfig
from models.core.generation import Generated, sample
from models.core.keys_values import KeysValues
from models.core.losses import at_least_float32
from models.flops import frames_of
from models.tasks.captioning import CaptionDecoder, CaptioningModel, CaptionTokens

Reward = Callable[[Sequence[Sequence[int]], Sequence[tuple[str, ...]]], Sequence[float]]
"""Computes the rewards of captions from their token ids (including the end token, if there is one) and their references."""


class SelfCriticalModel(CaptioningModel):
    """A captioning model whose loss is the negative expected reward.

    Call :meth:`set_reward` before the first step.
    """

    critic: SelfCriticalConfig
    reward: Reward
    tokens: CaptionTokens

    def set_reward(self, reward: Reward, tokens: CaptionTokens, config: SelfCriticalConfig) -> None:
        """Sets the reward function, the special tokens, and the sampling settings."""
        self.reward, self.tokens, self.critic = reward, tokens, config

    def forward(self, batch: CaptioningBatch) -> Losses:
        """Returns two losses: ``policy``, which has the gradient of the negative expected reward, and ``reward``, the mean
        reward, which has weight 0 and is only logged."""
        count, samples = len(batch.pixels), self.critic.samples
        images = self.project_images(batch.pixels)
        captions = self._captions(self._sample(images))
        references = [image_references for image_references in batch.references for _ in range(samples)]
        rewards = torch.tensor(list(self.reward(captions, references)), device=batch.pixels.device).view(count, samples)
        # The baseline is the mean reward of the other captions, (sum - reward) / (samples - 1), which needs no extra pass.
        advantage = (rewards - rewards.mean(dim=1, keepdim=True)) * (samples / (samples - 1))
        likelihood = self._likelihood(captions, images).view(count, samples)
        policy = -(advantage * likelihood).mean(dim=1).masked_fill(~batch.valid, 0).sum()
        mean = rewards.mean(dim=1).masked_fill(~batch.valid, 0).sum()
        return {"policy": Term(policy, 1.0), "reward": Term(mean, 0.0)}

    def counts(self, batch: CaptioningBatch) -> dict[str, Tensor]:
        """Returns the number by which both losses are divided: the number of valid images."""
        return {"policy": batch.valid.sum(), "reward": batch.valid.sum()}

    def work(self, batch: CaptioningBatch) -> Work:
        """See :class:`engine.task.TaskModel`. The lengths of sampled captions are unknown before the step."""
        images = int(batch.valid.sum())
        return Work(images, images * frames_of(batch.pixels), math.nan, math.nan)

    @torch.no_grad()
    def _sample(self, images: KeysValues) -> Generated:
        """Samples captions without dropout. The captions of an image are adjacent."""
        config = DecodingConfig(
            beams=1,
            min_length=1,
            max_length=self.critic.max_length,
            no_repeat_ngram=0,
            sampling=SamplingConfig(temperature=self.critic.temperature),
        )
        device, captions = images.device, len(images) * self.critic.samples
        prompt = torch.tensor(self.tokens.prompt, device=device).expand(captions, -1)
        uniforms = torch.rand(captions, config.max_length, device=device)
        training = self.training
        self.eval()
        try:
            return sample(CaptionDecoder(self, images, self.tokens.mask), prompt, self.tokens.end, config, uniforms)
        finally:
            self.train(training)

    def _captions(self, generated: Generated) -> list[list[int]]:
        """Token ids of the captions, including the end token, if there is one."""
        return [
            [*(token for token in tokens if token != IGNORE), *([self.tokens.end] if ended else [])]
            for tokens, ended in zip(generated.tokens.tolist(), generated.ended.tolist(), strict=True)
        ]

    def _likelihood(self, captions: list[list[int]], images: KeysValues) -> Tensor:
        """Differentiable log-likelihoods (N * samples,) of the captions at the sampling temperature."""
        prompt = self.tokens.prompt
        texts = [[*prompt, *tokens] for tokens in captions]
        predicted = [list(range(len(prompt), len(text))) for text in texts]
        text = to_device(LeftToRightText.of(texts, predicted, self.tokens.mask, self.tokens.pad), images.device)
        logits = self.logits(text, images) / self.critic.temperature
        labelled = text.labels != IGNORE
        labels = text.labels.masked_fill(~labelled, 0).unsqueeze(2)
        per_token = at_least_float32(logits).log_softmax(dim=2).gather(2, labels).squeeze(2)
        return per_token.masked_fill(~labelled, 0).sum(dim=1)
