"""Loads a model from a run, a weight file, one of the authors' files, or the Hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from dataset.tasks.video_qa import read_classes
from dataset.tasks.vqa import read_candidates
from dataset.text.loading import has_token_ids, load_tokenizer
from engine.checkpoint import find_weights, run_config_of
from engine.config import PrecisionName
from engine.precision import DTYPES, check_precision
from models.checkpoints.files import read_weights
from models.checkpoints.loading import load_weights
from models.checkpoints.recognise import XLM_R_WORDS, Recognised, recognise
from models.config import VideoQAModelConfig
from tasks import ROOT
from tasks.base import ADAPTERS, ANSWERS, BACKBONE, TOKENIZER
from tasks.kinds import TaskSource, find_task, task_of_run
from utils import accelerator
from utils.config_files import read_config
from utils.errors import UserError
from utils.files import expanded
from utils.hub import local_folder
from utils.weight_file import trained_token_ids
from x2vlm.export.files import is_export
from x2vlm.integrations import MODELLING_FILE
from x2vlm.model import Model
from x2vlm.settings import Settings, settings_of, settings_of_run, task_of

HUB = "hub:"

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
    return _load_weights(str(source), chosen_device, precision, config, tokenizer, answers, task)


def _load_weights(
    source: str,
    device: torch.device,
    precision: PrecisionName,
    config: str | Path | None,
    tokenizer: str | Path | None,
    answers: str | Path | None,
    task: str | Path | None,
) -> Model:
    """Loads the model in a weight file with torch. The arguments are those of :func:`load`."""
    weights = _weights_of(source)
    run = run_config_of(weights)
    folder = None if run is None else run.parent
    settings, task_source = _settings(weights, run, config, _task_of(source, folder, task))
    tokenizer_name = _tokenizer_name(settings, folder, tokenizer)
    settings = settings.model_copy(update={"model": _with_encoders(settings, tokenizer_name, folder)})
    loaded = load_tokenizer(tokenizer_name, "tokenizer")
    trained_with = trained_token_ids(weights)
    if trained_with is not None and not has_token_ids(loaded, trained_with):
        raise UserError(
            f"tokenizer {tokenizer_name}: its token ids differ from the token ids used to train {weights}, so "
            "words would get the embeddings of other words",
            remedy="pass the tokenizer used in training",
        )
    network = task_source.model_class()(settings.model, len(loaded))
    load_weights(network, weights).require_complete()
    _check_finite(network, weights)
    return Model(
        network.to(device).eval(),
        loaded,
        settings,
        answers=_answers(settings, folder, answers),
        origin=source,
        precision=precision,
        calls=task_source.calls(),
    )


def _check_finite(network: torch.nn.Module, weights: Path) -> None:
    """Rejects weights that contain NaN or infinity.

    Raises:
        UserError: a parameter contains NaN or infinity; the message names the first such parameter.
    """
    for name, parameter in network.named_parameters():
        if not torch.stack(parameter.aminmax()).isfinite().all():
            raise UserError(
                f"{name} has values that are NaN or infinite, so the model cannot be used",
                where=weights,
                remedy="pass different weights, such as a previous checkpoint",
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


def _weights_of(source: str) -> Path:
    """Returns the weight file of ``source``. A model on the Hub is downloaded first."""
    if source.startswith(HUB):
        folder = local_folder(
            source.removeprefix(HUB),
            ["model.safetensors"],
            source,
            extra_files=["*.yaml", "*.json", "tokenizer/*", "vision/*"],
        )
        return find_weights(folder)
    path = expanded(source)
    if not path.exists():
        raise UserError(
            "no such file or folder", where=source, remedy=f"pass a run's folder, a weight file, or {HUB}owner/name"
        )
    if (path / MODELLING_FILE).is_file():
        raise UserError(
            "saved for transformers",
            where=source,
            remedy="load it with AutoModel.from_pretrained, or save the model with format='x2vlm'",
        )
    if (path / ADAPTERS).is_file():
        raise UserError(
            "contains only adapters",
            where=source,
            remedy=f"build a model from them with `python run.py checkpoint merge {source} --base …`",
        )
    return find_weights(path)


def _task_of(source: str, folder: Path | None, task: str | Path | None) -> TaskSource | None:
    """Returns the task that the user names or the run in ``folder`` remembers, or None if there is neither."""
    if task is not None:
        return find_task(str(task))
    if folder is None or source.startswith(HUB):
        return None
    return task_of_run(folder, None)


def _settings(
    weights: Path, run: Path | None, config: str | Path | None, task: TaskSource | None
) -> tuple[Settings, TaskSource]:
    """Returns the settings of a weight file and its task: from the given config, from the file's run, or from the matching config
    of the authors' runs."""
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
