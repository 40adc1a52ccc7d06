"""Divides the images of a data set into parts by the hash of their names, so that all code agrees on the images of a part."""

from __future__ import annotations

import hashlib

VQA2_SELECTION = (0.0, 0.05)
"""The part of VQA v2's validation images on which ``configs/presets/vqa.yaml`` selects the weights. Pre-training excludes these
images; fine-tuning trains on the others."""


def is_in_share(name: str, share: tuple[float, float]) -> bool:
    """Returns True if an image belongs to a part of the images.

    Args:
        name: name of the image in its data set, such as ``val2014/COCO_val2014_000000000042.jpg``.
        share: the hash of a name is a number in 0..1; images from the first number up to the second are in the part.
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return share[0] <= int.from_bytes(digest, "big") / 2**64 < share[1]
