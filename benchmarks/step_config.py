"""Config, model and batches for benchmarks of a pre-training step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from batches.pretraining import PretrainBatch
from benchmarks.synthetic import pretrain_batch
from models.pretraining.model import PretrainModel
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from utils import distributed
from utils.config import load_config
from utils.config_files import read_config
from utils.errors import UserError

VOCABULARY = 30522
"""Vocabulary size of the model if the config would take it from a tokenizer."""

CONFIG = Path("configs/pretrain/base_4m.yaml")
"""The default config."""

SMALL = (
    Path("configs/demo/pretrain.yaml"),
    ["data.images.batch_size=4", "data.regions.batch_size=6", "data.regions.max_images=2"],
)
"""Config and overrides for ``--small``, a smoke test of a benchmark."""

EXAMPLES = {
    "images": "pairs of image and text",
    "regions": "regions",
    "videos": "pairs of video and text",
    "texts": "texts alone",
    "translations": "pairs of texts",
}
"""What the examples of each stream are called in the output."""

LENGTH_FACTORS = (0.85, 1.05, 0.95, 1.15)
"""Factor on the mean text length of each batch. With these factors, the numbers of tokens, rounded up for compiled encoders, vary
from step to step, as in a run."""


def config_for(path: Path, overrides: Sequence[str]) -> PretrainConfig:
    """Loads a pre-training config.

    Raises:
        UserError: if the config is for a different task, or :func:`~utils.config.load_config` raises it.
    """
    task = read_config(path, overrides).values.get("task")
    if task not in (None, "pretrain"):
        raise UserError(
            f"task is {task!r}, but this benchmark needs pre-training",
            where=path,
            remedy=f"use a config such as {CONFIG}",
        )
    return load_config(path, overrides, PretrainConfig)


def build(config: PretrainConfig) -> PretrainModel:
    """Builds the model of a config, with random weights."""
    return PretrainTask.build_model(config, None if config.model.text.knows_vocabulary else VOCABULARY)


def batches_for(config: PretrainConfig, model: PretrainModel, *, static: bool) -> list[PretrainBatch]:
    """Returns one micro-batch per factor in :data:`LENGTH_FACTORS`, with the config's streams and sizes, and texts of realistic
    lengths.

    If ``static``, the same texts are padded as for ``train.compile``.
    """
    vocabulary = len(model.text.word_embeddings)
    return [
        pretrain_batch(config.data, model.vision, vocabulary, seed=seed, length_factor=factor, static=static)
        for seed, factor in enumerate(LENGTH_FACTORS)
    ]


def describe_step(config: PretrainConfig) -> str:
    """Returns a line that lists the examples of a step."""
    data, video = config.data, config.model.vision.video
    streams = {name: f"{stream.batch_size} {EXAMPLES[name]}" for name, stream in data.streams().items()}
    if data.regions is not None:
        streams["regions"] += f" of {data.regions.max_images} images"
    if video is not None and data.videos is not None:
        streams["videos"] += f" of {video.frames} frames"
    accumulation = config.plan(distributed.world_size()).accumulation
    times = f"{accumulation} times " if accumulation > 1 else ""
    return f"a step: {times}" + ", ".join(streams.values())


def describe_other_steps(config: PretrainConfig) -> str:
    """Returns a line about steps of a run that differ from the benchmark's steps, or "" if all steps are the same."""
    data = config.data
    conditions = {
        "data.images.clean": data.images is not None and data.images.clean is not None,
        "data.videos.clean": data.videos is not None and data.videos.clean is not None,
        "data.matching_steps": data.matching_steps is not None,
        "data.losses_from": bool(data.losses_from),
    }
    keys = [key for key, is_set in conditions.items() if is_set]
    if not keys:
        return ""
    omit = "omits" if len(keys) == 1 else "omit"
    return f"with all losses, some of which {' and '.join(keys)} {omit} in some steps of a run"
