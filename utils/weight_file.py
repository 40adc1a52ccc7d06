"""Reads and writes weight files that detect corruption: safetensors files with a hash of the tensors in the header."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from utils.errors import UserError
from utils.files import replacing

HEADER_ENTRY = "about"
"""Name of the entry in the header of a weight file. Its value is a JSON object that contains the hash under ``sha256``. We use
only one entry, because safetensors writes several entries in random order."""

TOKEN_IDS = "token_ids"
"""Key in this JSON object for the digest of the tokenizer that the weights were trained with (:mod:`dataset.text.loading`)."""

SAME_RESULTS = ("training", "fused_attn", "grad_checkpointing", "gradient_checkpointing")
"""Attributes of modules that change how results are computed, but not the results in evaluation mode."""


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Atomically replaces ``path`` with a safetensors file. Equal arguments result in equal files.

    Args:
        path: the file to write.
        tensors: the tensors by name, on the CPU.
        metadata: additional values for the header.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    header = {HEADER_ENTRY: json.dumps({"sha256": digest(contiguous), **(metadata or {})})}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(contiguous, temporary, metadata=header)
        # The usual mode of new files. Newer versions of safetensors make files readable only by the owner.
        temporary.chmod(mode)


def check_complete(path: Path) -> None:
    """Checks that a safetensors file is as long as its header says.

    Raises:
        UserError: if it is shorter or longer, or its header cannot be read.
    """
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise UserError(f"{path} is incomplete ({error})", remedy="check the disk that contains it") from None


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns the metadata in the header of a safetensors file. The result is empty if another program wrote the file.

    Raises:
        UserError: if the entry is not a JSON object, so that its hash cannot be trusted.
    """
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(HEADER_ENTRY, "{}")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(
            f"damaged: the header entry {HEADER_ENTRY!r} is not a JSON object",
            where=path,
            remedy="copy or download the file again",
        )
    return values


def trained_token_ids(path: Path) -> str | None:
    """Returns the digest of the token ids that the weights were trained with, or None if the file does not contain it.

    Raises:
        UserError: see :func:`read_metadata`.
    """
    stated = read_metadata(path).get(TOKEN_IDS) if path.suffix == ".safetensors" and path.is_file() else None
    return stated if isinstance(stated, str) else None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the hexadecimal SHA-256 of the names, dtypes, shapes and contents of tensors on the CPU."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def identity(module: nn.Module, ignored: Collection[str] = ()) -> str:
    """Returns a digest of everything that a module in evaluation mode computes with: its weights and buffers, and the types and
    hyperparameters of its submodules, such as the number of heads, which the weights do not show.

    Args:
        module: the module.
        ignored: names of parameters and buffers that do not matter.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    total = hashlib.sha256(digest({name: each.cpu() for name, each in tensors.items() if name not in ignored}).encode())
    for name, part in module.named_modules():
        hyperparameters = sorted(
            (key, value)
            for key, value in vars(part).items()
            if isinstance(value, int | float | str | tuple) and not key.startswith("_") and key not in SAME_RESULTS
        )
        total.update(f"{name} {type(part).__module__}.{type(part).__qualname__} {hyperparameters}\n".encode())
    return total.hexdigest()


def is_damaged(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Returns True if ``tensors``, which were read from the safetensors file ``path``, differ from the tensors that
    :func:`save_weights` wrote. Returns False for files without a hash, which were written by other programs."""
    stated = read_metadata(path).get("sha256")
    return stated is not None and stated != digest(tensors)


def reject_zip_bomb(path: Path) -> None:
    """Raises :class:`UserError` if a torch archive would expand when unpacked. Torch never compresses its archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception:  # not an archive, or a damaged one, which torch.load reports
        return
    unpacked = sum(member.file_size for member in members)
    if unpacked > path.stat().st_size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(
            f"the archive is compressed, or claims to unpack to {unpacked:,} bytes, unlike any weight file "
            "written by torch",
            where=path,
            remedy="save the weights again with torch.save",
        )
