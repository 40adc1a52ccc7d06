"""``run.py checkpoint inspect``: describes a weight file in a few lines."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from engine.checkpoint import run_config_of
from models.checkpoints.convert import PUBLISHED
from models.checkpoints.recognise import VOCABULARIES, Recognised, Stack, recognise
from optim.config import HEADER
from tools.checkpoint.outline import Outline, integrity, read_outline, shown, weights_at
from tools.checkpoint.starts import starts
from utils.config_files import read_yaml
from utils.errors import UserError

WIDTH = 120
FIRST_NAMES = 6
TASKS = {
    "pretrain": "pre-trained",
    "none": "without a head: encoders only",
}


def inspect(path: str, *, with_configs: bool = True) -> tuple[bool, str]:
    """Returns whether the weights at ``path`` are intact, and lines that describe them.

    Raises:
        UserError: if the weights are missing or cannot be read.
    """
    file, checkpoints = weights_at(path)
    outline = read_outline(file)
    found = recognise(outline.shapes)
    intact, why = integrity(outline)
    rows = [("kind", _kind(found, outline)), *_run(file), *(("", state) for state in checkpoints)]
    rows += _sizes(found) if found.kind else [("names", _first_names(outline))]
    if ema := outline.metadata.get("ema"):
        rows.append(("average", f"averaged weights of a run ({shown(', '.join(f'{key} {ema[key]}' for key in ema))})"))
    if outline.adapters:
        rows.append(("adapters", _adapters(outline)))
    rows += [
        ("contents", _contents(found, outline)),
        ("file", f"{file.stat().st_size:,} bytes, {outline.storage}"),
        ("intact", why),
    ]
    if found.kind and with_configs and not outline.only_adapters:
        rows.append(("usable as", _starts(found)))
    lines = [str(file)]
    for label, text in rows:
        lines += textwrap.wrap(
            text, WIDTH, initial_indent=f"  {label:11}", subsequent_indent=" " * 13, break_on_hyphens=False
        ) or [f"  {label}"]
    return intact, "\n".join(lines) + "\n"


def _kind(found: Recognised, outline: Outline) -> str:
    if outline.only_adapters:
        return "ours, adapters without the weights they belong to"
    if found.kind is None:
        return "not recognised: neither one of our models, nor X²-VLM, X-VLM, CCLM, BEiT-2, BERT, RoBERTa or XLM-R"
    if found.task is None:
        return found.kind
    task = TASKS.get(found.task, f"fine-tuned: {found.task}")
    if found.names != "ours":
        return f"{found.kind}, {task}"
    return f"ours, {task}" + (", converted from published names" if PUBLISHED in outline.metadata else "")


def _run(file: Path) -> list[tuple[str, str]]:
    """Returns a row that describes the run that the file belongs to, if it is in a run's folder."""
    config = run_config_of(file)
    if config is None:
        return []
    try:
        task = read_yaml(config).get("task")
    except UserError:
        return [("run", f"{config} cannot be read")]
    return [("run", f"{config.parent}, task {shown(str(task))}")]


def _sizes(found: Recognised) -> list[tuple[str, str]]:
    stacks = {"vision": found.vision, "text": found.text, "fusion": found.fusion, "decoder": found.decoder}
    sizes = ", ".join(f"{name} {_stack(stack)}" for name, stack in stacks.items() if stack is not None)
    rows = [("size", f"{found.size or 'neither base nor large'}: {sizes}")]
    if found.patch:
        side = f"{found.image_size} px" if found.image_size else "of unknown size (no table shows it)"
        rows.append(("images", f"{side}, patches of {found.patch} px"))
    if found.frames:
        rows.append(("videos", f"{found.frames} frames"))
    if found.words:
        _, known = VOCABULARIES.get(found.words, ("", "of an unknown tokenizer, which the run's folder contains"))
        rows.append(("vocabulary", f"{found.words:,}: {known}"))
    return rows


def _adapters(outline: Outline) -> str:
    """Describes low-rank adapters, and how they are applied to the weights."""
    lora = outline.metadata.get(HEADER)
    rank = (
        f"of rank {shown(str(lora['rank']))}"
        if isinstance(lora, dict) and "rank" in lora
        else "whose config is missing"
    )
    if outline.only_adapters:
        return f"{outline.adapters} {rank}; `run.py checkpoint merge` merges them with the weights they were trained on"
    return f"{outline.adapters} {rank}, which are merged into the weights when the file is read"


def _stack(stack: Stack) -> str:
    heads = f", {stack.heads} heads" if stack.heads else ""
    return f"{stack.layers} layer{'s' if stack.layers != 1 else ''} of width {stack.width}{heads}"


def _contents(found: Recognised, outline: Outline) -> str:
    """Describes the number of parameters and tensors, excluding copies and buffers."""
    parameters = sum(math.prod(shape) for shape in found.shapes.values())
    dtypes = " and ".join(f"{count:,} of {dtype}" for dtype, count in outline.dtypes.most_common())
    return (
        f"{parameters:,} parameters in {len(found.shapes)} tensors; the file has {outline.stored}: {dtypes or 'none'}"
    )


def _first_names(outline: Outline) -> str:
    names = [f"{shown(name)} {'x'.join(map(str, shape)) or 'one number'}" for name, shape in outline.shapes.items()]
    return ", ".join(names[:FIRST_NAMES]) + (", …" if len(names) > FIRST_NAMES else "")


def _starts(found: Recognised) -> str:
    key, configs = starts(found)
    if not configs:
        return f"no config in configs/ has these sizes{f' for {key}' if key else ''}"
    folders: dict[str, list[str]] = {}
    for name in configs:
        folder, _, rest = name.partition("/")
        folders.setdefault(folder, []).append(rest.removesuffix(".yaml"))
    listed = "; ".join(f"{folder}: {', '.join(names)}" for folder, names in folders.items())
    return f"{key} of {len(configs)} configs: {listed}"
