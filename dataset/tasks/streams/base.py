"""What the streams of pre-training share."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

import numpy as np
from pydantic import Field

from dataset.records.schema import ImageIs, ImageKeys, RawRecord
from dataset.shards.samplers import OrderName, RecordSource
from dataset.tasks.account import Account
from utils.config import Config
from utils.files import expanded
from utils.inputs import InputFolder, InputShards

E = TypeVar("E")


class StreamConfig(Config):
    """What every stream has."""

    files: InputShards = Field(
        description="shards: files, glob patterns, or folders of *.jsonl, *.json (JSON lines) and *.tar"
    )
    batch_size: int = Field(ge=1, description="examples of the stream in a micro-batch of one rank")
    weight: float = Field(1.0, ge=0, description="factor of the stream's losses in the sum of all losses")
    order: OrderName = Field(
        "random",
        description="random: records in any order; sequential: each rank reads whole shards of its own, for slow disks",
    )

    records_key: ClassVar[str] = "batch_size"
    """The key that sets how many records a rank reads for a micro-batch."""

    @property
    def records_per_batch(self) -> int:
        """Records that a rank reads for a micro-batch."""
        return int(getattr(self, self.records_key))


class ImageRecordsConfig(StreamConfig):
    """A stream whose records have an image."""

    image_key: str = Field("image", description="key of the image in a JSON record")
    image_is: ImageIs = Field(
        "auto",
        description="path: of a file; base64: of the encoded file; auto: whichever of these its first characters show",
    )
    image_root: InputFolder | None = Field(
        None, description="folder that relative paths start from; null: the folder of the shard"
    )
    caption_key: str = Field("caption", description="key of the caption of the whole image")

    def keys(self) -> ImageKeys:
        """How to find a record's image."""
        root = expanded(self.image_root) if self.image_root is not None else None
        return ImageKeys(self.image_key, self.image_is, root)


class CleanSetConfig(Config):
    """A smaller set of better pairs, from which a whole step is taken at times; the other steps are the noisy ones, which have no
    matching loss (released for the 1B set).

    An epoch has as many steps as the stream's own set fills, those of both sets counted. So it reads the share
    1 - ``probability`` of the noisy set, each record at most once; which ones, differs from epoch to epoch.
    """

    files: InputShards = Field(description="shards of the clean pairs, in the forms of the stream's `files`")
    probability: float = Field(gt=0, lt=1, description="chance that a step reads this set")
    caption_key: str | None = Field(None, description="key of the caption; null: the stream's")


def read_examples(
    source: RecordSource, number: int, account: Account, example: Callable[[RawRecord, np.random.Generator], E | None]
) -> list[E | None]:
    """An example of each record of micro-batch ``number``: see :meth:`~dataset.tasks.account.Account.examples`."""
    places: dict[int, str] = {}

    def of_record(index: int, rng: np.random.Generator) -> E | None:
        raw = source.shards.read(index)
        places[index] = raw.place
        return example(raw, rng)

    # The place of a record that was read is known; in a tar, looking it up reads the file again.
    place = source.shards.place
    return account.examples(
        source.name, source.samples(number), of_record, lambda index: places.get(index) or place(index)
    )
