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
from utils.errors import UserError, reason_of
from utils.files import expanded
from utils.hub import local_folder
from utils.weight_file import is_damaged, read_metadata, reject_zip_bomb

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile add to every name."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_MAX_EXPANSION = 8
"""Maximum ratio of the total size of a file's tensors to the size of the file. The ratio can exceed 1, because published files
store some tensors only once under two names."""


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file, and how they were stored in the file.

    Attributes:
        tensors: the tensors by name.
        key: key of the nested dictionary that contained the tensors; None if the tensors were not nested.
        other_entries: names of all other entries in the file.
        prefix: prefix that was removed from every name.
    """

    tensors: dict[str, Tensor]
    key: str | None = None
    other_entries: tuple[str, ...] = ()
    prefix: str = ""


def read_weights(path: str | Path, *, merge: bool = True) -> dict[str, Tensor]:
    """Reads the tensors of a ``.safetensors`` or PyTorch file, by name.

    A nested ``model``, ``module`` or ``state_dict`` dictionary is opened. If DistributedDataParallel or torch.compile has added a
    prefix to all names, it is removed.

    Args:
        path: path of the file.
        merge: whether to merge low-rank adapters in the file into the weights of their layers; if False, adapters and weights are
            returned unchanged.

    Raises:
        UserError: if the file is missing, damaged, not a weight file (a web page, a git-lfs pointer), or needs to run code.
    """
    return read_weight_file(path, merge=merge).tensors


def read_weight_file(path: str | Path, *, merge: bool = True) -> WeightFile:
    """Reads the tensors of a file and how they were stored; see :func:`read_weights`."""
    path = expanded(path)
    if not path.is_file():
        raise UserError("no such weight file", where=path)
    try:
        check_start(path)
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            if is_damaged(path, tensors):
                raise UserError(
                    f"{path} is damaged: its weights do not match their hash", remedy="use a different file"
                )
            if merge and has_adapters(tensors):
                tensors = merged(tensors, read_metadata(path), str(path))
            return _unwrapped(tensors)
        reject_zip_bomb(path)
        # Published checkpoints contain their command line in addition to the weights. An argparse namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Map the file into memory, so that only the tensors that are used are read. Files in torch's old format cannot be
            # mapped.
            mapped = zipfile.is_zipfile(path)
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise unreadable(path, error) from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise refusal(path, error) from None
    key = next((key for key in STATE_KEYS if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    other_entries: list[object] = [] if key is None else [name for name in content if name != key]
    content = content if key is None else content[key]
    named = content.items() if isinstance(content, dict) else ()
    tensors = {str(name): value for name, value in named if isinstance(value, Tensor)}
    if not tensors:
        found = ", ".join(str(key) for key in content)[:120] if isinstance(content, dict) else type(content).__name__
        raise UserError(f"contains no weights, but {found or 'nothing'}", where=path)
    _require_plain(path, tensors)
    other_entries += [name for name in content if str(name) not in tensors]
    return _unwrapped(tensors, key, tuple(str(name) for name in other_entries))


def unreadable(path: Path, error: Exception) -> UserError:
    """The error for a file that cannot be read because it is cut off or damaged."""
    reason = reason_of(error)[:200]
    return UserError(
        f"not a readable weight file: {reason}", where=path, remedy="it is damaged or cut off: copy or fetch it again"
    )


def _require_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises :class:`UserError` for tensors that are not stored as plain numbers, because a few bytes could expand to
    terabytes."""
    total = 0
    for name, tensor in tensors.items():
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            what = "is repeated from fewer numbers" if plain else f"is {tensor.layout} on {tensor.device}"
            raise UserError(
                f"the tensor {name[:120]!r} {what}, unlike any weight",
                where=path,
                remedy="save the weights again as plain tensors",
            )
        total += tensor.nbytes
    size = path.stat().st_size
    if total > _MAX_EXPANSION * size:
        raise UserError(
            f"its tensors take {total:,} bytes, and the file has {size:,}",
            where=path,
            remedy="save each tensor once with torch.save",
        )


def wrapper_of(names: Mapping[str, object]) -> str:
    """The prefix that DistributedDataParallel or torch.compile has added to all names."""
    prefix = ""
    while more := next((each for each in WRAPPERS if names and all(n.startswith(prefix + each) for n in names)), None):
        prefix += more
    return prefix


def _unwrapped(tensors: dict[str, Tensor], key: str | None = None, other_entries: tuple[str, ...] = ()) -> WeightFile:
    """A weight file without the prefix that DistributedDataParallel or torch.compile has added to the names."""
    prefix = wrapper_of(tensors)
    return WeightFile({name.removeprefix(prefix): value for name, value in tensors.items()}, key, other_entries, prefix)


def read_hub_weights(source: str, key: str) -> dict[str, Tensor]:
    """Reads the weights of a Hugging Face model, from a folder or by its name on the Hub.

    Args:
        source: the folder or the name.
        key: the config key that contains ``source``, for error messages.

    Raises:
        UserError: if ``source`` is neither a local folder nor a model on the Hub or in its cache.
    """
    path = expanded(source)
    if path.is_file():
        return read_weights(path)
    folder = local_folder(source, WEIGHT_FILES, key)
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} contains neither {' nor '.join(WEIGHT_FILES)}", where=key)
    return read_weights(file)
