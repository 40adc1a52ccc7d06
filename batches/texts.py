"""Texts as token ids."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Text:
    """Texts, right-padded to the longest text of the batch.

    Attributes:
        ids: (N, L) int64, token ids.
        mask: (N, L) bool, True = token, False = padding. Every text has at least one token.
        token_count: total number of tokens, or a slightly larger number; None if the host does not know it.
    """

    ids: Tensor
    mask: Tensor
    token_count: int | None = None


@dataclass(frozen=True)
class MaskedText:
    """Texts and a masked copy of each text (section 3.3 of the paper, eq. 3), right-padded to the longest text of the batch.

    If the host knows the numbers of tokens and of masked tokens, each step saves a device sync.

    Attributes:
        ids: (N, L) int64, token ids.
        mask: (N, L) bool, True = token, False = padding. Every text has at least one token.
        masked_ids: (N, L) int64, the ids after masking.
        positions: (N, U) int64, masked positions, padded with zeros at the end.
        labels: (N, U) int64, the original ids at these positions; :data:`IGNORE` in padding and in invalid examples.
        text_id: (N,) int64, equal if and only if the texts are equal, on all ranks.
        token_count: total number of tokens, or a slightly larger number; None if the host does not know it.
        masked_count: total number of masked tokens, or a slightly larger number; None if the host does not know it.
    """

    ids: Tensor
    mask: Tensor
    masked_ids: Tensor
    positions: Tensor
    labels: Tensor
    text_id: Tensor
    token_count: int | None = None
    masked_count: int | None = None

    def plain(self) -> Text:
        """Returns the unmasked texts."""
        return Text(self.ids, self.mask, self.token_count)

    def masked_copy(self) -> Text:
        """Returns the masked copies."""
        return Text(self.masked_ids, self.mask, self.token_count)
