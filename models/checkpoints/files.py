"""Reading weight files: safetensors, or PyTorch files without running code from their pickles."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoints.refused import STATE_KEYS, check_start, refusal
from optim.lora import has_adapters, merged
from utils.errors import UserError
from utils.files import expanded
from utils.hub import local_folder
from utils.weight_file import is_damaged, read_about, refuse_inflating

WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_INFLATED = 8
"""Tensors of a file may take this many times its bytes: published files store some of them twice under two names."""


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file by name. ``key``: of the dictionary that held them, None: none; ``beside``: what else the file
    holds, by name; ``prefix``: what was left out before every name."""

    tensors: dict[str, Tensor]
    key: str | None = None
    beside: tuple[str, ...] = ()
    prefix: str = ""


def read_weights(path: str | Path, *, merge: bool = True) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or PyTorch file by name; a nested ``model``, ``module`` or ``state_dict`` dictionary is
    opened, and a prefix that all names have from DistributedDataParallel or torch.compile is left out.

    Args:
        path: of the file.
        merge: add low-rank adapters in the file to the weights of their layers; false: give both as they are.

    Raises:
        UserError: if the file is missing, damaged, no weight file (a web page, a git-lfs pointer), or would need code to run.
    """
    return read_weight_file(path, merge=merge).tensors


def read_weight_file(path: str | Path, *, merge: bool = True) -> WeightFile:
    """The tensors of a file, and how it held them; see :func:`read_weights`."""
    path = expanded(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    try:
        check_start(path)
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            if is_damaged(path, tensors):
                raise UserError(f"{path} is damaged: its weights are not those that were written; take another file")
            if merge and has_adapters(tensors):
                tensors = merged(tensors, read_about(path), str(path))
            return _unwrapped(tensors)
        refuse_inflating(path)
        # Published checkpoints hold their command line beside the weights; an argparse namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, not read: only the tensors that are used are, and a file of torch's old format cannot be.
            mapped = zipfile.is_zipfile(path)
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise unreadable(path, error) from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise refusal(path, error) from None
    key = next((key for key in STATE_KEYS if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    beside: list[object] = [] if key is None else [name for name in content if name != key]
    content = content if key is None else content[key]
    named = content.items() if isinstance(content, dict) else ()
    tensors = {str(name): value for name, value in named if isinstance(value, Tensor)}
    if not tensors:
        held = ", ".join(str(key) for key in content)[:120] if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: holds no weights, but {held or 'nothing'}")
    _require_plain(path, tensors)
    beside += [name for name in content if str(name) not in tensors]
    return _unwrapped(tensors, key, tuple(str(name) for name in beside))


def unreadable(path: Path, error: Exception) -> UserError:
    """The error for a file whose contents cannot be read: cut off, or overwritten."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserError(f"{path}: not a readable weight file: {reason}; it is damaged or cut off: copy or fetch it again")


def _require_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises :class:`UserError` for tensors that are not simply numbers of the file: a few bytes can stand for terabytes."""
    total = 0
    for name, tensor in tensors.items():
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            what = "is repeated from fewer numbers" if plain else f"is {tensor.layout} on {tensor.device}"
            raise UserError(
                f"{path}: the tensor {name[:120]!r} {what}, as no weight is; save the weights again as plain tensors"
            )
        total += tensor.nbytes
    size = path.stat().st_size
    if total > _INFLATED * size:
        raise UserError(
            f"{path}: its tensors take {total:,} bytes, and the file has {size:,}; save each tensor once with torch.save"
        )


def wrapper_of(names: Mapping[str, object]) -> str:
    """The prefix that all names have from DistributedDataParallel or torch.compile."""
    prefix = ""
    while more := next((each for each in WRAPPERS if names and all(n.startswith(prefix + each) for n in names)), None):
        prefix += more
    return prefix


def _unwrapped(tensors: dict[str, Tensor], key: str | None = None, beside: tuple[str, ...] = ()) -> WeightFile:
    """The tensors under the model's own names."""
    prefix = wrapper_of(tensors)
    return WeightFile({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, key, beside, prefix)


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
