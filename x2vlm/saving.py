"""Saves a model as a self-contained folder: weights, settings, tokenizer, answers, and a model card with its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint import MODEL_FILE
from engine.run_files import CONFIG_FILE, EVALUATION_FILE
from models.core.backbones import save_backbone_config
from models.core.hub_text import hub_config_of
from tasks.base import ANSWERS, BACKBONE, TOKENIZER
from utils.config import dump_config
from utils.errors import UserError
from utils.files import expanded, read_json, write_text
from utils.image_size import in_words
from utils.version import VERSION
from utils.weight_file import save_weights
from x2vlm.calls import CALLS

if TYPE_CHECKING:
    from x2vlm.base import LoadedModel

CARD = "README.md"
HEADING = "## Numbers"


def save(model: LoadedModel, folder: Path) -> Path:
    """Write ``model.safetensors``, ``config.yaml``, ``tokenizer/``, ``answers.json`` if there is one, and a model card.

    The card lists the results of the run that the model was loaded from. ``init.checkpoint`` can name the folder to start a run
    from it.

    Raises:
        UserError: the folder exists and is not empty.
    """
    folder = expanded(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already exists and is not an empty folder; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / MODEL_FILE, {name: value.cpu() for name, value in model.network.state_dict().items()})
    save_settings(model, folder)
    write_text(folder / CARD, card(model, folder.name))
    return folder


def save_settings(model: LoadedModel, folder: Path) -> None:
    """Write what a model needs in addition to its weights: ``config.yaml``, ``tokenizer/``, and any ``answers.json``."""
    text = model.settings.model.text
    model.tokenizer.save_pretrained(str(folder / TOKENIZER))
    if text.arch is None:
        hub_config_of(text.encoder).save_pretrained(str(folder / TOKENIZER))
    save_backbone_config(model.settings.model.vision, folder / BACKBONE)
    here = model.settings.model.model_copy(update={"text": text.model_copy(update={"encoder": TOKENIZER})})
    write_text(folder / CONFIG_FILE, dump_config(model.settings.model_copy(update={"model": here})))
    if model.answers is not None:
        write_text(folder / ANSWERS, json.dumps(model.answers, ensure_ascii=False) + "\n")


def card(model: LoadedModel, name: str) -> str:
    """Write the model card: what the model is, how to use it, and its results."""
    parameters = sum(parameter.numel() for parameter in model.network.parameters()) / 1e6
    vision = model.settings.model.vision
    calls = [name for name, call in CALLS.items() if model.settings.task in call.tasks]
    about = {
        "task": model.settings.task,
        "parameters": f"{parameters:.1f} M",
        "images": in_words(vision.image_size) + (f", {vision.video.frames} frames" if vision.video else ""),
        "words": f"{len(model.tokenizer):,}",
        "answers": f"{len(model.answers):,}" if model.answers else "",
        "saved by": f"x2vlm {VERSION}",
    }
    lines = [
        f"# {name}",
        "",
        "An X²-VLM ([arXiv:2211.12402](https://arxiv.org/abs/2211.12402)).",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {key} | {value} |" for key, value in about.items() if value]
    lines += ["", "```python", "from x2vlm import load", "", 'model = load("path/of/this/folder")', "```", ""]
    lines += [f"It supports {', '.join(f'`{call}`' for call in calls)}.", ""]
    return "\n".join([*lines, *_numbers(model.origin)]) + "\n"


def _numbers(origin: str) -> list[str]:
    """Returns the results of the run that a model was loaded from, as a table, with its receipt if there is one."""
    folder = expanded(origin)
    folder = folder if folder.is_dir() else folder.parent
    kept = folder / CARD
    if kept.is_file() and HEADING in (text := kept.read_text(encoding="utf-8")):  # saved again
        return [text[text.index(HEADING) :].rstrip()]
    try:
        splits = read_json(folder / EVALUATION_FILE)
    except (OSError, ValueError):
        return [HEADING, "", "No results were found next to the weights."]
    lines = [HEADING, "", "| split | metric | measured | chance |", "|---|---|---|---|"]
    for split, metrics in splits.items():
        for metric, entry in metrics.items():
            if entry["unit"] != "count" and entry["value"] is not None:
                chance = f"{100 * entry['chance']:.1f}" if "chance" in entry else ""
                lines.append(f"| {split} | {metric} | {100 * entry['value']:.1f} | {chance} |")
    receipt = folder.parent / "receipt.md"
    return [*lines, "", f"##{receipt.read_text(encoding='utf-8').rstrip()}"] if receipt.is_file() else lines
