"""The settings that a model needs in addition to its weights: sizes, text lengths, and how captions and answers are decoded.

A run's ``config.yaml`` contains all of them, together with settings that only training needs. :meth:`x2vlm.model.Model.save`
writes only the settings listed here, in the format of a run's config.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, SerializeAsAny

from dataset.config import CaptioningDataConfig, TextLimits, VideoReadingConfig, VQADataConfig
from engine.saved_config import read_saved_config
from models.config import (
    AnswerBeamConfig,
    AnswerDecoding,
    DecodingConfig,
    ModelConfig,
    Ranking,
    RerankingScore,
)
from tasks import TASKS
from tasks.kinds import TaskSource, find_task, model_section
from utils.config import Config, bind, with_previous_defaults
from utils.errors import UserError


class DataSettings(Config):
    """Settings for converting texts, images and videos to tensors."""

    text: TextLimits = TextLimits()
    prompt: str = CaptioningDataConfig.model_fields["prompt"].default
    max_answer_tokens: int = VQADataConfig.model_fields["max_answer_tokens"].default
    max_pixels: int = CaptioningDataConfig.model_fields["max_pixels"].default
    video: VideoReadingConfig = Field(default_factory=VideoReadingConfig)


class EvaluationSettings(Config):
    """Settings for generating captions, ranking answers and images, and selecting the boxes of a phrase."""

    decoding: DecodingConfig = DecodingConfig()
    score: RerankingScore = "matching"
    candidates: int = 128
    ranking: Ranking = "likelihood"
    decode: AnswerDecoding = "rank"
    beam: AnswerBeamConfig = AnswerBeamConfig()
    threshold: float = 0.5


class Settings(Config):
    """A model's settings, in the format of a run's config."""

    task: str
    model: SerializeAsAny[ModelConfig]
    data: DataSettings = DataSettings()
    evaluation: EvaluationSettings = EvaluationSettings()


def task_of(values: Mapping[str, Any], task: TaskSource | None, origin: str) -> TaskSource:
    """Returns the task of a config.

    Args:
        values: plain values by section.
        task: the task that the run remembers or the user names; None if there is neither.
        origin: the file that the values come from, to name in error messages.

    Raises:
        UserError: the task is unknown, or differs from the task that the user names.
    """
    if task is not None and task.entry is None:
        return task
    name = values.get("task")
    if task is not None and name != task.entry and name not in TASKS[str(task.entry)].also:
        raise UserError(
            f"this is a model of the task {name}, not {task.entry}",
            where=origin,
            remedy="remove task=, or use another model",
        )
    if name not in TASKS:
        raise UserError(
            f"task is {name!r}, not one of {', '.join(TASKS)}",
            where=origin,
            remedy="for a task of your own, pass its folder as task=",
        )
    return find_task(str(name))


def settings_of_run(config: Path, task: TaskSource | None = None) -> tuple[Settings, TaskSource]:
    """Extracts the settings from the ``config.yaml`` of a run or a saved model, and returns its task; see :func:`task_of` and
    :func:`settings_of`."""
    values = read_saved_config(config)
    task = task_of(values, task, str(config))
    values = {**values, "model": with_previous_defaults(values.get("model"), model_section(task.config_class()))}
    return settings_of(values, str(config), task), task


def settings_of(values: Mapping[str, Any], source: str, task: TaskSource) -> Settings:
    """Extracts the settings from the values of a run's config; settings that only training needs are ignored.

    Args:
        values: plain values by section.
        source: the file that the values come from, to name in error messages.
        task: the task of the config.

    Raises:
        UserError: a value is not valid.
    """
    data, evaluation = (values.get(name) or {} for name in ("data", "evaluation"))
    model = bind(values.get("model") or {}, model_section(task.config_class()), source=f"{source}: model")
    reading = (data.get("videos") or {}).get("reading")  # pre-training's counterpart of data.video in other tasks
    data = {**data, "video": reading} if reading is not None else data
    kept = _kept(data, DataSettings) | {
        name: _kept(data[name], schema)
        for name, schema in (("text", TextLimits), ("video", VideoReadingConfig))
        if isinstance(data.get(name), dict)
    }
    return Settings(task=str(values["task"]), model=model).model_copy(
        update={
            "data": bind(kept, DataSettings, source=f"{source}: data"),
            "evaluation": bind(_kept(evaluation, EvaluationSettings), EvaluationSettings, source=source),
        }
    )


def _kept(values: Mapping[str, Any], schema: type[Config]) -> dict[str, Any]:
    """Returns only the values whose keys are in the schema."""
    return {name: value for name, value in values.items() if name in schema.model_fields}
