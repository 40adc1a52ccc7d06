"""Weight files that show damage: safetensors with a hash of the tensors in the header."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from utils.errors import UserError
from utils.files import replacing

ABOUT = "about"
"""Entry of the header: JSON, with the hash under ``sha256``. There is one, since safetensors writes several in random order."""

TOKEN_IDS = "token_ids"
"""Value in this entry: digest of the tokenizer's ids that the weights were trained with (:mod:`dataset.text.loading`)."""


def save_weights(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
    """Replace ``path`` atomically by a safetensors file of ``tensors``, which are on the CPU.

    ``about``: more values for the entry of the header. Equal tensors and values give equal files.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    header = {ABOUT: json.dumps({"sha256": digest(contiguous), **(about or {})})}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(contiguous, temporary, metadata=header)
        temporary.chmod(mode)  # as of any new file; newer releases of safetensors write for the owner alone


def read_about(path: Path) -> dict[str, Any]:
    """The values in the header of a safetensors file; none where another program wrote it.

    Raises:
        UserError: the entry is no JSON object, so that its hash cannot be trusted.
    """
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(ABOUT, "{}")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: the entry {ABOUT!r} of its header is no JSON object: it is damaged; copy or fetch it again"
        )
    return values


def trained_token_ids(path: Path) -> str | None:
    """The digest of the token ids that a weight file was trained with; None if the file does not say it.

    Raises:
        UserError: see :func:`read_about`.
    """
    stated = read_about(path).get(TOKEN_IDS) if path.suffix == ".safetensors" and path.is_file() else None
    return stated if isinstance(stated, str) else None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and contents of tensors on the CPU, as hexadecimal digits."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def is_damaged(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Whether ``tensors``, just read from the safetensors file ``path``, are not those that :func:`save_weights` wrote. A file
    of another program has no hash: False."""
    stated = read_about(path).get("sha256")
    return stated is not None and stated != digest(tensors)


def refuse_inflating(path: Path) -> None:
    """Raises :class:`UserError` for an archive of torch that unpacks to more than it holds; torch itself compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception:  # no archive, or a damaged one, which torch.load reports
        return
    unpacked = sum(member.file_size for member in members)
    if unpacked > path.stat().st_size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(
            f"{path}: its archive is compressed, or says that it unpacks to {unpacked:,} bytes, as no weight file of torch does; "
            "save the weights again with torch.save"
        )
