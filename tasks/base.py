"""What every task shares: the sections of its config, and how its tokenizer, model, weights and training data are built."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast

import torch
from pydantic import Field

from dataset.loaders import BatchLoader, BatchMaker, LoadingConfig
from dataset.text.loading import load_tokenizer, token_ids_digest
from engine.checkpoint import Checkpoint, find_weights, run_of
from engine.run_folder import RunFolder
from engine.run_plan import RunPlan
from engine.train_config import TrainConfig
from models.checkpoints import InitConfig, LoadReport, initialise, load_weights
from models.checkpoints.initialise import fresh_parameters, loading_lines, random_parameters
from models.checkpoints.settings import model_section, require_same_settings, unlike_published
from models.core.hub_text import hub_config_of
from models.core.xvlm import XVLM, ModelConfig
from models.inference.reranking import AligningModel
from optim import OptimConfig
from optim.freeze import FeatureCacheConfig
from optim.lora import PARTS
from optim.setup import OUTSIDE_BLOCKS, add_adapters
from scheduler import ScheduleConfig
from utils import distributed
from utils.config import Config
from utils.config_files import read_yaml
from utils.errors import UserError
from utils.files import cache_folder, expanded
from utils.weight_file import TOKEN_IDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER, ANSWERS = "tokenizer", "answers.json"
"""Names in a run's folder of the copies that it keeps."""
ADAPTERS = "adapters.safetensors"
"""Name in a folder of the weights that a run with adapters has trained, without those that it left as they were."""

logger = logging.getLogger(__name__)


class RunConfig(Config):
    """The sections of every run; a task adds its evaluation and narrows the types of the others."""

    seed: int = Field(
        0, ge=0, description="seed of random weights, order of the data, augmentation, masking and dropout"
    )
    model: ModelConfig
    init: InitConfig = InitConfig()
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    data: LoadingConfig

    def plan(self, ranks: int, epoch_size: int | None = None, accumulation: int | None = None) -> RunPlan:
        """The plan of the run on ``ranks`` processes; see :meth:`engine.run_plan.RunPlan.of`.

        Raises:
            UserError: if the numbers of the run contradict each other.
        """
        return RunPlan.of(
            self.train,
            self.optim,
            self.schedule,
            self.data,
            chunks=self.model.chunks,
            ranks=ranks,
            epoch_size=epoch_size,
            accumulation=accumulation,
        )


C = TypeVar("C", bound=RunConfig)
M = TypeVar("M", bound=XVLM)
B = TypeVar("B", bound=BatchMaker)


@dataclass(frozen=True)
class Parts(Generic[M, B]):
    """The parts of a task that :func:`build_parts` builds from its config.

    ``fresh``: names of the parameters that train at ``lr * lr_mult``; a resumed run takes them from its checkpoint instead.
    ``training``: the training data, and ``loader``, which makes their batches on this rank; None where the task only evaluates.
    """

    tokenizer: PreTrainedTokenizerFast
    model: M
    fresh: set[str]
    training: B | None
    loader: BatchLoader | None


