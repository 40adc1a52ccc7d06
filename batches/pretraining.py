"""Batches for pre-training. There is one class for each stream, that is, for each type of training data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from batches import LONG
from batches.base import Batch
from batches.images import Pixels
from batches.texts import MaskedText, Text


@dataclass(frozen=True)
class LongTexts:
    """The long captions of N examples.

    Attributes:
        text: N long captions.
        valid: (N,) bool, True for valid examples that have both a long and a short caption.
    """

    text: MaskedText
    valid: Tensor


@dataclass(frozen=True)
class HardNegatives:
    """For each of N examples, up to J texts that are wrong but resemble the example's text.

    Attributes:
        text: N * J texts; the texts of example n start at index n * J.
        valid: (N, J) bool, True for texts that enter the loss.
    """

    text: Text
    valid: Tensor


@dataclass(frozen=True)
class ImageTextBatch:
    """Image-text pairs.

    Attributes:
        pixels: (N, 3, H, W) uint8, or normalised float.
        text: N captions.
        valid: (N,) bool, True for examples that enter the loss.
        long: long captions, which have separate losses.
        hard_negatives: wrong texts for each image.
    """

    pixels: Pixels
    text: MaskedText
    valid: Tensor
    long: LongTexts | None = None
    hard_negatives: HardNegatives | None = None


@dataclass(frozen=True)
class VideoTextBatch:
    """Video-text pairs.

    Attributes:
        pixels: (N, F, 3, H, W) uint8, or normalised float, the frames of each video in order.
        text: N captions.
        valid: (N,) bool, True for examples that enter the loss.
    """

    pixels: Pixels
    text: MaskedText
    valid: Tensor


@dataclass(frozen=True)
class RegionBatch:
    """Texts about regions, objects or whole images, and the I images that these texts share. Each image goes through the backbone
    only once (section 3.2 of the paper).

    The box losses ignore texts about several boxes and, by default, texts about whole images.

    Attributes:
        pixels: (I, 3, H, W) uint8, or normalised float.
        image_index: (R,) int64, the index of each region's image, in ascending order.
        patch_mask: (R, P) bool, True for the patches of each region, in row-major order; at least one per region.
        boxes_cxcywh: (R, 4) float32, as (cx, cy, w, h) relative to the image.
        is_image: (R,) bool, True if the text describes the whole image.
        several_boxes: (R,) bool, True if the text describes several boxes, all of whose patches are in ``patch_mask``.
        text: R texts.
        valid: (R,) bool, True for examples that enter the loss.
        long: long captions of the regions, which have separate losses.
        hard_negatives: wrong texts for each region.
    """

    pixels: Pixels
    image_index: Tensor
    patch_mask: Tensor
    boxes_cxcywh: Tensor
    is_image: Tensor
    several_boxes: Tensor
    text: MaskedText
    valid: Tensor
    long: LongTexts | None = None
    hard_negatives: HardNegatives | None = None


@dataclass(frozen=True)
class TextBatch:
    """Texts without an image.

    Attributes:
        text: N texts.
        valid: (N,) bool, True for examples that enter the loss.
    """

    text: MaskedText
    valid: Tensor


@dataclass(frozen=True)
class TranslationBatch:
    """Texts and their translations.

    Attributes:
        text: N texts.
        other: the N translations.
        valid: (N,) bool, True for examples that enter the loss.
    """

    text: MaskedText
    other: Text
    valid: Tensor


@dataclass(frozen=True)
class PretrainBatch(Batch):
    """A micro-batch of every pre-training stream. Streams that the run does not use are None.

    Attributes:
        images, regions, texts, videos, translations: the micro-batch of each stream.
        unmatched: names of the streams whose matching loss is not computed in this step, because their micro-batch comes from a
            noisy set of records; equal on all ranks, and valid for the long captions of the stream, too.
        not_started: names of the losses that no stream computes yet in this step (``data.losses_from``).
    """

    images: ImageTextBatch | None = None
    regions: RegionBatch | None = None
    texts: TextBatch | None = None
    videos: VideoTextBatch | None = None
    translations: TranslationBatch | None = None
    unmatched: tuple[str, ...] = ()
    not_started: tuple[str, ...] = ()

    def by_stream(self) -> dict[str, Any]:
        """Returns the batches of the streams in use, keyed by stream name.

        Long captions form a separate stream, such as ``long_images``, which shares all tensors except the texts. Hard negatives
        stay with the short texts.
        """
        batches: dict[str, Any] = {
            "images": self.images,
            "regions": self.regions,
            "texts": self.texts,
            "videos": self.videos,
            "translations": self.translations,
        }
        for name, batch in list(batches.items()):
            long = getattr(batch, "long", None)
            if long is not None:
                batches[LONG + name] = replace(batch, text=long.text, valid=long.valid, long=None, hard_negatives=None)
        return {name: batch for name, batch in batches.items() if batch is not None}
