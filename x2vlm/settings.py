"""The settings that a model needs in addition to its weights: sizes, text lengths, and how captions and answers are decoded.

A run's ``config.yaml`` contains all of them, together with settings that only training needs. :meth:`x2vlm.model.Model.save`
writes only the settings listed here, in the format of a run's config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import Field, SerializeAsAny

from dataset.config import CaptioningDataConfig, TextLimits, VideoReadingConfig, VQADataConfig
from engine.saved_config import read_saved_config
from models.config import (
    AligningConfig,
    AnswerBeamConfig,
    AnswerDecoding,
    DecodingConfig,
    GroundingModelConfig,
    ModelConfig,
    NLVRModelConfig,
    PretrainModelConfig,
    Ranking,
    RerankingScore,
    VideoQAModelConfig,
    VQAModelConfig,
)
from models.core.xvlm import XVLM
from models.pretraining.model import PretrainModel
from models.tasks.captioning import CaptioningModel
from models.tasks.grounding import GroundingModel
from models.tasks.nlvr import NLVRModel
from models.tasks.retrieval import RetrievalModel
from models.tasks.video_qa import VideoQAModel
from models.tasks.vqa import VQAModel
from utils.config import Config, bind, with_previous_defaults
from utils.errors import UserError

C = TypeVar("C", bound=Config)


class TaskModel(NamedTuple):
    """The model of a task: the class of its section ``model``, and a function that builds the model from this section and the
    vocabulary size."""

    config: type[ModelConfig]
    build: Callable[[Any, int], XVLM]


def _grounding(config: GroundingModelConfig, vocab_size: int) -> GroundingModel:
    return GroundingModel(config, vocab_size, config.box_set)


def _nlvr(config: NLVRModelConfig, vocab_size: int) -> NLVRModel:
    return NLVRModel(config, vocab_size, images=config.images, classes=config.classes)


TASK_MODELS = {
    "pretrain": TaskModel(PretrainModelConfig, PretrainModel),
    "retrieval": TaskModel(AligningConfig, RetrievalModel),
    "grounding": TaskModel(GroundingModelConfig, _grounding),
    "nlvr": TaskModel(NLVRModelConfig, _nlvr),
    "vqa": TaskModel(VQAModelConfig, VQAModel),
    "video_qa": TaskModel(VideoQAModelConfig, VideoQAModel),
    "captioning": TaskModel(ModelConfig, CaptioningModel),
}


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

    @property
    def task_model(self) -> TaskModel:
        """Returns the entry of the task in :data:`TASK_MODELS`."""
        return TASK_MODELS[self.task]


def settings_of_run(config: Path) -> Settings:
    """Extracts the settings from the ``config.yaml`` of a run or a saved model; see :func:`settings_of`."""
    values = read_saved_config(config)
    if values.get("task") in TASK_MODELS:
        values = {**values, "model": with_previous_defaults(values.get("model"), TASK_MODELS[values["task"]].config)}
    return settings_of(values, str(config))


def settings_of(values: Mapping[str, Any], source: str) -> Settings:
    """Extracts the settings from the values of a run's config; settings that only training needs are ignored.

    Args:
        values: plain values by section.
        source: the file that the values come from, to name in error messages.

    Raises:
        UserError: the task is not among :data:`TASK_MODELS`, or a value is not valid.
    """
    task = values.get("task")
    if task not in TASK_MODELS:
        raise UserError(f"{source}: task is {task!r}; x2vlm loads models of {', '.join(TASK_MODELS)}")
    data, evaluation = (values.get(name) or {} for name in ("data", "evaluation"))
    model = bind(values.get("model") or {}, TASK_MODELS[task].config, source=f"{source}: model")
    reading = (data.get("videos") or {}).get("reading")  # pre-training's counterpart of data.video in other tasks
    data = {**data, "video": reading} if reading is not None else data
    kept = _kept(data, DataSettings) | {
        name: _kept(data[name], schema)
        for name, schema in (("text", TextLimits), ("video", VideoReadingConfig))
        if isinstance(data.get(name), dict)
    }
    settings = Settings(task=task, model=model)
    return settings.model_copy(
        update={
            "data": bind(kept, DataSettings, source=f"{source}: data"),
            "evaluation": bind(_kept(evaluation, EvaluationSettings), EvaluationSettings, source=source),
        }
    )


def _kept(values: Mapping[str, Any], schema: type[Config]) -> dict[str, Any]:
    """Returns only the values whose keys are in the schema."""
    return {name: value for name, value in values.items() if name in schema.model_fields}