class BaseTask(ABC, Generic[C, M, B]):
    """A model with its training data (see :class:`engine.task.Task`).

    A task is made by :meth:`build`, which builds the parts from the config by the static methods below and hands them to the
    constructor. A subclass whose constructor adds fields calls this one first.
    """

    selects: str | None = None

    validated: Sequence[Mapping[str, Any]] = ()

    takes_videos: ClassVar[bool] = False
    """Whether the data may be videos, where ``model.vision.video`` says so."""

    reads_training_data_to_evaluate: ClassVar[bool] = False
    """Whether an evaluation compares with the training data, if they are there."""

    def __init__(self, config: C, parts: Parts[M, B]):
        self.config = config
        self.tokenizer, self.model, self.fresh = parts.tokenizer, parts.model, set(parts.fresh)
        self.about: Mapping[str, Any] = {TOKEN_IDS: token_ids_digest(self.tokenizer)}
        self.training, self.loader = parts.training, parts.loader

    @classmethod
    def build(cls, config: C, checkpoint: Checkpoint | None = None, *, trains: bool = True) -> Self:
        """The task of a config, with the weights of ``checkpoint`` or of ``config.init``.

        Everything that the run needs is checked: weights, tokenizer, data, held-out data. Without ``trains`` no training data
        are needed.

        Raises:
            UserError: if one of them cannot be used.
        """
        return cls(config, build_parts(cls, config, checkpoint, trains=trains))

    @staticmethod
    def make_inputs(config: C) -> None:
        """Make files that the config names, if the task makes any itself; called before they are looked for, on every rank."""

    @staticmethod
    @abstractmethod
    def build_model(config: C, vocab_size: int | None) -> M:
        """The model of a config, with random weights on torch's current default device."""

    @staticmethod
    @abstractmethod
    def training_data(config: C, tokenizer: PreTrainedTokenizerFast, model: M) -> B:
        """The training data of a config.

        Raises:
            UserError: if they cannot be used.
        """

    @staticmethod
    def text_lengths(config: C) -> dict[str, int]:
        """The greatest length of a text, in tokens, by the config keys that set one."""
        return {"data.text.max_tokens": config.data.text.max_tokens}

    @staticmethod
    def check_origin(config: C, task: str | None, weights: Path, report: LoadReport) -> None:
        """Check the task that ``init.checkpoint`` is of; None where the file is not in a run's folder.

        Raises:
            UserError: if this run cannot start from it.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """See :class:`engine.task.Task`."""

    @abstractmethod
    def report(self, folder: RunFolder) -> str:
        """Evaluate the result of the run on held-out data, on all ranks; write it into ``folder`` and return it as a table."""

    def keep_inputs(self, folder: Path) -> None:
        """Copy into a run's folder what its weights cannot be used without; see :mod:`tasks.kept`."""
        self.tokenizer.save_pretrained(str(folder / TOKENIZER))
        text = self.config.model.text
        if text.arch is None:
            hub_config_of(text.encoder).save_pretrained(str(folder / TOKENIZER))

    def train_loader(self) -> BatchLoader:
        """See :class:`engine.task.Task`."""
        assert self.loader is not None, "the task was built to evaluate"
        return self.loader


def video_frames(config: RunConfig) -> int | None:
    """Frames of a video; None where the model is one of images."""
    video = config.model.vision.video
    return None if video is None else video.frames


def build_parts(
    kind: type[BaseTask[C, M, B]], config: C, checkpoint: Checkpoint | None, *, trains: bool
) -> Parts[M, B]:
    """The parts of a task; see :meth:`BaseTask.build`."""
    if video_frames(config) is not None and not kind.takes_videos:
        raise UserError("model.vision.video: this task is one of images; drop it")
    tokenizer = load_tokenizer(config.model.text.encoder, "model.text.encoder")
    _check_padding(config, tokenizer)
    torch.manual_seed(config.seed)
    model = kind.build_model(config, len(tokenizer))
    for key, length in kind.text_lengths(config).items():
        check_length(model, key, length)
    fresh: set[str] = set()
    if checkpoint is not None:
        if trains:
            set_up_training(config, model)
        load_weights(model, checkpoint.model_file).require_complete()
    else:
        fresh = _initialise(kind, config, model)
        if trains:
            set_up_training(config, model)
    if trains and config.optim.frozen.cache is not None:
        keep_features(config.optim.frozen.cache, model)
    logger.info("%.1f M parameters", sum(parameter.numel() for parameter in model.parameters()) / 1e6)
    training, loader = None, None
    if trains:
        training = kind.training_data(config, tokenizer, model)
        loader = BatchLoader(training, config.data, rank=distributed.rank(), world_size=distributed.world_size())
        _log_sizes(config, loader, model)
    elif kind.reads_training_data_to_evaluate:
        try:
            training = kind.training_data(config, tokenizer, model)
        except UserError as error:
            logger.info("evaluating without the training data: %s", error)
    return Parts(tokenizer, model, fresh, training, loader)


def set_up_training(config: RunConfig, model: XVLM) -> None:
    """Freeze the blocks of ``optim.freeze.vision_blocks``, and give the model the adapters of ``optim.lora``.

    Raises:
        UserError: if they do not fit the model, or peft is not installed.
    """
    blocks = config.optim.frozen.vision_blocks
    if blocks is not None:
        model.vision.freeze_blocks(blocks)
        logger.info("optim.freeze: what comes before block %d of the vision encoder never trains", blocks)
    if config.optim.lora is not None:
        add_adapters(model, config.optim.lora, tuple(config.optim.frozen.steps))


def keep_features(config: FeatureCacheConfig, model: XVLM) -> None:
    """Keep the states of frozen blocks on disk.

    Raises:
        UserError: if there is no folder for them.
    """
    caches = cache_folder()
    if config.folder is None and caches is None:
        raise UserError("optim.freeze.cache.folder: this user has no cache folder; name one")
    folder = expanded(config.folder) if config.folder is not None else cast(Path, caches) / "features"
    model.vision.keep_features(folder, int(config.gigabytes * 1e9))
    logger.info("optim.freeze: states of frozen blocks are kept in %s, up to %g GB", folder, config.gigabytes)


