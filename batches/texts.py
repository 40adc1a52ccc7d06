"""Texts as token ids."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Text:
    """Texts padded on the right to the longest of the batch: ``ids`` (N, L) int64; ``mask`` (N, L) bool, True = token.
    ``tokens``: number of tokens in all texts, or a little more; None: the host does not know it."""

    ids: Tensor
    mask: Tensor
    tokens: int | None = None


@dataclass(frozen=True)
class MaskedText:
    """Texts and a masked copy of each (X²-VLM, section 3.3, eq. 3), padded on the right to the longest of the batch.

    ``ids`` (N, L) int64: token ids. ``mask`` (N, L) bool: True = token, False = padding; every text has at least one token.
    ``masked_ids`` (N, L) int64: the ids after masking. ``positions`` (N, W) int64: masked positions, unused ones last and 0.
    ``labels`` (N, W) int64: the original ids; :data:`IGNORE` where unused, and everywhere in examples that do not count.
    ``text_id`` (N,) int64: equal exactly for equal texts. ``tokens``, ``masked``: number of tokens and of masked tokens in all
    texts, or a little more; None: unknown to the host. With them, no step waits for a GPU to count.
    """

    ids: Tensor
    mask: Tensor
    masked_ids: Tensor
    positions: Tensor
    labels: Tensor
    text_id: Tensor
    tokens: int | None = None
    masked: int | None = None

    def plain(self) -> Text:
        """The unmasked texts."""
        return Text(self.ids, self.mask, self.tokens)

    def masked_copy(self) -> Text:
        """The masked copies."""
        return Text(self.masked_ids, self.mask, self.tokens)
