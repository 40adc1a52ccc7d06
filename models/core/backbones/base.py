"""The interface of vision backbones. Each library has an adapter, and only the adapters use the internals of a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from batches.images import Grid, NativeImages, Pixels
from models.config import VisionConfig
from models.flops import counted_flops
from utils.errors import UserError
from utils.image_size import ImageSize, NativeSize, grid_of, sides_of
from utils.tensors import on_meta

RESET_ALL = (
    "or add configs/presets/other_vision.yaml as the last entry of `base`, which resets all keys that are set for another "
    "backbone"
)
"""Second part of the remedy if a config has sizes that a backbone does not take."""


_OWN = {"layer_scale": "backbone", "stem": "linear", "positions": "backbone"}
"""Values of the keys of ``model.vision`` with which a backbone stays as it is; for all other keys, the value is null."""


def keys_not_taken(backbone: str, keys: Sequence[str]) -> UserError:
    """Returns the error for ``keys`` of ``model.vision`` that are set but that a backbone does not take."""
    own = ", ".join(f"{key}={_OWN.get(key, 'null')}" for key in keys)
    return UserError(
        f"{backbone!r} does not take {', '.join(keys)}", where="model.vision", remedy=f"set {own}, {RESET_ALL}"
    )


class PixelStatistics(NamedTuple):
    """Mean and standard deviation of the red, green and blue values, in 0..1, with which a backbone was trained."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Library(NamedTuple):
    """A library of backbones, and the functions of its adapter.

    Attributes:
        prefix: prefix of its models' names in a config; empty for the library that handles all other names.
        adapter: builds a backbone from the config of the vision encoder.
        pixels_of: returns the pixel statistics of a model, given its name in the config.
        pretrained_weights: returns the weights published under a name (without the prefix), keyed by the parameter names of
            :attr:`VisionBackbone.module`. The second argument is the config key to name in error messages.
        save_config: copies the files that are needed to build a model into a folder, given the model's name in the config. The
            path of the folder then replaces the name. None if a name is always enough to build a model.
    """

    prefix: str
    adapter: Callable[[VisionConfig], VisionBackbone]
    pixels_of: Callable[[str], PixelStatistics]
    pretrained_weights: Callable[[str, str], dict[str, Tensor]]
    save_config: Callable[[str, Path], None] | None = None