def check_length(model: XVLM, key: str, length: int) -> None:
    """Raise a :class:`UserError` with the config ``key`` of ``length``, if the text encoder has no place for so many tokens."""
    longest = model.text.longest_text
    if longest is not None and length > longest:
        raise UserError(f"{key} is {length}, but model.text has positions for {longest} tokens; lower it")


def _check_padding(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    arch, pad = config.model.text.arch, tokenizer.pad_token_id
    if arch is not None and arch.family == "roberta" and arch.pad_id != pad:
        raise UserError(
            f"model.text.arch.pad_id is {arch.pad_id}, the tokenizer's {pad}: RoBERTa counts positions from it"
        )


def _initialise(kind: type[BaseTask[C, Any, Any]], config: C, model: XVLM) -> set[str]:
    """Load what ``config.init`` names; returns the names of the parameters that stay random."""
    reports = load_initial(kind, config, model)
    logger.info("%s", "\n".join(loading_lines(model, reports)))
    random = random_parameters(model, reports)
    targets = () if config.optim.lora is None else config.optim.lora.targets or PARTS
    kept = {
        "freeze": [name for name in random if math.isinf(config.optim.frozen.trains_from(name))],
        "lora": [
            name
            for name in random
            if name.startswith(tuple(f"{part}." for part in targets)) and not name.startswith(OUTSIDE_BLOCKS)
        ],
    }
    for key, names in kept.items():
        if names:
            logger.warning("optim.%s: %d tensors keep their random values, as %s; see init", key, len(names), names[0])
    return fresh_parameters(model, reports)


def load_initial(kind: type[BaseTask[C, Any, Any]], config: C, model: XVLM) -> list[LoadReport]:
    """Load what ``config.init`` names; a model on the meta device is only compared with the files.

    Raises:
        UserError: if a file cannot be used, or this run cannot start from it.
    """
    init = config.init
    if init.checkpoint is not None:
        init = init.model_copy(update={"checkpoint": str(find_weights(expanded(init.checkpoint)))})
    reports = initialise(model, init)
    if init.checkpoint is not None:
        _check_origin(kind, config, model, Path(init.checkpoint), reports[0])
    return reports


def _check_origin(kind: type[BaseTask[C, Any, Any]], config: C, model: XVLM, weights: Path, report: LoadReport) -> None:
    """Compare the settings that no shape shows with the config of the run that wrote the weights, or with published models."""
    run = run_of(weights)
    trained = None if run is None else read_yaml(run)
    if trained is not None and not isinstance(trained.get("task"), str):
        raise UserError(
            f"init.checkpoint: {run}, beside the weights, names no task, so it is not the config of a run; move the weights "
            "away from it"
        )
    kind.check_origin(config, None if trained is None else trained["task"], weights, report)
    if trained is not None and run is not None:
        section = model_section(trained)
        if section is None:
            logger.warning("%s is of another version; what no shape of its weights shows is not compared", run)
        else:
            require_same_settings(model, section, str(run), new_text=report.text_left_out)
    elif report.published and (differences := unlike_published(model)):
        logger.warning("%s: %s; is the model meant to differ?", weights, "; ".join(differences))


def _log_sizes(config: RunConfig, loader: BatchLoader, model: XVLM) -> None:
    """Log the sizes of the data, of a step and of the run, and where the contrastive loss has fewer examples than the batch."""
    plan = config.plan(distributed.world_size(), loader.epoch_size)
    train, ranks, accumulation = config.train, plan.ranks, plan.accumulation
    logger.info(
        "records: %s; %d examples a step over all ranks; %d steps are %.1f epochs of %s",
        ", ".join(f"{count} {name}" for name, count in loader.stream_sizes.items()),
        loader.examples_per_batch * ranks * accumulation,
        plan.steps,
        plan.epochs,
        next(iter(loader.stream_sizes)),
    )
    if train.global_batch is not None and accumulation > model.chunks and isinstance(model, AligningModel):
        size, chunks = loader.micro_batch.size, f"{model.chunks} chunks x " if model.chunks > 1 else ""
        logger.info(
            "contrastive loss: %s examples (%smicro-batch %d x %d ranks) of train.global_batch = %s: fewer negatives; "
            "model.contrastive.chunks takes several micro-batches as one",
            *(f"{model.chunks * size * ranks:,}", chunks, size, ranks, f"{train.global_batch:,}"),
        )
