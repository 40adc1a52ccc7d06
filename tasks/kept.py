"""Copies of the tokenizer and the answers in a run's folder, so that its weights can be used anywhere with the same
vocabulary."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dataset.text.loading import difference_of_tokenizers, has_token_ids, load_tokenizer
from engine.checkpoint import find_weights, run_config_of
from engine.run_files import CONFIG_FILE
from engine.run_folder import RunFolder
from engine.saved_config import read_saved_config
from tasks.base import ANSWERS, BACKBONE, TOKENIZER
from tasks.config import RunConfig
from tasks.run_flags import RunFlags
from utils import distributed
from utils.config import Config
from utils.errors import UserError
from utils.files import expanded
from utils.hub import HUB, looks_like_path
from utils.inputs import check_inputs
from utils.weight_file import trained_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

C = TypeVar("C", bound=RunConfig)

logger = logging.getLogger(__name__)


def with_available_inputs(config: C, folder: RunFolder, flags: RunFlags) -> C:
    """Replaces missing inputs in the config with the copies that the run, or the run that it starts from, has kept.

    Raises:
        UserError: if an input of the run is missing, or the weights were trained with a different tokenizer.
    """
    evaluates_own_run = flags.evaluate and flags.resume
    if evaluates_own_run and folder.newest is None and not folder.best.is_file():
        raise UserError(
            f"--evaluate --resume: {folder.path} has no weights", remedy="pass the --output of a run that was trained"
        )
    # With one of the run's own checkpoints, init is not needed, and an evaluation does not need training data.
    uses_own_weights = folder.newest is not None or evaluates_own_run
    run, weights = run_and_weights_of(config.init.checkpoint)
    if uses_own_weights:
        run, weights = folder.path, folder.best if folder.newest is None else folder.newest.model_file
    config = with_kept_inputs(config, run)
    check_inputs(config, (*(("init",) if uses_own_weights else ()), *(("data",) if flags.evaluate else ())))
    check_token_ids(config, run, weights, resumes=uses_own_weights)
    return config


def with_kept_inputs(config: C, run: Path | None) -> C:
    """Returns the config with a missing tokenizer or answer list replaced by the copy in a run's folder.

    A copy is used only if the run's config has the same value for the key, and the value is a missing path or a name on the Hub.

    Args:
        config: config of a run that resumes, evaluates or starts from ``run``.
        run: the folder of the run, or None. Runs of earlier versions have no copies.
    """
    if run is None or not (run / CONFIG_FILE).exists():
        return config
    kept = read_saved_config(run / CONFIG_FILE)
    keys = {
        "model.text.encoder": (run / TOKENIZER, ""),
        "model.vision.backbone": (run / BACKBONE, HUB),
        "evaluation.answers": (run / ANSWERS, ""),
    }
    for key, (copy, prefix) in keys.items():
        current, saved = _value(config, key), _value(kept, key)
        if copy.exists() and current == saved and not _exists(current, prefix) and _has_key(config, key):
            logger.info("%s: using %s, the copy kept by the run, instead of %s", key, copy, current)
            config = _replaced(config, key.split("."), f"{prefix}{copy}")
    return config


def check_token_ids(config: RunConfig, run: Path | None, weights: Path | None, *, resumes: bool) -> None:
    """Checks that the tokenizer of the config produces the token ids that ``weights`` were trained with.

    Rank 0 compares the tokenizer with the digest in the header of the weights and with the copy kept by the run; all ranks raise
    the error. Weights from earlier versions have no digest, and runs of earlier versions have no copy.

    Args:
        config: config of a run that resumes, evaluates or starts from ``weights``.
        run: folder of the run that wrote ``weights``, or None.
        weights: the weight file, or None.
        resumes: whether ``run`` is resumed or evaluated, rather than used to start another run.

    Raises:
        UserError: if the token ids differ, because words would then get the embeddings of other words.
    """
    if resumes or not (config.init.new_text or config.init.text is not None):
        distributed.on_rank_0(partial(_compare_token_ids, config, run, weights, resumes))


def _compare_token_ids(config: RunConfig, run: Path | None, weights: Path | None, resumes: bool) -> None:
    encoder, kept = config.model.text.encoder, None if run is None else run / TOKENIZER
    trained_with = None if weights is None else trained_token_ids(weights)
    copy = None if kept is None or not kept.is_dir() else _readable(kept)
    if copy is not None and trained_with is not None and not has_token_ids(copy, trained_with):
        logger.warning(
            "%s: its token ids differ from the token ids used to train %s; the copy is not used", kept, weights
        )
        copy = None
    if copy is None and trained_with is None:
        return
    configured = _readable(encoder)
    if configured is None:
        return
    other = "start another run" if resumes else "set the new text encoder with init.text, or init.new_text=true"
    if copy is not None:
        difference = difference_of_tokenizers(configured, copy)
        if difference is None:
            return
        remedy = "restore the earlier tokenizer" if resumes else f"set model.text.encoder={kept}"
        raise UserError(
            f"the tokenizer {encoder} differs from the tokenizer that the weights of {run} were trained with, "
            f"which is kept in {kept}: {difference}",
            where="model.text.encoder",
            remedy=f"{remedy}, or {other}",
        )
    if trained_with is not None and has_token_ids(configured, trained_with):
        return
    raise UserError(
        f"the token ids of {encoder} differ from the token ids used to train {weights}, so words would get "
        "the embeddings of other words",
        where="model.text.encoder",
        remedy=f"restore the earlier tokenizer, or {other}",
    )


def _readable(tokenizer: str | Path) -> PreTrainedTokenizerFast | None:
    """Loads a tokenizer; returns None with a warning if it cannot be loaded."""
    try:
        return load_tokenizer(tokenizer, "model.text.encoder")
    except UserError as error:
        logger.warning("the tokenizers are not compared: %s", error)
        return None


def run_and_weights_of(weights: str | None) -> tuple[Path | None, Path | None]:
    """Returns the folder of the run that wrote ``init.checkpoint``, and the weight file. Either is None if it does not exist."""
    if weights is None:
        return None, None
    try:
        file = find_weights(expanded(weights))
    except UserError:
        return None, None  # reported when the weights are loaded
    saved = run_config_of(file)
    return None if saved is None else saved.parent, file


def _exists(value: object, prefix: str) -> bool:
    """Returns True if a value, without its prefix, is an existing path."""
    if not isinstance(value, str) or not value.startswith(prefix):
        return False
    path = value.removeprefix(prefix)
    return expanded(path).exists() and looks_like_path(path)


def _value(values: object, key: str) -> object:
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else getattr(values, name, None)
    return values


def _has_key(config: Config, key: str) -> bool:
    section, _, name = key.rpartition(".")
    holder = _value(config, section) if section else config
    return isinstance(holder, Config) and name in type(holder).model_fields


def _replaced(config: C, names: list[str], value: str) -> C:
    first, *rest = names
    return config.model_copy(update={first: _replaced(getattr(config, first), rest, value) if rest else value})
