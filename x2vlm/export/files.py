"""The files of an export: three graphs, the model's config and tokenizer, and a manifest that is used to detect changes to the
files.

A folder ``X.onnx`` contains ``image.onnx``, ``text.onnx`` and ``fusion.onnx``, ``config.yaml``, ``tokenizer/`` and
``export.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine.checkpoint import digest_of
from utils.errors import NotRegularError, UserError
from utils.files import read_json, write_text

MANIFEST = "export.json"
IMAGE, TEXT, FUSION = "image.onnx", "text.onnx", "fusion.onnx"
GRAPHS = (IMAGE, TEXT, FUSION)
PIXELS, IDS, MASK = "pixels", "ids", "mask"
TEXT_STATES, TEXT_MASK, IMAGE_STATES, IMAGE_MASK = "text_states", "text_mask", "image_states", "image_mask"
IMAGE_EMBEDDING, TEXT_EMBEDDING, MARGIN, BOX = "image_embedding", "text_embedding", "margin", "box"
"""Names of the inputs and outputs of the graphs."""
SUFFIX = ".onnx"
FORMAT = 2
"""Version of the format, which is increased when older exports can no longer be read."""
REMEDY = "copy it again, or export again with run.py export"


@dataclass(frozen=True)
class Metadata:
    """Describes an export.

    Attributes:
        weights: hash of the exported weights, as in an index of images.
        parameters: number of parameters.
        state_shape: shape (K, D) of an image's states, which are the mean patch and the patches.
        patch_size: side of a patch in pixels.
        temperature: temperature of the contrastive loss; None if the model has no contrastive loss, or if the export predates
            this field.
        made_with: the packages that wrote the graphs, with their versions.
        differences: the largest difference between torch and onnxruntime in each result, by name.
        files: size in bytes and SHA-256 digest of each file.
    """

    weights: str
    parameters: int
    state_shape: tuple[int, int]
    patch_size: int
    temperature: float | None = None
    made_with: Mapping[str, str] = field(default_factory=dict)
    differences: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, int | str]] = field(default_factory=dict)
    format: int = FORMAT


def is_export(path: Path) -> bool:
    """Returns True if a path is an export, or has the suffix of an export."""
    return path.suffix == SUFFIX or (path / MANIFEST).is_file()


def files_in(folder: Path) -> dict[str, Mapping[str, int | str]]:
    """Returns the size in bytes and the SHA-256 of each file in a folder, except the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest_of(path)} for path in paths
    }


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Writes the manifest."""
    write_text(folder / MANIFEST, json.dumps(asdict(metadata), indent=2) + "\n")


def read_metadata(folder: Path) -> Metadata:
    """Reads the manifest of an export and checks that its files are unchanged.

    Raises:
        UserError: the export does not exist, is damaged, or has a different format.
    """
    if folder.is_file():
        raise UserError(
            f"{folder} is a file; an export is a folder with {MANIFEST}, written by run.py export",
            remedy="pass the folder",
        )
    if not folder.exists():
        raise UserError(
            "no such folder", where=folder, remedy=f"create it with python run.py export RUN --out {folder}"
        )
    try:
        values = read_json(folder / MANIFEST)
        if values["format"] != FORMAT:
            raise UserError(
                f"an export of format {values['format']}, but this version reads {FORMAT}",
                where=folder,
                remedy="export again",
            )
        metadata = Metadata(**values)
        expected = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in metadata.files.items()}
        rows, width = map(int, metadata.state_shape)
    except NotRegularError as error:
        raise UserError(f"{error.filename} {error.strerror}", remedy=REMEDY) from None
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {MANIFEST}: run.py export did not write it, or was interrupted", remedy=REMEDY
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{folder / MANIFEST} cannot be read", remedy=REMEDY) from None
    for name in GRAPHS:
        if name not in expected:
            raise UserError(f"{folder / MANIFEST} has no {name}", remedy=REMEDY)
    for name, (size, digest) in expected.items():
        _check_unchanged(folder / name, size, digest)
    return Metadata(**{**values, "state_shape": (rows, width)})


def _check_unchanged(file: Path, size: int, digest: str) -> None:
    """Raises an error if a file has changed since it was written."""
    try:
        found = file.stat().st_size
        if found != size:
            raise UserError(f"{file} has {found:,} of {size:,} bytes", remedy=REMEDY)
        if digest_of(file) != digest:
            raise UserError(f"{file} is damaged: its hash does not match the manifest", remedy=REMEDY)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", remedy=REMEDY) from None
