"""Base class of all tasks: common config sections, and the set-up of the tokenizer, model, weights and training data."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast

import torch

from dataset.loaders import BatchLoader, BatchMaker
from dataset.text.loading import difference_of_tokenizers, load_tokenizer, token_ids_digest
from engine.checkpoint import Checkpoint, find_weights, run_config_of
from engine.run_folder import RunFolder
from engine.run_plan import RunPlan
from models.checkpoints import LoadReport, initialise, load_weights
from models.checkpoints.initialise import fresh_parameters, loaded_weights, random_parameters
from models.checkpoints.settings import differences_from_published, model_section, require_same_settings
from models.core.backbones import save_backbone_config
from models.core.hub_text import hub_config_of
from models.core.xvlm import XVLM
from models.inference.reranking import AligningModel
from optim.config import PARTS, FeatureCacheConfig
from optim.setup import OUTSIDE_BLOCKS, add_adapters
from tasks.config import RunConfig
from utils import distributed
from utils.config_files import read_yaml
from utils.errors import UserError
from utils.events import BuiltModel, Planned
from utils.files import cache_folder, expanded, replacing_folder
from utils.weight_file import TOKEN_IDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER, BACKBONE, ANSWERS = "tokenizer", "vision", "answers.json"
"""Names of the copies of a run's inputs that the run keeps in its folder."""
ADAPTERS = "adapters.safetensors"
"""Name of the file that contains the weights trained by a run with adapters, without the frozen weights."""

logger = logging.getLogger(__name__)


C = TypeVar("C", bound=RunConfig)
M = TypeVar("M", bound=XVLM)
B = TypeVar("B", bound=BatchMaker)


@dataclass(frozen=True)
class Parts(Generic[M, B]):
    """The components of a task, which :func:`build_parts` builds from its config.

    Attributes:
        tokenizer: the tokenizer.
        model: the model.
        fresh: names of the parameters that are trained at ``lr * lr_mult``. A resumed run takes the names from its checkpoint
            instead.
        plan: the plan of the run, with the number of steps; None if the task is only evaluated.
        training: the training data; None if the task is only evaluated, unless evaluation uses them for comparison.
        loader: loads batches of the training data on this rank; None if the task is only evaluated.
    """

    tokenizer: PreTrainedTokenizerFast
    model: M
    fresh: set[str]
    plan: RunPlan | None
    training: B | None
    loader: BatchLoader | None


