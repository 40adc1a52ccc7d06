"""Loads a model from a run, a weight file, one of the authors' files, or the Hub.

A model consists of its settings (:mod:`x2vlm.settings`), a runtime with its weights (:mod:`x2vlm.runtime`, :mod:`x2vlm.weights`),
and readers of its inputs (:mod:`x2vlm.inputs`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dataset.tasks.video_qa import read_classes
from dataset.tasks.vqa import read_candidates
from dataset.text.loading import has_token_ids, load_tokenizer
from engine.checkpoint import run_config_of
from engine.config import PrecisionName
from engine.precision import DTYPES, check_precision
from models.config import VideoQAModelConfig
from tasks.base import ANSWERS, BACKBONE, TOKENIZER
from tasks.kinds import TaskSource, find_task, task_of_run
from utils import accelerator
from utils.errors import UserError
from utils.files import expanded
from utils.weight_file import trained_token_ids
from x2vlm.calibration import read_calibration
from x2vlm.export.files import is_export
from x2vlm.model import Model
from x2vlm.runtime import TorchRuntime
from x2vlm.settings import Settings, settings_of_weights
from x2vlm.weights import HUB, load_network, weights_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    precision: PrecisionName = "fp32",
    config: str | Path | None = None,
    tokenizer: str | Path | None = None,
    answers: str | Path | None = None,
    task: str | Path | None = None,
) -> Model:
    """Loads a trained model.

    Args:
        source: the folder of a run, a folder written by :meth:`~x2vlm.model.Model.save`, a weight file of this project or of the
            authors, ``hub:owner/name`` for a saved folder on the Hugging Face Hub, or a folder ``X.onnx`` written by
            ``run.py export``.
        device: the device of the model, such as "cuda:1"; if None, a GPU if there is one, otherwise the CPU. On a GPU, loading a
            model disables cuDNN's attention in this process, as in training.
        precision: the precision of computations, "fp32", "bf16" or "fp16".
        config: the config that the weights were trained with; needed unless the file is in a run's folder or is one of the
            authors' files.
        tokenizer: folder or Hub name of a tokenizer to use instead of the model's.
        answers: JSON list of the candidate answers for question answering.
        task: the folder or module of a task of your own. A run remembers where its task was; saved models and models from the
            Hub do not, because loading a model must not execute code that came with it.

    Raises:
        UserError: the file does not exist, is damaged, or does not match the config. The message is one line.
    """
    if not str(source).startswith(HUB) and is_export(expanded(source)):
        from x2vlm.export.loading import load_export

        options = {
            "device": device,
            "precision": precision,
            "config": config,
            "tokenizer": tokenizer,
            "answers": answers,
        }
        return load_export(expanded(source), str(source), **options)
    chosen_device = _device(device)
    if precision not in DTYPES:
        raise UserError(f"precision {precision!r} is not one of {', '.join(DTYPES)}")
    check_precision(precision, chosen_device, "precision")
    source = str(source)
    weights = weights_of(source)
    run = run_config_of(weights)
    folder = None if run is None else run.parent
    settings, task_source = settings_of_weights(weights, run, config, _task_of(source, folder, task))
    tokenizer_name = _tokenizer_name(settings, folder, tokenizer)
    loaded_tokenizer = load_tokenizer(tokenizer_name, "tokenizer")
    _check_token_ids(loaded_tokenizer, tokenizer_name, weights)
    settings = settings.model_copy(update={"model": _with_encoders(settings, tokenizer_name, folder)})
    network = task_source.model_class()(settings.model, len(loaded_tokenizer))
    load_network(network, weights)
    return Model(
        TorchRuntime(network.to(chosen_device).eval(), precision),
        loaded_tokenizer,
        settings,
        answers=_answers(settings, folder, answers),
        origin=source,
        calls=task_source.calls(),
        calibration=None if folder is None else read_calibration(folder, network),
    )


def _check_token_ids(tokenizer: PreTrainedTokenizerFast, name: str, weights: Path) -> None:
    """Raises :class:`UserError` if weights were trained with a tokenizer whose token ids differ."""
    trained_with = trained_token_ids(weights)
    if trained_with is not None and not has_token_ids(tokenizer, trained_with):
        raise UserError(
            f"tokenizer {name}: its token ids differ from the token ids used to train {weights}, so "
            "words would get the embeddings of other words",
            remedy="pass the tokenizer used in training",
        )


def _device(device: str | torch.device | None) -> torch.device:
    """Returns the requested device. If it is None, returns a GPU if there is one, otherwise the CPU.

    Raises:
        UserError: there is no such device.
    """
    try:
        found = torch.device(device) if device else accelerator.best_device()
        torch.empty(1, device=found)
        if found.type == "cuda":
            accelerator.disable_cudnn_attention()
    except (RuntimeError, AssertionError, TypeError):
        raise UserError(
            f"device {str(device)!r} cannot be used here", remedy="use cpu or, if there is a GPU, cuda or cuda:N"
        ) from None
    return found


def _task_of(source: str, folder: Path | None, task: str | Path | None) -> TaskSource | None:
    """Returns the task that the user names or the run in ``folder`` remembers, or None if there is neither."""
    if task is not None:
        return find_task(str(task))
    if folder is None or source.startswith(HUB):
        return None
    return task_of_run(folder, None)


def _tokenizer_name(settings: Settings, folder: Path | None, tokenizer: str | Path | None) -> str:
    """Returns the requested tokenizer or, by default, the tokenizer kept by the run or the tokenizer in the config."""
    if tokenizer is not None:
        return str(tokenizer)
    if folder is not None and (folder / TOKENIZER).is_dir():
        return str(folder / TOKENIZER)
    return settings.model.text.encoder


def _with_encoders(settings: Settings, tokenizer_name: str, folder: Path | None) -> object:
    """Returns the section ``model`` with two changes: the text encoder refers to the tokenizer's folder, and the vision encoder
    to the copy kept by the run. Sizes that the config does not set are read from these folders."""
    model = settings.model
    parts: dict[str, Any] = {"text": model.text.model_copy(update={"encoder": tokenizer_name})}
    if folder is not None and (folder / BACKBONE).is_dir():
        parts["vision"] = model.vision.model_copy(update={"backbone": f"hf:{folder / BACKBONE}"})
    return model.model_copy(update=parts)


def _answers(settings: Settings, folder: Path | None, answers: str | Path | None) -> list[str] | None:
    """Returns the requested candidate answers or, by default, the answers kept by the run. The answers of a classifier are in
    label order."""
    if answers is None:
        if folder is None or not (folder / ANSWERS).exists():
            return None
        answers = folder / ANSWERS
    if isinstance(settings.model, VideoQAModelConfig):
        return read_classes(str(answers), "answers", settings.model.classes)
    return read_candidates(str(answers), "answers")
