"""The configs of the tasks. Each contains the sections of all packages below, and a section for the held-out data."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from dataset.config import (
    CaptionedSplitConfig,
    CaptioningDataConfig,
    DataConfig,
    FineTuneDataConfig,
    GroundingDataConfig,
    GroundingSplitConfig,
    LoadingConfig,
    MediaDataConfig,
    NLVRDataConfig,
    NLVRSplitConfig,
    QuestionsConfig,
    RetrievalDataConfig,
    VideoQADataConfig,
    VideoQuestionsConfig,
    VQADataConfig,
)
from engine.config import PrecisionName, TrainConfig
from engine.run_plan import RunPlan
from models.config import (
    MATCHING_WEIGHT,
    RANKING_SCORE,
    AligningConfig,
    AnswerBeamConfig,
    AnswerDecoding,
    CaptioningLossConfig,
    DecodingConfig,
    GroundingModelConfig,
    InitConfig,
    LossWeights,
    ModelConfig,
    NLVRModelConfig,
    PretrainModelConfig,
    Ranking,
    RankingScore,
    RetrievalLossConfig,
    SelfCriticalConfig,
    VideoQAModelConfig,
    VQAModelConfig,
)
from optim.config import OptimConfig
from scheduler import ScheduleConfig
from tasks.tables import check_name
from utils.config import MAY_CHANGE, MUST_NOT_CHANGE, Config, WhenResumed
from utils.inputs import InputFile, InputShards

PANELS = "number of examples drawn with their predictions, evenly spaced over each split; 0 draws none"
"""Description of ``evaluation.panels`` in all tasks."""


BOOTSTRAP = (
    "number of bootstrap draws for the 95% interval of each metric that is a mean over examples; 0: no intervals; 1000 is "
    "enough for tables. Examples about the same image, or statements with the same sentence, are drawn together"
)
"""Description of ``evaluation.bootstrap``."""


class RunConfig(Config):
    """The config sections of every run. Each task adds an evaluation section and narrows the types of the other sections."""

    seed: int = Field(0, ge=0, description="seed for random weights, data order, augmentation, masking and dropout")
    model: ModelConfig
    init: InitConfig = InitConfig()
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    data: LoadingConfig

    def plan(self, ranks: int, epoch_size: int | None = None, accumulation: int | None = None) -> RunPlan:
        """Returns the plan of the run for ``ranks`` processes; see :class:`engine.run_plan.RunPlan`.

        Args:
            ranks: number of processes.
            epoch_size: records of the leading stream in an epoch; None before the data are read.
            accumulation: micro-batches per step and rank; if None, they are derived from ``train``.

        Raises:
            UserError: if numbers in the config are inconsistent.
        """
        plan = RunPlan.of(self.train, self.data, chunks=self.model.chunks, ranks=ranks, accumulation=accumulation)
        return plan.with_length(self.train, self.optim, self.schedule, epoch_size)


class EvaluationConfig(Config):
    """Held-out records. Retrieval uses the first caption of each record, and separately the first long caption."""

    when_resumed = WhenResumed.AFFECTS_METRICS

    files: InputShards = Field(
        [],
        description="shards of images with captions; retrieval uses the first caption, and separately the first long "
        "caption",
    )
    region_files: InputShards = Field([], description="shards of images with boxes, if different from `files`")
    video_files: InputShards = Field(
        [], description="shards of videos, which are read with the settings of data.videos"
    )
    candidates: int = Field(
        16, ge=1, description="number of candidates that the fusion encoder re-ranks for each image and each text"
    )
    score: RankingScore | Literal["auto"] = Field("matching", description=RANKING_SCORE)
    matching_weight: float = Field(1.0, gt=0, description=MATCHING_WEIGHT)
    validation_files: InputShards = Field(
        [], description="shards of images with captions on which `score: auto` chooses; none of them in `files`"
    )
    batch_size: Annotated[int, MAY_CHANGE] = Field(50, ge=1, description="number of images in a forward pass")
    limit: int | None = Field(None, ge=1, description="maximum number of records to read; null: all")
    panels: Annotated[int, MAY_CHANGE] = Field(12, ge=0, le=200, description=PANELS)
    bootstrap: Annotated[int, MAY_CHANGE] = Field(0, ge=0, description=BOOTSTRAP)

    @model_validator(mode="after")
    def _has_files(self) -> EvaluationConfig:
        if not (self.files or self.region_files or self.video_files):
            raise ValueError("does not name any files; set files, region_files or video_files, or remove evaluation")
        if self.score == "auto" and not self.validation_files:
            raise ValueError("score is auto, which chooses on validation records; set validation_files")
        if both := sorted(set(self.files) & set(self.validation_files)):
            raise ValueError(f"{both[0]} is in files and validation_files; remove it from one of them")
        return self


class PretrainConfig(RunConfig):
    """A pre-training run."""

    task: Literal["pretrain"] = Field("pretrain", description="task of the config")
    model: PretrainModelConfig
    loss: LossWeights = LossWeights()
    data: DataConfig
    evaluation: EvaluationConfig | None = Field(None, description="held-out records to report on at the end")

    @model_validator(mode="after")
    def _has_images(self) -> PretrainConfig:
        if self.data.images is None and self.data.regions is None and self.data.videos is None:
            raise ValueError(
                "pre-training needs data.images, data.regions or data.videos, since texts alone cannot be aligned; "
                "add one"
            )
        if (self.data.videos is None) != (self.model.vision.video is None):
            raise ValueError("data.videos and model.vision.video require each other: set both, or neither")
        return self

    @model_validator(mode="after")
    def _hard_negatives_are_used(self) -> PretrainConfig:
        streams = {"images": self.data.images, "regions": self.data.regions}
        mined = [name for name, stream in streams.items() if stream is not None and stream.hard_negatives is not None]
        if mined and not (self.loss.contrastive or self.loss.matching):
            raise ValueError(
                f"data.{mined[0]}.hard_negatives are only used by the contrastive and the matching losses, whose "
                "weights are 0; set one of the weights, or remove hard_negatives"
            )
        return self

    @model_validator(mode="after")
    def _later_losses_begin(self) -> PretrainConfig:
        for name, first_step in self.data.losses_from.items():
            weight = getattr(self.loss, name, None)
            if not isinstance(weight, float) or not weight:
                raise ValueError(f"data.losses_from names {name!r}, which is not a loss of this run; remove it")
            if self.train.steps is not None and first_step >= self.train.steps:
                raise ValueError(
                    f"data.losses_from: {name} would begin after {first_step} steps, but the run has {self.train.steps}; "
                    f"lower it, or set loss.{name} to 0"
                )
        return self


S = TypeVar("S", bound=Config)


class KeepConfig(Config, Generic[S]):
    """Held-out splits of what the starting weights could do, to see how much of it a fine-tuned model loses."""

    test: dict[str, S] = Field(
        min_length=1, description="splits to report on, by name, with the starting and with the final weights"
    )
    validation: S | None = Field(
        None, description="split on which `checkpoint interpolate` and `checkpoint average --greedy` choose"
    )


class HeldOutConfig(Config, Generic[S]):
    """The held-out splits of a fine-tuning task, and how they are evaluated."""

    when_resumed = WhenResumed.AFFECTS_METRICS

    batch_size: Annotated[int, MAY_CHANGE] = Field(
        32, ge=1, description="number of items in a forward pass: images, videos, questions or statements"
    )
    precision: Annotated[PrecisionName, MAY_CHANGE] = Field(
        "fp32", description="precision of forward passes; O0 is fp32, O1 and O2 are fp16 (apex's names)"
    )
    # A resumed run must not change this split, since the best weights so far were selected with it.
    validation: Annotated[S | None, MUST_NOT_CHANGE] = Field(
        None, description="split that selects the best weights; null: the run keeps its last weights"
    )
    test: dict[str, S] = Field(min_length=1, description="splits to report on, by name")
    keep: KeepConfig[S] | None = Field(
        None,
        description="splits of earlier data; all splits are then also measured with the weights of init.checkpoint. start: the "
        "held-out files of the run of init.checkpoint",
    )
    panels: Annotated[int, MAY_CHANGE] = Field(12, ge=0, le=200, description=PANELS)
    bootstrap: Annotated[int, MAY_CHANGE] = Field(0, ge=0, description=BOOTSTRAP)
    published: Annotated[str | None, MAY_CHANGE] = Field(
        None,
        description="cell of `configs/tables.yaml`, such as `3/base_4m/coco_5k`; its numbers are shown next to the "
        "measured numbers",
    )

    @field_validator("published", mode="before")
    @classmethod
    def _is_a_cell(cls, value: Any) -> Any:
        if isinstance(value, dict):
            raise ValueError(
                "numbers are not a cell of configs/tables.yaml; name a cell, such as 3/base_4m/coco_5k, or set it to null"
            )
        return check_name(value) if isinstance(value, str) else value


class FineTuneConfig(RunConfig):
    """Config sections of a fine-tuning run; each task narrows their types."""

    data: FineTuneDataConfig
    evaluation: HeldOutConfig[Any]

    @model_validator(mode="after")
    def _keeps_what_it_starts_from(self) -> FineTuneConfig:
        if self.evaluation.keep is not None and self.init.checkpoint is None:
            raise ValueError(
                "evaluation.keep compares with the starting weights; set init.checkpoint, or remove evaluation.keep"
            )
        return self


class MediaEvaluationConfig(HeldOutConfig[S], Generic[S]):
    """Held-out splits of images or videos, and the order of video frames."""

    shuffle_frames: bool = Field(
        False, description="shuffle the frames of videos, to test whether the model uses their order"
    )


class MediaConfig(FineTuneConfig):
    """Config sections of a run on images or videos; each task narrows their types."""

    data: MediaDataConfig
    evaluation: MediaEvaluationConfig[Any]


class RetrievalEvaluationConfig(MediaEvaluationConfig[CaptionedSplitConfig]):
    """Held-out splits for retrieval, and how many candidates the fusion encoder re-ranks."""

    candidates: int = Field(
        ge=1, description="number k of candidates that the fusion encoder re-ranks for each image and each text"
    )
    score: RankingScore | Literal["auto"] = Field("matching", description=RANKING_SCORE)
    matching_weight: float = Field(1.0, gt=0, description=MATCHING_WEIGHT)

    @model_validator(mode="after")
    def _can_choose(self) -> RetrievalEvaluationConfig:
        if self.score == "auto" and self.validation is None:
            raise ValueError("score is auto, which chooses on validation records; set validation")
        return self


class RetrievalConfig(MediaConfig):
    """A retrieval run."""

    task: Literal["retrieval"] = Field("retrieval", description="task of the config")
    model: AligningConfig
    loss: RetrievalLossConfig = RetrievalLossConfig()
    data: RetrievalDataConfig
    evaluation: RetrievalEvaluationConfig

    @model_validator(mode="after")
    def _has_a_teacher(self) -> RetrievalConfig:
        if self.loss.distillation and self.init.checkpoint is None:
            raise ValueError("loss.distillation needs the starting weights; set init.checkpoint, or remove it")
        return self


class NLVREvaluationConfig(HeldOutConfig[NLVRSplitConfig]):
    """Splits to evaluate. The paper reports dev, which also selects the weights, and test-P (NLVR2's ``test1``)."""


class NLVRConfig(FineTuneConfig):
    """A visual reasoning run."""

    task: Literal["nlvr"] = Field("nlvr", description="task of the config")
    model: NLVRModelConfig
    data: NLVRDataConfig
    evaluation: NLVREvaluationConfig


class GroundingEvaluationConfig(HeldOutConfig[GroundingSplitConfig]):
    """Splits to evaluate. The paper reports val (which also selects the weights), testA and testB."""

    threshold: Annotated[float, MAY_CHANGE] = Field(
        0.5, gt=0, lt=1, description="with model.box_set: minimum probability of a box in the answer"
    )


class GroundingConfig(FineTuneConfig):
    """A grounding run."""

    task: Literal["grounding"] = Field("grounding", description="task of the config")
    model: GroundingModelConfig = Field(default_factory=GroundingModelConfig, description="the model")
    data: GroundingDataConfig
    evaluation: GroundingEvaluationConfig

    @model_validator(mode="after")
    def _can_be_absent(self) -> GroundingConfig:
        if self.data.absent and self.model.box_set is None:
            raise ValueError(
                "data.absent makes phrases without a box, which the head for one box cannot learn; set model.box_set"
            )
        return self


class VQAOptimConfig(OptimConfig):
    """Config section ``optim`` with a switch for the learning rate of the answer decoder."""

    fresh_decoder: bool = Field(
        True,
        description="train the answer decoder with lr * lr_mult, although it starts as a copy of the fusion encoder "
        "(large_lr_for_dec in the authors' code)",
    )


class VQAEvaluationConfig(HeldOutConfig[QuestionsConfig]):
    """Held-out splits. For splits without answers, predictions are written for the evaluation server but not scored."""

    answers: InputFile | None = Field(
        None, description="file with a JSON list of the candidate answers; null: the answers of the training questions"
    )
    candidates: int = Field(
        128,
        ge=1,
        description="number k of candidates that are scored in full, chosen by the likelihood of their first token",
    )
    ranking: Ranking = Field(
        "likelihood",
        description="score of a candidate. likelihood: likelihood of the whole answer; released: the likelihood with the first "
        "token counted twice",
    )
    decode: AnswerDecoding = Field(
        "rank",
        description="rank: answer with the best candidate (as in the authors' code); beam: generate a free-form answer with "
        "beam search",
    )
    beam: AnswerBeamConfig = Field(AnswerBeamConfig(), description="settings of the beam search, for decode: beam")


class VQAConfig(FineTuneConfig):
    """A question answering run."""

    task: Literal["vqa"] = Field("vqa", description="task of the config")
    model: VQAModelConfig
    data: VQADataConfig
    optim: VQAOptimConfig
    evaluation: VQAEvaluationConfig


class VideoQAEvaluationConfig(MediaEvaluationConfig[VideoQuestionsConfig]):
    """Held-out splits. For splits without answers, predictions are written but not scored."""

    answers: InputFile = Field(
        description="file with the candidate answers: a JSON list, or an object from answer to label"
    )


class VideoQAConfig(MediaConfig):
    """A video question answering run."""

    task: Literal["video_qa"] = Field("video_qa", description="task of the config")
    model: VideoQAModelConfig
    data: VideoQADataConfig
    evaluation: VideoQAEvaluationConfig

    @model_validator(mode="after")
    def _has_frames(self) -> VideoQAConfig:
        if self.model.vision.video is None:
            raise ValueError("video question answering needs model.vision.video.frames")
        return self


class CaptioningEvaluationConfig(MediaEvaluationConfig[CaptionedSplitConfig]):
    """Held-out splits for captioning, and how captions are generated for them."""

    decoding: DecodingConfig = DecodingConfig()
    document_frequencies: InputFile | None = Field(
        None,
        description="file with document frequencies for CIDEr, as JSON or as the commonly used pickle; null: counted "
        "in the references of the split, which is standard; the self-critical reward always counts them in the "
        "training captions",
    )
    java_metrics: list[Literal["METEOR", "SPICE"]] = Field(
        [], description="metrics that require the optional pycocoevalcap and Java"
    )


class CaptioningTrainConfig(TrainConfig):
    """Length and objective of training."""

    objective: Literal["likelihood", "self_critical"] = Field(
        "likelihood",
        description="likelihood: likelihood of the captions; self_critical: CIDEr-D of sampled captions, starting from the "
        "weights of a finished run",
    )

    @property
    def setting_without_fsdp(self) -> str | None:
        # Ranks sample captions of different lengths, so they would not run the blocks equally often.
        return "objective = self_critical" if self.objective == "self_critical" else super().setting_without_fsdp


class CaptioningConfig(MediaConfig):
    """A captioning run."""

    task: Literal["captioning"] = Field("captioning", description="task of the config")
    loss: CaptioningLossConfig = CaptioningLossConfig()
    self_critical: SelfCriticalConfig = SelfCriticalConfig()
    data: CaptioningDataConfig
    train: CaptioningTrainConfig
    evaluation: CaptioningEvaluationConfig

    @model_validator(mode="after")
    def _starts_from_a_run(self) -> CaptioningConfig:
        if self.train.objective == "self_critical" and self.init.checkpoint is None:
            raise ValueError(
                "train.objective: self_critical is a second training stage; set init.checkpoint to a captioning run's folder"
            )
        return self
