"""A convolutional stem that replaces the patch embedding of a ViT."""

from __future__ import annotations

from torch import Tensor, nn

from utils.errors import UserError


class ConvolutionalStem(nn.Sequential):
    """Convolutions with strides of 2 or 3 that turn each patch into a state, instead of a single linear layer.

    Convolutions detect edges and corners anywhere in a patch. A linear layer has separate weights for each pixel position, so a
    small model that is trained from scratch needs thousands of steps to tell shapes apart. The stem follows Xiao et al.
    (arXiv:2106.14881), but uses GroupNorm, because BatchNorm would make the states of an image depend on the other images in the
    batch.
    """

    def __init__(self, grid: tuple[int, int], patch_size: int, width: int):
        """Builds the stem.

        Args:
            grid: rows and columns of patches.
            patch_size: side of a patch in pixels.
            width: width of the states. The number of channels doubles with each convolution, up to ``width``.

        Raises:
            UserError: if ``patch_size`` is not a product of twos and threes.
        """
        strides = _strides(patch_size)
        layers: list[nn.Module] = []
        channels = 3
        for index, stride in enumerate(strides):
            following = max(8, width >> (len(strides) - 1 - index))
            # A window extends one pixel beyond its patch on each side, so that the window and the patch have the same centre.
            convolution = nn.Conv2d(channels, following, kernel_size=stride + 2, stride=stride, padding=1)
            layers += [convolution, nn.GroupNorm(1, following), nn.GELU()]
            channels = following
        super().__init__(*layers, nn.Conv2d(channels, width, 1))
        # Attributes that timm's patch embeddings have and that we use.
        self.patch_size = (patch_size, patch_size)
        self.grid_size = grid

    def forward(self, pixels: Tensor) -> Tensor:
        """States (I, P, D) of the patches of ``pixels`` (I, 3, H, W), in row-major order."""
        states: Tensor = super().forward(pixels)
        return states.flatten(2).transpose(1, 2)


def _strides(patch_size: int) -> list[int]:
    """The strides of the stem's convolutions: the prime factors of the patch size.

    Raises:
        UserError: if there are prime factors other than 2 and 3.
    """
    strides, rest = [], patch_size
    for stride in (2, 3):
        while rest % stride == 0:
            strides.append(stride)
            rest //= stride
    if rest > 1:
        fits = [2**twos * 3**threes for twos in range(10) for threes in range(6)]
        near = [max(side for side in fits if side < patch_size), min(side for side in fits if side > patch_size)]
        raise UserError(
            f"{patch_size} is not a product of twos and threes, which `stem: convolutions` needs",
            where="model.vision.patch_size",
            remedy=f"use {near[0]} or {near[1]}, or `stem: linear`",
        )
    return strides
