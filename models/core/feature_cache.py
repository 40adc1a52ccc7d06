"""States of the vision encoder's frozen blocks, computed once for each image and kept on disk.

What the first blocks make of an image depends on its pixels and on their weights alone, as long as they are frozen. So the states
are found by a hash of both, whatever the augmentation, the epoch or the run: an image that is cropped anew is computed anew.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.block_cache import BlockCache
from utils.errors import UserError
from utils.weight_file import digest

REMEDY = "give another folder in optim.freeze.cache.folder"
TOLERANCE = 1e-4
"""Greatest difference, relative to the largest state, between states that go through the cache and those that do not."""


class FeatureCache:
    """The states after the first ``blocks`` blocks of timm's ``backbone``, by image.

    Args:
        backbone: whose first blocks are frozen, in evaluation mode.
        blocks: at least one.
        folder: of the states, shared with other processes and runs.
        bound: the most bytes in it; what was used longest ago goes first.

    Raises:
        UserError: at the first call, if the backbone's blocks cannot be run apart, or ``bound`` has no room for
            an image's states.
    """

    def __init__(self, backbone: Any, blocks: int, folder: Path, bound: int):
        self.backbone, self.blocks, self.bound = backbone, blocks, bound
        self.cache = BlockCache(folder, bound, REMEDY)
        self._name: str | None = None
        """Digest of what the states depend on beside the pixels."""

    def states(self, pixels: Tensor, normalised: Tensor) -> Tensor:
        """Normed states (N, T, D) of images, as ``forward_features`` gives them.

        Args:
            pixels: (N, 3, H, W) uint8, by which images are found.
            normalised: the same as the backbone takes them, float.
        """
        if self._name is None:
            self._name = self._check(normalised)
        autocast = torch.get_autocast_dtype(pixels.device.type) if torch.is_autocast_enabled(pixels.device.type) else ""
        names = [self._of(image, str(autocast)) for image in pixels.cpu().numpy()]
        kept = [self.cache.read(name, self._bytes) for name in names]
        missing = [number for number, block in enumerate(kept) if block is None]
        states = normalised.new_empty(len(names), *self._shape)
        for number, block in enumerate(kept):
            if block is not None:
                state = np.frombuffer(block, np.float32).reshape(self._shape)
                states[number] = torch.from_numpy(state.copy()).to(states)  # torch takes no read-only memory
        if missing:
            fresh = self._first_blocks(normalised[missing]).float()
            states[missing] = fresh.to(states)
            for number, state in zip(missing, fresh.cpu().numpy(), strict=True):
                self.cache.bring(names[number], self._bytes, state.tobytes)
        return self._last_blocks(states)

    def _of(self, image: np.ndarray, autocast: str) -> str:
        return hashlib.sha256(f"{self._name} {autocast} {image.shape}\n".encode() + image.tobytes()).hexdigest()

    @torch.no_grad()
    def _first_blocks(self, normalised: Tensor) -> Tensor:
        """States (N, T, D) after the frozen blocks, those of [CLS] and the like first."""
        (found,) = self.backbone.forward_intermediates(
            normalised,
            indices=[self.blocks - 1],
            return_prefix_tokens=True,
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return found if isinstance(found, Tensor) else torch.cat([found[1], found[0]], dim=1)

    def _last_blocks(self, states: Tensor) -> Tensor:
        """The other blocks, and the norm."""
        recompute = getattr(self.backbone, "grad_checkpointing", False) and torch.is_grad_enabled()
        for block in self.backbone.blocks[self.blocks :]:
            states = checkpoint(block, states, use_reentrant=False) if recompute else block(states)
        normed: Tensor = self.backbone.norm(states)
        return normed

    @torch.no_grad()
    def _check(self, normalised: Tensor) -> str:
        """Compare one image's states with the backbone's own, and their size with the bound; returns the digest of the frozen
        weights."""
        image = normalised[:1]
        try:
            with _evaluating(self.backbone):
                first = self._first_blocks(image)
                apart, whole = self._last_blocks(first), self.backbone.forward_features(image)
        except (TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"optim.freeze.cache: this backbone cannot run its blocks apart ({error}); leave it out"
            ) from None
        if not (apart - whole).abs().max() <= TOLERANCE * whole.abs().max():
            raise UserError(
                "optim.freeze.cache: the blocks of this backbone depend on more than the states before them; leave it out"
            )
        self._shape = tuple(first.shape[1:])
        self._bytes = 4 * first[0].numel()
        if self.bound < (least := BlockCache.least_bound(self._bytes)):
            raise UserError(
                f"optim.freeze.cache.gigabytes is {self.bound / 1e9:g}, which is too few to keep any states; "
                f"give {math.ceil(least / 1e6) / 1e3:g} or more"
            )
        state = self.backbone.state_dict()
        return digest({name: value.cpu() for name, value in state.items() if is_before_block(name, self.blocks)})


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module and all in it are in evaluation mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def is_before_block(name: str, count: int) -> bool:
    """Whether a parameter of timm's backbone comes before block ``count``, from 0."""
    module, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) < count if module == "blocks" else module not in ("norm", "fc_norm")
