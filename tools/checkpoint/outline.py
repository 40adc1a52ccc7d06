"""The names, shapes and dtypes in a weight file, and whether it is intact."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from engine.checkpoint import CHECKPOINTS, MANIFEST, MODEL_FILE, NAME, fault_of, find_weights, list_checkpoints
from models.checkpoints.files import WEIGHT_FILES, read_weight_file, unreadable, wrapper_of
from models.checkpoints.refused import check_start
from models.checkpoints.rename import Shapes
from optim.lora import INNER, is_adapter, plain_name
from tasks.base import ADAPTERS
from utils.errors import UserError
from utils.files import expanded
from utils.weight_file import is_damaged, read_metadata

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Dtypes in a safetensors header."""


@dataclass(frozen=True)
class Outline:
    """The outline of a weight file.

    Attributes:
        shapes: shapes of all tensors except adapters, which are merged when a file is read.
        adapters: number of adapter tensors.
        dtypes: number of tensors of each dtype.
        storage: how the file stores the tensors.
        metadata: our entry in the header of the file.
        only_adapters: whether the file contains adapters without the weights they belong to.
    """

    path: Path
    shapes: Shapes
    dtypes: Counter[str]
    storage: str
    metadata: dict[str, Any]
    adapters: int = 0
    only_adapters: bool = False

    @property
    def stored(self) -> int:
        """Number of tensors in the file."""
        return len(self.shapes) + 2 * self.adapters


def shown(text: str) -> str:
    """Shortens a name from a file to one printable line, because it may contain any characters."""
    line = text if text.isprintable() else repr(text)[1:-1]
    return line if len(line) <= 100 else f"{line[:97]}…"


def weights_at(path: str | Path) -> tuple[Path, list[str]]:
    """Returns the weight file at a path: the file itself, the file in a checkpoint or a Hugging Face folder, or the file in a
    run's folder that other runs would start from. For a run's folder, it also returns a line for each checkpoint.

    Raises:
        UserError: if the weight file is missing.
    """
    path = expanded(path)
    if not path.exists():
        raise UserError(
            "no such file or folder", where=path, remedy="pass a weight file, a run's folder, or its checkpoint step-N"
        )
    if not path.is_dir():
        return path, []
    inside = next((path / name for name in (*WEIGHT_FILES, ADAPTERS) if (path / name).is_file()), None)
    if inside is not None:
        return inside, []
    checkpoints = list_checkpoints(path / CHECKPOINTS)
    states = [f"{checkpoint.folder.name}: {fault_of(checkpoint.folder) or 'intact'}" for checkpoint in checkpoints]
    return find_weights(path), states


def read_outline(path: Path) -> Outline:
    """Reads the outline of a weight file.

    Raises:
        UserError: if the file is not a weight file, or is truncated.
    """
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    file = read_weight_file(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    dtypes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    storage = "a PyTorch file" if zipfile.is_zipfile(path) else "a PyTorch file of the old format"
    storage += f", weights in `{file.key}`" if file.key else ""
    storage += f", without the prefix {file.prefix}" if file.prefix else ""
    beside = [shown(name) for name in file.other_entries]
    storage += f"; it also contains {', '.join(beside[:6])}{', …' if len(beside) > 6 else ''}" if beside else ""
    return Outline(path, shapes, dtypes, storage, {})


def _of_safetensors(path: Path) -> Outline:
    check_start(path)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: Counter[str] = Counter()
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is not a dictionary)
                entry = file.get_slice(name)
                shapes[name] = tuple(entry.get_shape())
                dtypes[DTYPES.get(entry.get_dtype(), entry.get_dtype())] += math.prod(shapes[name])
        metadata = read_metadata(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise unreadable(path, error) from None
    prefix = wrapper_of(shapes)
    storage = "safetensors" + (f", without the prefix {prefix}" if prefix else "")
    plain = {plain_name(name.removeprefix(prefix)): shape for name, shape in shapes.items() if not is_adapter(name)}
    adapters = (len(shapes) - len(plain)) // 2
    return Outline(
        path, plain, dtypes, storage, metadata, adapters, bool(adapters) and not any(INNER in name for name in shapes)
    )


def integrity(outline: Outline) -> tuple[bool, str]:
    """Returns whether a file is intact, as far as this can be checked, and a text that says how it was checked."""
    path = outline.path
    if NAME.fullmatch(path.parent.name) and path.name == MODEL_FILE and (path.parent / MANIFEST).is_file():
        fault = fault_of(path.parent)
        return fault is None, fault or "yes, by the sizes and hashes of its manifest"
    if path.suffix == ".safetensors":
        if "sha256" not in outline.metadata:
            return True, "the size matches the header, which contains no hash"
        damaged = is_damaged(path, load_file(path))
        return (
            not damaged,
            "no: the hash of the tensors does not match the header" if damaged else "yes, by the hash in its header",
        )
    if not zipfile.is_zipfile(path):
        return True, "it could be read to the end; the old format has no checksums"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        return False, f"no: {shown(str(error))}"
    return (
        broken is None,
        f"no: the checksum of {shown(broken)} does not match" if broken else "yes, by the checksums of its archive",
    )
