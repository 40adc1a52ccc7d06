"""The contrastive loss between images and texts (section 3.3 of the paper, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import MAX_TEMPERATURE, AligningConfig
from models.core import losses
from models.core.losses import EmbeddedPairs, SameGroup
from models.core.packing import PackedTexts
from models.core.vision import Concepts
from utils import distributed
from utils.errors import UserError


class EncodedTexts(Protocol):
    """N texts, packed or padded."""

    @property
    def cls(self) -> Tensor:
        """The states of [CLS], (N, D)."""

    def padded_with_mask(self) -> tuple[Tensor, Tensor]:
        """The token states (N, L, D), and their mask (N, L) bool, True = token."""


class ContrastiveHead(nn.Module):
    """Projects images and texts to the joint embedding space, and computes the contrastive loss with a learned temperature."""

    bias: nn.Parameter | None

    def __init__(self, model: AligningConfig, vision_width: int, text_width: int):
        super().__init__()
        self.config = config = model.contrastive
        self.vision_proj = nn.Linear(vision_width, model.embed_dim)
        self.text_proj = nn.Linear(text_width, model.embed_dim)
        if config.text_projection == "identity":
            if text_width != model.embed_dim:
                raise UserError(
                    f"model.contrastive.text_projection is identity, but model.embed_dim is {model.embed_dim} and the "
                    f"text encoder's width {text_width}",
                    remedy=f"set embed_dim to {text_width}",
                )
            nn.init.eye_(self.text_proj.weight)
            nn.init.zeros_(self.text_proj.bias)
        self.temperature = nn.Parameter(torch.tensor(model.temperature))
        self.register_parameter("bias", nn.Parameter(torch.tensor(config.bias)) if config.loss == "sigmoid" else None)
        self.cached: Iterator[Callable[[EmbeddedPairs, Sequence[Tensor]], Tensor]] | None = None
        """With gradient caching (:mod:`models.core.gradient_cache`), functions that replace the losses of the next forward
        passes. Their arguments are the pairs of a pass and :attr:`scalars`."""

    def embed_pairs(
        self,
        images: Concepts | PackedTexts,
        texts: PackedTexts,
        valid: Tensor,
        group: Tensor,
        same_group: SameGroup,
        hard_negatives: PackedTexts | None = None,
        hard_valid: Tensor | None = None,
    ) -> EmbeddedPairs:
        """Embeds N pairs.

        Args:
            images: N images, videos or regions; for translations, N texts.
            texts: N texts.
            valid, group, same_group, hard_valid: see :class:`EmbeddedPairs`.
            hard_negatives: N * J texts; the J texts of pair n begin at n * J.
        """
        first = self.embed_text(images) if isinstance(images, PackedTexts) else self.embed_image(images)
        hard = None if hard_negatives is None else self.embed_text(hard_negatives).unflatten(0, (len(valid), -1))
        return EmbeddedPairs(first, self.embed_text(texts), valid, group, same_group, hard, hard_valid)

    def embed_image(self, concepts: Concepts) -> Tensor:
        """Normalised embeddings (R, E) of visual concepts (images, videos or regions), in float32 or higher precision."""
        return F.normalize(losses.at_least_float32(self.vision_proj(concepts.mean)), dim=1)

    def embed_text(self, texts: EncodedTexts) -> Tensor:
        """Normalised embeddings (N, E) of texts, in float32 or higher precision. ``config.text`` says which state represents a
        text."""
        if self.config.text == "cls":
            state = texts.cls
        else:
            states, mask = texts.padded_with_mask()
            lengths = mask.sum(dim=1).clamp(min=1)
            if self.config.text == "last":
                state = states[torch.arange(states.shape[0], device=states.device), lengths - 1]
            else:
                state = states.masked_fill(~mask.unsqueeze(2), 0).sum(dim=1) / lengths.unsqueeze(1)
        return F.normalize(losses.at_least_float32(self.text_proj(state)), dim=1)

    @property
    def scalars(self) -> tuple[nn.Parameter, ...]:
        """The parameters of the loss: the temperature and, with the sigmoid loss, the bias."""
        return (self.temperature,) if self.bias is None else (self.temperature, self.bias)

    def clamp_temperature(self) -> None:
        """Clamps the temperature to its range (0.001 to 0.5 in the authors' code). Call this method before each forward pass."""
        with torch.no_grad():
            self.temperature.clamp_(self.config.min_temperature, MAX_TEMPERATURE)

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Cosine similarities (R, N), divided by the temperature, between all embeddings ``image`` (R, E) and ``text`` (N, E)."""
        with torch.autocast(image.device.type, enabled=False):
            return image @ text.t() / self.temperature

    def start_loss(self, pairs: EmbeddedPairs) -> Callable[[], Tensor]:
        """Starts computing the contrastive loss (eq. 1, or the sigmoid loss). Each valid pair of this rank is compared with the
        pairs of all ranks, and the losses are summed over this rank's valid pairs.

        The method returns while the embeddings (N, E) of all ranks are still being gathered, so that the caller can start other
        work. The returned function waits for the embeddings and computes the loss. The gradient with respect to an embedding
        is the gradient of the single-process loss, or 1/ranks of this gradient, depending on ``config.gradient``.
        """
        if self.cached is not None:
            return partial(next(self.cached), pairs, self.scalars)
        local = pairs
        if self.config.gradient == "released":
            factor = 1 / distributed.world_size()
            local = pairs.with_embeddings([distributed.scale_gradient(each, factor) for each in pairs.embeddings()])
        image, text, valid, group, same_group, *_ = local
        wait_for_embeddings = distributed.start_gather(torch.cat([image, text], dim=1))
        wait_for_groups = distributed.start_gather(torch.stack([valid.long(), group], dim=1))

        def finish() -> Tensor:
            all_images, all_texts = wait_for_embeddings().split(image.shape[1], dim=1)
            all_valid, all_groups = wait_for_groups().unbind(dim=1)
            all_ranks = EmbeddedPairs(all_images, all_texts, all_valid.bool(), all_groups, same_group)
            offset = distributed.rank() * len(valid)  # all ranks have the same number of pairs
            with torch.autocast(image.device.type, enabled=False):
                if self.bias is not None:
                    return losses.sigmoid_contrastive(local, all_ranks, offset, self.temperature, self.bias)
                return losses.contrastive(local, all_ranks, offset, self.temperature)

        return finish
