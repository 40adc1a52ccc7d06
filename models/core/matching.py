"""The matching loss (section 3.3 of the paper, eq. 2). Its negatives are sampled from the batch by similarity. Hard negatives, by
contrast, are wrong texts that come with the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.core import losses
from models.core.contrastive import ContrastiveHead
from models.core.fusion import FusionPass
from models.core.heads import MLPHead
from models.core.keys_values import KeysValues
from models.core.losses import EmbeddedPairs, SameGroup, at_least_float32
from models.core.packing import PackedTexts


class MatchingHead(MLPHead):
    """Classifies whether a text and an image match, from the fused [CLS] states (N, D). Class 1 of the logits (N, 2) is
    "matched"."""

    def __init__(self, width: int):
        super().__init__(width, 2)

    def pair_with_negatives(
        self,
        texts: PackedTexts,
        keys_values: KeysValues,
        pairs: EmbeddedPairs,
        contrastive: ContrastiveHead,
        hard_negatives: PackedTexts | None = None,
    ) -> tuple[list[FusionPass], Tensor]:
        """Samples negatives for N matched pairs.

        Args:
            texts: N texts.
            keys_values: keys and values of the images, one row per text.
            pairs: embeddings of the images and texts; negatives are sampled by their similarities.
            contrastive: the head that embedded the pairs.
            hard_negatives: N * J texts, from which the negative text of a pair can also be sampled.

        Returns:
            Three passes of N texts: the matched pairs, the images with negative texts, and the texts with negative images; and
            ``has_negatives`` (N,) for :meth:`loss`.
        """
        allowed = allowed_negatives(pairs.valid, pairs.group, pairs.same_group)
        all_texts = texts if hard_negatives is None else PackedTexts.concat([texts, hard_negatives])
        negative_image, negative_text = self.sample_negatives(contrastive, pairs, allowed)
        # On a GPU, the sampled texts stay padded, since the host does not know their lengths.
        passes = [
            FusionPass.cls(texts, keys_values),
            FusionPass.cls(all_texts.select(negative_text), keys_values),
            FusionPass.cls(texts, keys_values.select(negative_image)),
        ]
        return passes, allowed.any(dim=1)

    @torch.no_grad()
    def sample_negatives(
        self, contrastive: ContrastiveHead, pairs: EmbeddedPairs, allowed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Samples a negative image and a negative text for each of N pairs, with a preference for similar images and texts. They
        come from this rank's batch; texts can also come from the pair's J hard negatives.

        Args:
            contrastive: the head that embedded the pairs.
            pairs: the embeddings.
            allowed: (N, N) bool, as returned by :func:`allowed_negatives`.

        Returns:
            Two tensors (N,) int64. The first contains, for each text, the index of the pair whose image (for translations, whose
            first text) is the negative. The second contains, for each image, the index of the negative text in the concatenation
            of the N texts and the N * J hard negatives. A pair without allowed negatives gets its own index (:func:`sample`).
        """
        similarity = contrastive.similarity(pairs.image, pairs.text)
        negative_image = self.draw_negatives(similarity.t(), allowed)
        if pairs.hard_negatives is None or pairs.hard_valid is None:
            return negative_image, self.draw_negatives(similarity, allowed)
        count, per_pair, _ = pairs.hard_negatives.shape
        hard_similarity = losses.hard_similarity(pairs, contrastive.temperature)
        column = self.draw_negatives(
            torch.cat([similarity, hard_similarity], dim=1), torch.cat([allowed, pairs.hard_valid], dim=1)
        )
        first_hard = torch.arange(count, device=column.device) * per_pair
        # Column N + j of row n is pair n's hard negative j.
        return negative_image, torch.where(column < count, column, column + first_hard)

    def draw_negatives(self, similarity: Tensor, allowed: Tensor) -> Tensor:
        """Draws one negative for each row of ``similarity`` (N, M); returns its index (N,)."""
        return sample(negative_weights(similarity, allowed))

    def loss(self, fused: Sequence[Tensor], has_negatives: Tensor) -> Tensor:
        """Computes eq. 2.

        Args:
            fused: fused [CLS] states, each (N, D): first of the matched pairs, then of the pairs with negatives.
            has_negatives: (N,) bool. A pair without negatives in the batch is skipped entirely, since matched pairs alone would
                only teach the model to always predict "matched". It is skipped even if it has hard negative texts, because it
                has no negative image.
        """
        logits = self(torch.cat(list(fused)))
        matched = torch.arange(len(logits), device=logits.device) < len(has_negatives)
        return losses.matching(logits, matched, has_negatives.repeat(len(fused)))


def allowed_negatives(valid: Tensor, group: Tensor, same_group: SameGroup) -> Tensor:
    """Returns the symmetric mask (N, N) of the pairs that may serve as each other's negatives.

    Args:
        valid: (N,) bool, True for the pairs that enter the loss.
        group: (N,) int64, the group of each pair.
        same_group: how the loss treats two pairs of the same group. They are negatives of each other only with "negative".
    """
    allowed = valid.unsqueeze(0) & valid.unsqueeze(1)
    allowed = allowed & ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    if same_group != "negative":
        allowed = allowed & (group.unsqueeze(0) != group.unsqueeze(1))
    return allowed


def matching_count(valid: Tensor, group: Tensor, same_group: SameGroup) -> Tensor:
    """The number by which the matching loss is divided: three classified pairs for each pair that has negatives. For the
    arguments, see :func:`allowed_negatives`."""
    if (
        same_group == "negative"
    ):  # all valid pairs are negatives of each other: a shortcut, because counts are made in each step
        count = valid.sum()
        return 3 * count * (count > 1)
    return 3 * allowed_negatives(valid, group, same_group).any(dim=1).sum()


def negative_weights(similarity: Tensor, allowed: Tensor) -> Tensor:
    """Returns unnormalised sampling weights (N, M): the softmax over the row plus 1e-5, and zero where ``allowed`` is False (as
    in the authors' code).

    ``similarity`` (N, M) has already been divided by the temperature. Row i of the result weighs the negatives of pair i.
    """
    return (at_least_float32(similarity).softmax(dim=1) + 1e-5) * allowed


def sample(weights: Tensor) -> Tensor:
    """Samples an index (N,) int64 for each row of ``weights`` (N, M), in proportion to the weights.

    If all weights of a row are zero, the result is the index of the row, so that an unused text is not replaced by a longer one.
    Unlike ``multinomial``, this function does not force a device sync, and does not raise an error for a row of zeros.
    """
    noise = torch.empty_like(weights).exponential_()  # the largest of w / noise is at each index with a probability ~ w
    row = torch.arange(len(weights), device=weights.device)
    return torch.where(weights.any(dim=1), (weights / noise).argmax(dim=1), row)