class BaseTask(ABC, Generic[C, M, B]):
    """A model with its training data (see :class:`engine.task.Task`).

    Create a task with :meth:`build`, which builds the components from the config with the static methods below, and passes them
    to the constructor. The constructor of a subclass must call this constructor first.
    """

    selection_metric: str | None = None

    validation_predictions: Sequence[Mapping[str, Any]] = ()

    takes_videos: ClassVar[bool] = False
    """True if the task supports videos, which ``model.vision.video`` enables."""

    reads_training_data_to_evaluate: ClassVar[bool] = False
    """True if evaluation uses the training data for comparison when they are available."""

    def __init__(self, config: C, parts: Parts[M, B]):
        self.config = config
        self.tokenizer, self.model, self.fresh = parts.tokenizer, parts.model, set(parts.fresh)
        self.metadata: Mapping[str, Any] = {TOKEN_IDS: token_ids_digest(self.tokenizer)}
        self.plan, self.training, self.loader = parts.plan, parts.training, parts.loader

    @classmethod
    def build(
        cls, config: C, checkpoint: Checkpoint | None = None, *, trains: bool = True, plan: RunPlan | None = None
    ) -> Self:
        """Builds the task of a config, with the weights of ``checkpoint`` or of ``config.init``. Only rank 0 holds weights. On
        the other ranks, the model is on the meta device until :func:`utils.distributed.move_from_rank_0` sends the weights.

        The method checks everything that the run needs: weights, tokenizer, training data and held-out data. If ``trains`` is
        False, training data are not required. If ``plan`` is None, the run is planned for the ranks of this process group.

        Raises:
            UserError: if a file that the run needs cannot be used.
        """
        return cls(config, build_parts(cls, config, checkpoint, trains=trains, plan=plan))

    @staticmethod
    def make_inputs(config: C) -> None:
        """Creates input files that the config names, if the task generates its inputs. Called on every rank before inputs are
        checked."""

    @staticmethod
    @abstractmethod
    def build_model(config: C, vocab_size: int | None) -> M:
        """Builds the model of a config, with random weights on torch's current default device."""

    @staticmethod
    @abstractmethod
    def training_data(config: C, tokenizer: PreTrainedTokenizerFast, model: M, plan: RunPlan) -> B:
        """Opens the training data of a config for a run with this plan.

        Raises:
            UserError: if the training data cannot be used.
        """

    @staticmethod
    def text_lengths(config: C) -> dict[str, int]:
        """Returns the maximum text lengths, in tokens, by the config keys that set them."""
        return {"data.text.max_tokens": config.data.text.max_tokens}

    @staticmethod
    def check_origin(config: C, task: str | None, weights: Path, report: LoadReport) -> None:
        """Checks that this run can start from ``init.checkpoint``.

        Args:
            config: config of this run.
            task: the task that trained the weights; None if the weights are not in a run's folder.
            weights: the weight file.
            report: describes which weights were loaded.

        Raises:
            UserError: if the run cannot start from these weights.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """See :class:`engine.task.Task`."""

    @abstractmethod
    def report(self, folder: RunFolder) -> str:
        """Evaluates the run on held-out data on all ranks, writes the results to ``folder`` and returns them as a table."""

    def keep_inputs(self, folder: Path) -> None:
        """Copies all inputs that are needed to use the weights into the run's folder; see :mod:`tasks.kept`. A copy of the
        tokenizer that is there already is not written again."""
        if not self._is_kept(folder / TOKENIZER):
            with replacing_folder(folder / TOKENIZER) as copy:
                self.tokenizer.save_pretrained(str(copy))
                if self.config.model.text.arch is None:
                    hub_config_of(self.config.model.text.encoder).save_pretrained(str(copy))
        save_backbone_config(self.config.model.vision, folder / BACKBONE)

    def _is_kept(self, copy: Path) -> bool:
        """Returns True if the folder ``copy`` has the tokenizer of this run and, if it is needed, the config of the encoder."""
        try:
            kept = load_tokenizer(copy) if copy.is_dir() else None
        except UserError:  # damaged
            return False
        has_config = self.config.model.text.arch is not None or (copy / "config.json").is_file()
        return kept is not None and has_config and difference_of_tokenizers(self.tokenizer, kept) is None

    def train_loader(self) -> BatchLoader:
        """See :class:`engine.task.Task`."""
        assert self.loader is not None, "the task was built to evaluate"
        return self.loader


def video_frames(config: RunConfig) -> int | None:
    """Returns the number of frames per video, or None if the model takes images."""
    video = config.model.vision.video
    return None if video is None else video.frames


def build_parts(
    task_class: type[BaseTask[C, M, B]], config: C, checkpoint: Checkpoint | None, *, trains: bool, plan: RunPlan | None
) -> Parts[M, B]:
    """Builds the components of a task; see :meth:`BaseTask.build`."""
    if video_frames(config) is not None and not task_class.takes_videos:
        raise UserError("this task takes images only", where="model.vision.video", remedy="remove the key")
    tokenizer = load_tokenizer(config.model.text.encoder, "model.text.encoder")
    _check_padding(config, tokenizer)
    torch.manual_seed(config.seed)
    with distributed.built_on_rank_0():
        model = task_class.build_model(config, len(tokenizer))
    for key, length in task_class.text_lengths(config).items():
        check_length(model, key, length)
    fresh: set[str] = set()
    if checkpoint is not None:
        if trains:
            set_up_training(config, model)
        load_weights(model, checkpoint.model_file).require_complete()
    else:
        fresh = _initialise(task_class, config, model)
        if trains:
            set_up_training(config, model)
    if trains and config.optim.frozen.cache is not None:
        keep_features(config.optim.frozen.cache, model)
    logger.info(BuiltModel(parameters=sum(parameter.numel() for parameter in model.parameters())))
    training, loader = None, None
    if trains:
        plan = plan or config.plan(distributed.world_size())
        training = task_class.training_data(config, tokenizer, model, plan)
        loader = BatchLoader(training, config.data, rank=distributed.rank(), world_size=distributed.world_size())
        plan = plan.with_length(config.train, config.optim, config.schedule, loader.epoch_size)
        _log_sizes(config, plan, loader, model)
    elif task_class.reads_training_data_to_evaluate:
        try:
            # The data are only compared with the held-out data, in any order.
            ranks = distributed.world_size()
            single = RunPlan.of(config.train, config.data, chunks=1, ranks=ranks, accumulation=1)
            training = task_class.training_data(config, tokenizer, model, single)
        except UserError as error:
            logger.info("evaluating without the training data: %s", error)
    return Parts(tokenizer, model, fresh, plan, training, loader)


def set_up_training(config: RunConfig, model: XVLM) -> None:
    """Freezes the blocks of ``optim.freeze.vision_blocks``, and adds the adapters of ``optim.lora`` to the model.

    Raises:
        UserError: if the settings do not fit the model, or peft is not installed.
    """
    blocks = config.optim.frozen.vision_blocks
    if blocks is not None:
        model.vision.freeze_blocks(blocks)
        logger.info("optim.freeze: everything before block %d of the vision encoder is frozen", blocks)
    if config.optim.lora is not None:
        with distributed.built_on_rank_0():
            add_adapters(model, config.optim.lora, tuple(config.optim.frozen.steps))


def keep_features(config: FeatureCacheConfig, model: XVLM) -> None:
    """Caches the states of frozen blocks on disk.

    Raises:
        UserError: if the config does not name a folder and the user has no cache folder.
    """
    caches = cache_folder()
    if config.folder is None and caches is None:
        raise UserError(
            "this user has no cache folder", where="optim.freeze.cache.folder", remedy="set the key to a folder"
        )
    folder = expanded(config.folder) if config.folder is not None else cast(Path, caches) / "features"
    model.vision.keep_features(folder, int(config.gigabytes * 1e9))
    logger.info("optim.freeze: states of frozen blocks are cached in %s, up to %g GB", folder, config.gigabytes)


def check_length(model: XVLM, key: str, length: int) -> None:
    """Raises a :class:`UserError` if ``length``, the value of the config ``key``, exceeds the text encoder's number of
    positions."""
    longest = model.text.longest_text
    if longest is not None and length > longest:
        raise UserError(
            f"{key} is {length}, but model.text only has positions for {longest} tokens",
            remedy=f"lower it, or interpolate the positions with model.text.max_positions={length}",
        )


def _check_padding(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    arch, pad = config.model.text.arch, tokenizer.pad_token_id
    if arch is not None and arch.family == "roberta" and arch.pad_id != pad:
        raise UserError(
            f"model.text.arch.pad_id is {arch.pad_id}, but RoBERTa counts positions from the tokenizer's pad id, {pad}",
            remedy=f"set it to {pad}",
        )


def _initialise(task_class: type[BaseTask[C, Any, Any]], config: C, model: XVLM) -> set[str]:
    """Loads the weights that ``config.init`` names, and returns the names of the parameters that train at ``lr * lr_mult``."""
    reports = load_initial(task_class, config, model)
    logger.info(loaded_weights(model, reports))
    random = random_parameters(model, reports)
    targets = () if config.optim.lora is None else config.optim.lora.targets or PARTS
    random_names = {
        "freeze": [name for name in random if math.isinf(config.optim.frozen.trains_from(name))],
        "lora": [
            name
            for name in random
            if name.startswith(tuple(f"{part}." for part in targets)) and not name.startswith(OUTSIDE_BLOCKS)
        ],
    }
    for key, names in random_names.items():
        if names:
            logger.warning(
                "optim.%s: %d tensors, such as %s, keep their random values; check the keys of init",
                key,
                len(names),
                names[0],
            )
    return fresh_parameters(model, reports)


def load_initial(task_class: type[BaseTask[C, Any, Any]], config: C, model: XVLM) -> list[LoadReport]:
    """Loads the weights that ``config.init`` names. A model on the meta device is only compared with the files.

    Raises:
        UserError: if a file cannot be used, or the run cannot start from it.
    """
    init = config.init
    if init.checkpoint is not None:
        init = init.model_copy(update={"checkpoint": str(find_weights(expanded(init.checkpoint)))})
    reports = initialise(model, init)
    if init.checkpoint is not None:
        _check_origin(task_class, config, model, Path(init.checkpoint), reports[0])
    return reports


def _check_origin(
    task_class: type[BaseTask[C, Any, Any]], config: C, model: XVLM, weights: Path, report: LoadReport
) -> None:
    """Compares the settings that do not affect any tensor shape with the config of the run that wrote the weights, or with the
    settings of the published models."""
    run = run_config_of(weights)
    trained = None if run is None else read_yaml(run)
    if trained is not None and not isinstance(trained.get("task"), str):
        raise UserError(
            f"{run}, next to the weights, does not name a task, so it is not the config of a run",
            where="init.checkpoint",
            remedy="move the weights to another folder",
        )
    task_class.check_origin(config, None if trained is None else trained["task"], weights, report)
    if trained is not None and run is not None:
        section = model_section(trained)
        if section is None:
            logger.warning(
                "%s was written by another version; settings that do not affect the shapes of its weights are not "
                "compared",
                run,
            )
        else:
            require_same_settings(model, section, str(run), new_text=report.text_skipped)
    elif report.published and (differences := differences_from_published(model)):
        logger.warning("%s: %s; is this difference intended?", weights, "; ".join(differences))


def _log_sizes(config: RunConfig, plan: RunPlan, loader: BatchLoader, model: XVLM) -> None:
    """Logs the sizes of the data, of a step and of the run, and a hint if the contrastive loss compares fewer examples than the
    global batch contains."""
    train, ranks, accumulation = config.train, plan.ranks, plan.accumulation
    logger.info(
        Planned(
            records=dict(loader.stream_sizes),
            examples_per_step=loader.examples_per_batch * ranks * accumulation,
            steps=plan.steps,
            epochs=plan.epochs,
        )
    )
    if train.global_batch is not None and accumulation > plan.chunks and isinstance(model, AligningModel):
        size, chunks = loader.micro_batch.size, f"{plan.chunks} chunks x " if plan.chunks > 1 else ""
        logger.info(
            "contrastive loss: %s examples (%smicro-batch %d x %d ranks) of train.global_batch = %s, so it has fewer negatives; "
            "set model.contrastive.chunks to combine several micro-batches",
            *(f"{plan.chunks * size * ranks:,}", chunks, size, ranks, f"{train.global_batch:,}"),
        )
