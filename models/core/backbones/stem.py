"""A stem of convolutions, which takes the place of a ViT's patch embedding."""

from __future__ import annotations

from torch import Tensor, nn

from utils.errors import UserError


class ConvolutionalStem(nn.Sequential):
    """Convolutions with strides of 2 or 3 that turn each patch into a state, in place of one linear layer.

    They see edges and corners wherever these are in a patch. The linear layer sees each position of a pixel on its own, and a
    small model that is trained from scratch then needs thousands of steps to tell shapes apart. After Xiao et al.
    (arXiv:2106.14881), but with GroupNorm: BatchNorm would make the states of an image depend on the others of its batch.
    """

    def __init__(self, grid: tuple[int, int], patch_size: int, width: int):
        """``grid``: rows and columns of patches. ``width``: of the states; the channels double with each stride, up to ``width``.

        Raises:
            UserError: if ``patch_size`` is not a product of twos and threes.
        """
        strides = _strides(patch_size)
        layers: list[nn.Module] = []
        channels = 3
        for index, stride in enumerate(strides):
            following = max(8, width >> (len(strides) - 1 - index))
            # A window reaches one pixel beyond its patch on each side, so that the middles of both are the same.
            convolution = nn.Conv2d(channels, following, kernel_size=stride + 2, stride=stride, padding=1)
            layers += [convolution, nn.GroupNorm(1, following), nn.GELU()]
            channels = following
        super().__init__(*layers, nn.Conv2d(channels, width, 1))
        # The attributes of timm's patch embeddings that we use.
        self.patch_size = (patch_size, patch_size)
        self.grid_size = grid

    def forward(self, pixels: Tensor) -> Tensor:
        """States (I, P, D) of the patches of ``pixels`` (I, 3, H, W), row-major."""
        states: Tensor = super().forward(pixels)
        return states.flatten(2).transpose(1, 2)


def _strides(patch_size: int) -> list[int]:
    """The strides of the convolutions of a stem: the prime factors of the side of a patch.

    Raises:
        UserError: if there are others than 2 and 3.
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
            f"model.vision.patch_size: {patch_size} is not a product of twos and threes, which `stem: convolutions` needs; "
            f"use {near[0]} or {near[1]}, or `stem: linear`"
        )
    return strides
