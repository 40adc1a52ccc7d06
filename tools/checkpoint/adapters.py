"""``run.py checkpoint adapters`` and ``merge``: save the weights that a run with ``optim.lora`` trained to a small folder, and
merge them with the original weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.text.loading import load_tokenizer
from engine.checkpoint import MODEL_FILE, run_config_of
from engine.run_files import CONFIG_FILE
from models.checkpoints.files import read_weight_file
from optim.config import HEADER
from optim.lora import config_of, has_adapters, is_adapter, merged, plain_name
from optim.setup import OUTSIDE_BLOCKS, add_adapters
from tasks.base import ADAPTERS, ANSWERS, TOKENIZER, load_initial
from tasks.binding import bind_run
from tasks.kept import with_kept_inputs
from tools.checkpoint.outline import weights_at
from utils.errors import UserError
from utils.files import expanded, new_folder
from utils.weight_file import digest, read_metadata, save_weights

BASE = "base_sha256"
"""Header entry that contains the hash of the weights that the run did not change."""


def extract(run: str, out: Path) -> str:
    """Saves the trained tensors of a run, with the other files that a model needs, to a new folder. Returns a summary line.

    Raises:
        UserError: if the weights have no adapters or are not in a run's folder, or ``out`` exists.
    """
    file, _ = weights_at(run)
    tensors = read_weight_file(file, merge=False).tensors
    if not has_adapters(tensors):
        raise UserError(
            "contains no adapters",
            where=file,
            remedy="pass a run with optim.lora, whose best weights and checkpoints contain them",
        )
    config = run_config_of(file)
    if config is None:
        raise UserError(
            f"is not in a run's folder, and adapters cannot be used without its {CONFIG_FILE}",
            where=file,
            remedy="pass the run's folder",
        )
    metadata = read_metadata(file)
    config_of(metadata, str(file))
    trained, base = _split_tensors(tensors, _frozen_parts(config))
    folder = new_model_folder(out)
    with new_folder(folder) as made:
        save_weights(made / ADAPTERS, trained, {HEADER: metadata[HEADER], BASE: digest(base)})
        copy_beside(config.parent, made)
    size, full_size = (folder / ADAPTERS).stat().st_size, file.stat().st_size
    return (
        f"{file} -> {folder}: {len(trained)} of {len(tensors)} tensors, {size / 1e6:.1f} of {full_size / 1e6:.1f} MB; to "
        f"restore the model, with the WEIGHTS that the run started from: python run.py checkpoint merge {folder} "
        "--base WEIGHTS --out FOLDER\n"
    )


def merge(source: str, base: str, out: Path) -> str:
    """Merges a folder of adapters and the weights that they were trained on into a new folder. Returns a summary line.

    Raises:
        UserError: if the folder or the weights cannot be read, the weights are not the run's, or ``out`` exists.
    """
    folder = expanded(source)
    file = folder / ADAPTERS
    if not file.is_file():
        raise UserError(
            f"contains no {ADAPTERS}", where=source, remedy="pass a folder written by `run.py checkpoint adapters`"
        )
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"contains no {CONFIG_FILE}",
            where=source,
            remedy="copy the whole folder written by `run.py checkpoint adapters`",
        )
    trained, metadata = read_weight_file(file, merge=False).tensors, read_metadata(file)
    model = _model_on(folder, base, metadata)
    state = model.state_dict()
    if digest(_split_tensors(state, _frozen_parts(folder / CONFIG_FILE))[1]) != metadata.get(BASE):
        raise UserError(
            f"the adapters of {source} were trained on other weights",
            where=f"--base {base}",
            remedy="pass the weights that the run started from",
        )
    model.load_state_dict({**state, **trained})
    target = new_model_folder(out)
    with new_folder(target) as made:
        save_weights(made / MODEL_FILE, merged(model.state_dict(), metadata, str(file)))
        copy_beside(folder, made)
    return f"{source} and {base} -> {target}: a model for x2vlm.load, run.py predict and init.checkpoint\n"


def _split_tensors(tensors: Mapping[str, Tensor], frozen: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the tensors that a run with adapters trains, and the tensors that it does not change. They have their names in a
    model without adapters.

    Args:
        tensors: tensors of the run.
        frozen: the parts that are frozen for the whole run.
    """
    targets = tuple({f"{name.partition('.')[0]}." for name in tensors if is_adapter(name)})
    kept = tuple(f"{part}." for part in frozen)
    trained, base = {}, {}
    for name, tensor in tensors.items():
        in_base = name.startswith(kept) or (name.startswith(targets) and not name.startswith(OUTSIDE_BLOCKS))
        if is_adapter(name) or not in_base:
            trained[name] = tensor
        else:
            base[plain_name(name)] = tensor
    return trained, base


def _frozen_parts(config: Path) -> tuple[str, ...]:
    """Returns the parts that a run's config freezes for the whole run.

    Raises:
        UserError: if the config cannot be read.
    """
    frozen: tuple[str, ...] = bind_run(config, []).config.optim.frozen.always_frozen
    return frozen


def _model_on(folder: Path, base: str, metadata: Mapping[str, Any]) -> Any:
    """Builds the model of a run's config with the weights ``base``, from which the run started, and with new adapters."""
    run = bind_run(folder / CONFIG_FILE, [])
    task = run.source.load().task
    if not expanded(base).exists():
        raise UserError(
            "no such file or folder", where=f"--base {base}", remedy="pass the weights that the run started from"
        )
    if run.config.init.checkpoint is None:
        raise UserError("the run has no init.checkpoint that --base could replace", where=folder / CONFIG_FILE)
    config: Any = with_kept_inputs(bind_run(folder / CONFIG_FILE, [f"init.checkpoint={base}"]).config, folder)
    torch.manual_seed(config.seed)
    model = task.build_model(config, len(load_tokenizer(config.model.text.encoder, "model.text.encoder")))
    load_initial(task, config, model)
    add_adapters(model, config_of(metadata, str(folder / ADAPTERS)), tuple(config.optim.frozen.steps))
    return model


def new_model_folder(out: Path) -> Path:
    """Returns the path of a new folder.

    Raises:
        UserError: if ``out`` exists, or its parent folder does not.
    """
    folder = expanded(out)
    if folder.exists():
        raise UserError("already exists", where=f"--out {out}", remedy="use the name of a new folder")
    if not folder.parent.is_dir():
        raise UserError(f"the folder {folder.parent} does not exist", where=f"--out {out}", remedy="create it first")
    return folder


def copy_beside(source: Path, target: Path) -> None:
    """Copies the config, the tokenizer and the answers that a run keeps."""
    shutil.copyfile(source / CONFIG_FILE, target / CONFIG_FILE)
    if (source / ANSWERS).is_file():
        shutil.copyfile(source / ANSWERS, target / ANSWERS)
    if (source / TOKENIZER).is_dir():
        shutil.copytree(source / TOKENIZER, target / TOKENIZER)
