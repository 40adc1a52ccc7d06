"""The batch types that data loaders produce and models consume, and the losses that models return. There is one module per task.

``models`` and ``dataset`` never import each other, but both import these types. Axes of tensors are N examples, L tokens, I
images, R regions, F frames, A answers, P patches, H and W pixels. Masks are boolean: True means that a token is attended to, or
that an example enters the loss. A batch contains tensors and ``records``, the locations of the records from which its examples
were made.
"""

from __future__ import annotations

from typing import NamedTuple

LONG = "long_"
"""Prefix of the name of a stream of long captions."""


class BatchSize(NamedTuple):
    """Size of the micro-batch of one rank.

    Attributes:
        key: the config key that sets the size.
        size: number of examples of the leading stream, the type of training data whose records are counted by epochs.
    """

    key: str
    size: int
