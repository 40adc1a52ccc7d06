"""What encoders exchange: token states with their mask, and visual concepts that share their images' patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Token states. ``states`` (N, L, D); ``mask`` (N, L) bool, True = attend, or (N, L, K) where each token has a mask of its
    own. Row 0 of each text is its [CLS]. What stands behind a text's end is to be read by nobody. ``tokens``: how many there
    are in all, or a few more, where the host knows (see :meth:`models.layout.Layout.packed`)."""

    states: Tensor
    mask: Tensor
    tokens: int | None = None

    @property
    def cls(self) -> Tensor:
        """The [CLS] states, (N, D)."""
        return self.states[:, 0]

    def rows(self, index: Tensor) -> Encoded:
        """The rows named by ``index`` (M,), in that order (``index_select``: its backward is deterministic on CPU)."""
        return Encoded(self.states.index_select(0, index), self.mask.index_select(0, index))

    @staticmethod
    def concat(parts: Sequence[Encoded]) -> Encoded:
        """Rows of ``parts`` one after the other; all must be padded to the same length."""
        known = [part.tokens for part in parts if part.tokens is not None]
        tokens = sum(known) if len(known) == len(parts) else None
        return Encoded(torch.cat([part.states for part in parts]), torch.cat([part.mask for part in parts]), tokens)

    def split(self, sizes: Sequence[int]) -> list[Encoded]:
        """The inverse of :meth:`concat`, but for ``tokens``."""
        return [
            Encoded(s, m) for s, m in zip(self.states.split(list(sizes)), self.mask.split(list(sizes)), strict=True)
        ]


@dataclass(frozen=True)
class Concepts:
    """Visual concepts (X²-VLM, section 3.2): rows that see the patches of N images, each through its own mask.

    ``patches`` (N, P, D) normed patch states; ``concept`` (R, D) the mean of a row's patches, its "[CLS] patch";
    ``patch_mask`` (R, P) bool and ``image_index`` (R,) int64 say which patches of which image a row sees. Both are None
    when row r is simply the whole of image r.
    """

    patches: Tensor
    concept: Tensor
    patch_mask: Tensor | None = None
    image_index: Tensor | None = None

    @staticmethod
    def whole(patches: Tensor) -> Concepts:
        """Whole images or videos from their patches (N, P, D)."""
        return Concepts(patches, patches.mean(dim=1))

    def tokens(self) -> Tensor:
        """The published layout (R, 1 + P, D): the concept token, then all patches of the row's image (a copy per row)."""
        patches = self.patches if self.image_index is None else self.patches.index_select(0, self.image_index)
        return torch.cat([self.concept.unsqueeze(1), patches], dim=1)
