"""Reading weight files: safetensors, or PyTorch files without running code from their pickles."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoints.refused import STATE_KEYS, check_start, refusal
from utils.errors import UserError
from utils.files import expanded
from utils.hub import local_folder
from utils.weight_file import is_damaged, refuse_inflating

WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or PyTorch file by name; a nested ``model``, ``module`` or ``state_dict`` dictionary is
    opened, and a prefix that all names have from DistributedDataParallel or torch.compile is left out.

    Raises:
        UserError: if the file is missing, damaged, no weight file (a web page, a git-lfs pointer), or would need code to run.
    """
    path = expanded(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    try:
        check_start(path)
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            if is_damaged(path, tensors):
                raise UserError(f"{path} is damaged: its weights are not those that were written; take another file")
            return _unwrapped(tensors)
        refuse_inflating(path)
        # Published checkpoints hold their command line beside the weights; an argparse namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, not read: only the tensors that are used are, and a file of torch's old format cannot be.
            mapped = zipfile.is_zipfile(path)
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a readable weight file: {reason}") from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise refusal(path, error) from None
    for key in STATE_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    named = content.items() if isinstance(content, dict) else ()
    tensors = {str(name): value for name, value in named if isinstance(value, Tensor)}
    if not tensors:
        held = ", ".join(str(key) for key in content)[:120] if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: holds no weights, but {held or 'nothing'}")
    return _unwrapped(tensors)


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the model's own names."""
    while prefix := next((each for each in WRAPPERS if all(name.startswith(each) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def read_hub_weights(source: str, key: str) -> dict[str, Tensor]:
    """The weights of a Hugging Face folder or name; ``key`` is the config key that named it.

    Raises:
        UserError: if there is neither such a folder nor, on the hub or in its cache, such a model.
    """
    path = expanded(source)
    if path.is_file():
        return read_weights(path)
    folder = local_folder(source, WEIGHT_FILES, key)
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{key}: {folder} holds neither {' nor '.join(WEIGHT_FILES)}")
    return read_weights(file)
