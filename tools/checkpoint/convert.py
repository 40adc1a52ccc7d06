"""``run.py checkpoint convert``: converts published weights to our safetensors and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.convert import PUBLISHED, Form, same_bits, to_ours, to_published
from models.checkpoints.files import read_weight_file
from models.checkpoints.loading import DECODER_WORDS, load_weights
from models.checkpoints.recognise import Recognised, recognise
from models.checkpoints.rename import Layout
from tasks.binding import bind_run
from tools.checkpoint.outline import shown, weights_at
from utils.errors import UserError
from utils.files import expanded, replacing
from utils.weight_file import read_metadata, save_weights

SUFFIXES = {"ours": (".safetensors",), "published": (".th", ".pth", ".pt", ".bin")}
STATE = "model"
"""Key of the weights in published files."""


def convert(source: str, out: Path, form: str | None, config: str | None, overwrite: bool) -> str:
    """Converts the weights at ``source`` to the other format and writes them. Returns a line that reports what was done.

    Raises:
        UserError: if the weights cannot be converted, or ``out`` cannot be written.
    """
    file, _ = weights_at(source)
    target = expanded(out)
    read = read_weight_file(file)
    found = recognise({name: tuple(tensor.shape) for name, tensor in read.tensors.items()})
    wanted = _form(file, found, form)
    _check_target(target, wanted, overwrite)
    shared_words = _check_config(file, config, found)
    if wanted == "ours":
        ours, made = _to_ours(file, read.tensors, shared_words)
        save_weights(target, ours, {PUBLISHED: made.as_plain()})
        less = len(read.tensors) - len(ours)
        note = f"{len(ours)} tensors; {less} copies and buffers are computed on the way back"
        left = [*read.other_entries, *([f"the prefix {read.prefix}"] if read.prefix else [])]
    else:
        published = _to_published(file, read.tensors)
        with replacing(target) as temporary, temporary.open("wb") as opened:
            torch.save({STATE: published}, opened)
        note = f"{len(published)} tensors in `{STATE}`, {len(published) - len(read.tensors)} of them copies and buffers"
        left = []
    kept = f"; skipped, since they are not weights: {', '.join(map(shown, left[:8]))}" if left else ""
    return f"{file} -> {target} ({'our' if wanted == 'ours' else 'published'} names): {note}{kept}\n"


def _form(file: Path, found: Recognised, form: str | None) -> str:
    """Returns the format to write, which is the format that the file does not have."""
    if found.kind is None or found.task is None or found.vision is None:
        what = found.kind or "not recognised"
        remedy = {"vision": "init.vision reads it directly", "text": "init.text reads it directly"}
        part = "vision" if found.task is None and found.vision else "text" if found.task is None and found.text else ""
        raise UserError(
            f"is {what}, but only X²-VLM models have two formats",
            where=file,
            remedy=remedy.get(part, "pass a file of an X²-VLM model"),
        )
    other = "published" if found.names == "ours" else "ours"
    if form not in (None, other):
        raise UserError(
            f"{file} already has this format", where=f"--form {form}", remedy=f"copy it, or pass --form {other}"
        )
    return other


def _check_target(target: Path, form: str, overwrite: bool) -> None:
    if target.suffix not in SUFFIXES[form]:
        raise UserError(
            f"the name of a file in this format must end with {' or '.join(SUFFIXES[form])}",
            where=f"--out {target}",
            remedy="change it",
        )
    if not target.parent.is_dir():
        raise UserError(f"the folder {target.parent} does not exist", where=f"--out {target}", remedy="create it first")
    if target.is_dir():
        raise UserError("this is a folder", where=f"--out {target}", remedy="pass the name of a file")
    if target.exists() and not overwrite:
        raise UserError("already exists", where=f"--out {target}", remedy="use another name, or --overwrite")


def _check_config(file: Path, config: str | None, found: Recognised) -> bool | None:
    """Checks that the file loads into a config's model, which is then discarded. Returns whether the model's answer decoder
    shares the word embeddings of its text encoder, or None without a config.

    Raises:
        UserError: if a shape or the number of blocks differs.
    """
    if config is None:
        return None
    run = bind_run(config, [])
    with torch.device("meta"):
        model = run.source.load().task.build_model(run.config, found.words)
        report = load_weights(model, file)
    if report.fresh:
        raise UserError(
            f"lacks {len(report.fresh)} parameters of the model of {config}, the first {report.fresh[0]}",
            where=file,
            remedy="pass the config that the weights were trained with",
        )
    return DECODER_WORDS not in model.state_dict()


def _to_ours(file: Path, tensors: Mapping[str, Tensor], shared_words: bool | None) -> tuple[dict[str, Tensor], Form]:
    try:
        ours, form = to_ours(tensors, shared_words=shared_words)
    except UserError as error:
        raise UserError(f"{error}", where=file) from None
    _require_equal(file, to_published(ours, form)[0], tensors)
    return _with_separate_memory(ours), form


def _with_separate_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives each tensor separate memory, as safetensors requires. In a file, two names may share a tensor although no model ties
    them."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return separate


def _to_published(file: Path, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    form = None
    if file.suffix == ".safetensors" and PUBLISHED in (about := read_metadata(file)):
        layout = Layout.of_ours({name: tuple(tensor.shape) for name, tensor in ours.items()})
        form = Form.from_plain(about[PUBLISHED], layout)
    try:
        published, unnamed = to_published(ours, form)
        back, _ = to_ours(published, shared_words=DECODER_WORDS not in ours)
    except UserError as error:
        raise UserError(f"{error}", where=file) from None
    if unnamed:
        more = f" and {len(unnamed) - 3} more" if len(unnamed) > 3 else ""
        raise UserError(
            f"the authors' models have no counterpart of {', '.join(map(shown, unnamed[:3]))}{more}",
            where=file,
            remedy="keep it in our format",
        )
    _require_equal(file, back, ours)
    return published


def _require_equal(file: Path, back: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raises :class:`UserError` if converting back does not restore the file's tensors bit for bit."""
    wrong = [
        name
        for name in {**given, **back}
        if name not in given or name not in back or not same_bits(given[name], back[name])
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} tensors would change when converted back, the first {shown(wrong[0])}",
            where=file,
            remedy="nothing was written, so keep using this file",
        )
