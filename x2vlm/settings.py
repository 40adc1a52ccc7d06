"""The settings that a model needs in addition to its weights: sizes, text lengths, and how captions and answers are decoded.

A run's ``config.yaml`` contains all of them, together with settings that only training needs. :meth:`x2vlm.model.Model.save`
writes only the settings listed here, in the format of a run's config.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, SerializeAsAny

from dataset.config import CaptioningDataConfig, TextLimits, VideoReadingConfig, VQADataConfig
from engine.run_files import EVALUATION_FILE
from engine.saved_config import read_saved_config
from models.checkpoints.files import read_weights
from models.checkpoints.recognise import XLM_R_WORDS, Recognised, recognise
from models.config import (
    AnswerBeamConfig,
    AnswerDecoding,
    DecodingConfig,
    ModelConfig,
    Ranking,
    RankingScore,
)
from tasks import ROOT, TASKS
from tasks.evaluation import read_evaluations
from tasks.kinds import TaskSource, find_task, model_section
from utils.config import Config, bind, with_previous_defaults
from utils.config_files import read_config
from utils.errors import UserError
from utils.files import expanded

PUBLISHED = {
    "pretrain": "pretrain/{size}_4m.yaml",
    "retrieval": "retrieval/coco_{size}_4m.yaml",
    "grounding": "grounding/refcoco_plus_{size}_4m.yaml",
    "nlvr": "nlvr/nlvr2_{size}_4m.yaml",
    "vqa": "vqa/vqa2_{size}_4m.yaml",
    "captioning": "captioning/coco_{size}_4m.yaml",
}
"""For each task, the config with the settings of a published file that cannot be recognised from the shapes of its tensors."""

PUBLISHED_VIDEO = {"retrieval": "retrieval/msrvtt_{size}.yaml", "video_qa": "vqa/msrvtt_qa_{size}.yaml"}

PUBLISHED_MULTILINGUAL = {
    "pretrain": "pretrain/multilingual_{size}.yaml",
    "retrieval": "retrieval/multi30k_{size}.yaml",
    "nlvr": "nlvr/marvl_{size}.yaml",
}

logger = logging.getLogger(__name__)


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
    score: RankingScore = "matching"
    matching_weight: float = 1.0
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


def settings_of_weights(
    weights: Path, run: Path | None, config: str | Path | None, task: TaskSource | None
) -> tuple[Settings, TaskSource]:
    """Returns the settings of a weight file and its task: from the given config, from the file's run, or from the matching config
    of the authors' runs.

    Args:
        weights: the weight file.
        run: the config of the run that wrote the file; None if the file is not in the folder of a run.
        config: the config that the user names.
        task: the task that the user names or the run remembers.

    Raises:
        UserError: the config does not exist or is wrong, or the weights are not known.
    """
    if config is None and run is not None:
        return settings_of_run(run, task)
    if config is not None:
        path = expanded(config)
        if not path.is_file():
            raise UserError(f"config {config}: no such file")
        values = read_config(path).values
    else:
        found = recognise({name: tuple(tensor.shape) for name, tensor in read_weights(weights).items()})
        path = ROOT / "configs" / _published_config(found, weights)
        values = read_config(path).values
        values["model"]["vision"]["image_size"] = found.image_size
        if found.task == "video_qa":
            values["model"]["classes"] = found.shapes["classifier.3.weight"][0]
        logger.info(
            "%s: %s, task %s, %d px; using the settings in %s", weights, found.kind, found.task, found.image_size, path
        )
    task = task_of(values, task, str(path))
    return settings_of(values, str(path), task), task


def _published_config(found: Recognised, weights: Path) -> str:
    """Returns the config of the authors' run that produced a file.

    Raises:
        UserError: the file does not come from one of the authors' runs, or has no head.
    """
    remedy = "set config=, the config that it was trained with"
    if found.kind is None or not found.kind.startswith("X²-VLM"):
        raise UserError(f"{weights} is not in a run's folder, and is {found.kind or 'not recognised'}", remedy=remedy)
    table = PUBLISHED
    if found.words == XLM_R_WORDS:
        table = PUBLISHED_MULTILINGUAL
    elif found.frames is not None:
        table = PUBLISHED_VIDEO
    if found.task in (None, "none"):
        raise UserError(
            f"{weights} contains encoders without a head, so the model supports no calls", remedy="fine-tune it first"
        )
    config = table.get(found.task or "", "").format(size=found.size)
    if not config or not (ROOT / "configs" / config).is_file() or found.image_size is None:
        raise UserError(f"{weights} is {found.kind}, task {found.task}, of an unknown size or language", remedy=remedy)
    return config


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
    if (values.get("evaluation") or {}).get("score") == "auto":
        values["evaluation"] = {**values["evaluation"], "score": chosen_score(config.parent)}
    return settings_of(values, str(config), task), task


def chosen_score(run: Path) -> RankingScore:
    """Returns the score that a run with ``evaluation.score: auto`` chose, according to its ``evaluation.json``."""
    try:
        scores = [each.chosen_score for each in read_evaluations(run).values()]
    except ValueError as error:
        raise UserError(f"cannot be read: {error}", where=run / EVALUATION_FILE) from None
    found = next((score for score in scores if score is not None), None)
    if found is None:
        logger.warning(
            "%s: evaluation.score is auto, but no evaluation.json says what it chose; texts are ranked by matching", run
        )
    return found or "matching"


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
