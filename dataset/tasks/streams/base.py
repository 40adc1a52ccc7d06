"""What the streams of pre-training share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from dataset.records.schema import ImageIs, ImageKeys
from dataset.shards.samplers import OrderName
from utils.batch import BrokenRecord
from utils.config import Config


class StreamConfig(Config):
    """What every stream has."""

    files: list[str] = Field(
        description="Shards: files, glob patterns, or folders of *.jsonl, *.json (JSON lines) and *.tar."
    )
    batch_size: int = Field(ge=1, description="Rows of the stream in a micro-batch of one process.")
    weight: float = Field(1.0, ge=0, description="Factor of the stream's losses in the sum.")
    order: OrderName = Field(
        "random", description="random: any record next; sequential: whole shards dealt to ranks, for slow disks."
    )


class PictureStreamConfig(StreamConfig):
    """A stream whose records have a picture."""

    image_key: str = Field("image", description="Key of the picture in a JSON record.")
    image_is: ImageIs = Field(
        "auto", description="path, base64 (of the encoded file), or auto: told apart by its start."
    )
    image_root: str | None = Field(None, description="Folder of relative paths; null = the folder of the shard.")
    caption_key: str = Field("caption", description="Key of the caption of the whole picture.")

    def keys(self) -> ImageKeys:
        """How to find a record's picture."""
        root = Path(self.image_root).expanduser() if self.image_root is not None else None
        return ImageKeys(self.image_key, self.image_is, root)


class CleanSetConfig(Config):
    """A smaller set of better pairs, from which a whole step is taken at times; the other steps are the noisy ones, which have no
    matching loss (released for the 1B set).

    An epoch has as many steps as the stream's own set fills, those of both sets counted. So it reads the share
    1 - ``probability`` of the noisy set, each record at most once; which ones, differs from epoch to epoch.
    """

    files: list[str] = Field(description="Shards, as of the stream.")
    probability: float = Field(gt=0, lt=1, description="Chance of a step to be taken from this set.")
    caption_key: str | None = Field(None, description="Key of the caption; null: the stream's.")


@dataclass
class Report:
    """What happened while a batch was made."""

    places: list[str] = field(default_factory=list)
    broken: list[BrokenRecord] = field(default_factory=list)
    read: int = 0
