"""The setting ``train.parallel``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from utils.config import Config


class ShardingConfig(Config):
    """Groups of ranks that share a copy of the model (HSDP), such as the GPUs of one machine."""

    shard: int = Field(ge=1, description="ranks that share a copy of the model")
    replicate: int = Field(ge=1, description="number of copies; shard x replicate is the number of ranks")


ParallelConfig = Literal["auto", "ddp", "fsdp"] | ShardingConfig