class VisionBackbone(ABC):
    """A backbone that turns an image into a grid of patch states after the last norm.

    Attributes:
        module: the library's model; its parameters have the library's names.
        name: the name in the config, for error messages.
        blocks: the blocks in the order in which they run, for freezing and the feature cache.
        width: width D of the patch states.
        patch_size: side of a patch in pixels; for a convolutional model, side of the area that a state covers.
        grid: rows and columns of patches; if images keep their aspect ratio, the grid of a square image.
        max_patches: P, the number of patches of an image, with padding if images keep their aspect ratio.
        native: the image size if images keep their aspect ratio, otherwise None.
    """

    module: Any  # attributes of models and blocks differ between libraries
    blocks: list[Any]

    def __init__(
        self,
        module: nn.Module,
        name: str,
        blocks: Sequence[nn.Module],
        width: int,
        patch_size: int,
        image_size: ImageSize,
    ):
        check_image_size(image_size, patch_size)
        self.native = image_size if isinstance(image_size, NativeSize) else None
        self.module, self.name, self.blocks = module, name, list(blocks)
        self.width, self.patch_size, self.grid = width, patch_size, grid_of(image_size, patch_size)
        self.max_patches = self.grid[0] * self.grid[1] if self.native is None else self.native.max_patches

    @abstractmethod
    def states(self, pixels: Tensor) -> Tensor:
        """States (I, prefix + P, D) of normalised ``pixels`` (I, 3, H, W) after the last norm: prefix tokens such as [CLS], then
        the P patches in row-major order."""

    def native_states(self, images: NativeImages) -> Tensor:
        """States (I, prefix + P, D) of normalised ``images`` of different shapes after the last norm: prefix tokens such as
        [CLS], then P patches. The states of padding are undefined.

        Only called if the backbone was built with a native image size; a backbone that cannot encode such images raises
        :class:`UserError` when it is built.
        """
        raise NotImplementedError

    @abstractmethod
    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Turns gradient checkpointing of the blocks on or off.

        Raises:
            UserError: if the backbone does not support gradient checkpointing.
        """

    @abstractmethod
    def compile(self, **options: Any) -> None:
        """Compiles the backbone. Parameter names do not change."""

    def call_projections(self) -> None:  # noqa: B027 - most backbones call their linear layers anyway
        """Makes each block call its linear layers, so that adapters on these layers take effect."""

    def targets(self, name: str) -> list[str]:
        """Names of the parameters to which the tensor ``name`` of a weight file is copied. There can be several, because some
        files contain only one tensor for a parameter of which each block has a copy."""
        return [name]

    def resized(self, name: str, tensor: Tensor) -> Tensor:
        """Returns the parameter ``name``, resized from a different patch grid to the grid of this backbone. Parameters that do
        not depend on the grid are returned unchanged.

        Raises:
            ValueError: if ``tensor`` cannot be resized.
        """
        return tensor

    def step_flops(self) -> int:
        """FLOPs of a training step for one image."""
        backbone = on_meta(self, self.module)
        backbone.set_gradient_checkpointing(False)
        return counted_flops(lambda: backbone.patches(backbone.image()))

    def check(self) -> None:
        """Runs the backbone on an image without content.

        Raises:
            UserError: if the backbone does not return exactly one state per patch.
        """
        copy = on_meta(self, self.module)
        expected = (1, self.max_patches, self.width)
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                found: object = tuple(copy.patches(copy.image()).shape)
        except Exception as error:  # exceptions differ between libraries and models
            found = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
        if found != expected:
            raise UserError(
                f"{self.name!r} does not return a state for each patch with this config ({found} instead of "
                f"{expected})",
                where="model.vision.backbone",
                remedy="choose another model, or change model.vision.image_size, stem and positions "
                "(configs/presets/other_vision.yaml resets what is set for another backbone)",
            )

    def image(self) -> Pixels:
        """Returns an image (1, 3, H, W) without content, on the device of the parameters. If images keep their aspect ratio, it
        is a square."""
        height, width = (cells * self.patch_size for cells in self.grid)
        image = torch.empty(1, 3, height, width, device=next(self.module.parameters()).device)
        return image if self.native is None else NativeImages.of([image[0]], self.native)

    def patches(self, pixels: Pixels) -> Tensor:
        """Patch states (I, P, D) of normalised ``pixels`` (I, 3, H, W) after the last norm, in row-major order. The states of
        padding, which follows the patches of images that keep their aspect ratio, are zero."""
        if isinstance(pixels, NativeImages):
            states = self.native_states(pixels)
            patches = states[:, states.shape[1] - pixels.patches.shape[1] :]
            return patches.masked_fill(~pixels.mask().unsqueeze(2), 0)
        states = self.states(pixels)
        rows, columns = self.grid_of(pixels)
        return states[:, states.shape[1] - rows * columns :]

    def grid_of(self, pixels: Tensor) -> Grid:
        """Returns the rows and columns of patches of images (I, 3, H, W)."""
        return (
            self.grid
            if self.native is None
            else (pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size)
        )

    def names_before(self, block: int) -> set[str]:
        """Names of the parameters that are used before the block with the index ``block`` or, if ``block`` is the number of
        blocks, before the end of the last block. Libraries define the modules of a model in the order in which they run, so a
        layer between two stages is used before the second stage."""
        names, identities = zip(
            *((name, id(parameter)) for name, parameter in self.module.named_parameters()), strict=True
        )
        later = {id(parameter) for each in self.blocks[block:] for parameter in each.parameters()}
        if later:
            end = next(index for index, identity in enumerate(identities) if identity in later)
        else:
            in_blocks = {id(parameter) for each in self.blocks for parameter in each.parameters()}
            end = 1 + max(index for index, identity in enumerate(identities) if identity in in_blocks)
        return set(names[:end])

    def output_of_block(self, pixels: Pixels, block: int) -> Tensor:
        """Runs the backbone up to the block with the index ``block``, and returns the output of this block."""
        found: list[Any] = []

        def stop(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append(output)
            raise _StoppedError

        handle = self.blocks[block].register_forward_hook(stop)
        try:
            with torch.compiler.set_stance("force_eager"):
                self.patches(pixels)
        except _StoppedError:
            pass
        finally:
            handle.remove()
        assert found, f"block {block} of {self.name} did not run"
        output: Tensor = found[0][0] if isinstance(found[0], tuple) else found[0]
        return output

    def patches_after_block(self, pixels: Pixels, block: int, output: Tensor) -> Tensor:
        """Computes the patch states (I, P, D) from the ``output`` of the block with the index ``block``. This block and earlier
        blocks do not run."""
        with self._replaced(block, output), torch.compiler.set_stance("force_eager"):
            return self.patches(pixels)

    @contextmanager
    def _replaced(self, block: int, output: Tensor) -> Iterator[None]:
        """A context in which the blocks before ``block`` return their input, and ``block`` returns ``output``."""
        for each in self.blocks[:block]:
            each.forward = _first_input
        self.blocks[block].forward = lambda *inputs, **options: output
        try:
            yield
        finally:
            for each in self.blocks[: block + 1]:
                del each.forward


class _StoppedError(Exception):
    """Raised to end a forward pass whose result is not needed."""


def _first_input(*inputs: Any, **options: Any) -> Any:
    return inputs[0] if inputs else options["hidden_states"]


def check_image_size(image_size: ImageSize, patch_size: int) -> None:
    """Raises :class:`UserError` if a side of the image is not a multiple of ``patch_size``. Not every library checks this."""
    if isinstance(image_size, NativeSize):
        if image_size.patch_size != patch_size:
            raise UserError(
                f"image_size.patch_size is {image_size.patch_size}, but the backbone has patches of {patch_size} pixels",
                where="model.vision",
                remedy=f"set it to {patch_size}",
            )
        return
    for side in sides_of(image_size):
        if side % patch_size:
            below = side - side % patch_size
            sizes = " or ".join(str(size) for size in (below, below + patch_size) if size)
            raise UserError(
                f"image_size {side} is not a multiple of patch_size {patch_size}",
                where="model.vision",
                remedy=f"{sizes} would work",
            )
