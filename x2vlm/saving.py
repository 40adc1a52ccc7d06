"""Saves a model as a self-contained folder, for this project or for transformers, and uploads it to the Hugging Face Hub."""

from __future__ import annotations

import json
import logging
import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from safetensors import SafetensorError

from engine.checkpoint import MODEL_FILE
from engine.run_files import CONFIG_FILE
from engine.saved_config import marked
from models.core.backbones import save_backbone_config
from models.core.hub_text import hub_config_of
from tasks.base import ANSWERS, BACKBONE, TOKENIZER
from tasks.evaluation import read_evaluations
from utils.config import dump_config
from utils.errors import UserError, reason_of
from utils.files import expanded, new_folder, read_text, write_text
from utils.hub import check_reachable
from utils.image_size import in_words
from utils.version import VERSION
from utils.weight_file import save_weights
from x2vlm.calibration import write_calibration
from x2vlm.calls import CALLS

if TYPE_CHECKING:
    from x2vlm.base import LoadedModel

logger = logging.getLogger(__name__)

CARD = "README.md"
HEADING = "## Numbers"

UNSAVED = ("word_head.",)
"""Prefixes of parameters that are not saved for transformers."""

SavedFormat = Literal["x2vlm", "transformers"]

USAGE: dict[str, str] = {
    "x2vlm": """from x2vlm import load

model = load("{source}")""",
    "transformers": """# pip install torch timm transformers pydantic
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{source}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{source}", trust_remote_code=True)
output = model(**processor(images=[image], text=["a dog on a sofa"]))""",
}
"""Code that loads a saved model, by format."""


def save(model: LoadedModel, folder: Path, format: SavedFormat = "x2vlm") -> Path:
    """Writes a model and its card, which contains the results of the run from which the model was loaded. The folder appears
    only when it is complete.

    Args:
        model: a loaded model.
        folder: a new or empty folder.
        format: "x2vlm": ``model.safetensors``, ``config.yaml``, ``tokenizer/`` and, if the model has candidate answers,
            ``answers.json``; to start a run from this folder, set ``init.checkpoint`` to it. "transformers": files that
            ``AutoModel`` and ``AutoProcessor`` load with ``trust_remote_code=True``, without this project. This format supports
            models of the tasks ``pretrain``, ``retrieval`` and ``grounding``.

    Raises:
        UserError: the folder exists and is not empty or cannot be written to, or the format does not support the model.
    """
    folder = expanded(folder)
    _check_format(format)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already exists and is not an empty folder", remedy="pass a different folder")
    try:
        with new_folder(folder) as made:
            if format == "transformers":
                from x2vlm.integrations.transformers.writing import write

                write(model, made)
            else:
                weights = {name: value.cpu() for name, value in model.network.state_dict().items()}
                save_weights(made / MODEL_FILE, weights)
                save_settings(model, made)
                if model.calibration is not None:
                    write_calibration(made, model.calibration, model.network)
            write_text(made / CARD, card(model, folder.name, format, "path/of/this/folder"))
    except (OSError, SafetensorError, UnicodeEncodeError) as error:
        raise UserError(
            f"cannot be written: {reason_of(error)}", where=folder, remedy="check the folder and the space on its disk"
        ) from None
    return folder


def push_to_hub(model: LoadedModel, name: str, format: SavedFormat = "x2vlm", *, private: bool = False) -> str:
    """Saves a model and uploads it to the Hugging Face Hub, as the user who has logged in (``hf auth login``).

    Args:
        model: a loaded model.
        name: ``owner/name`` of the repository, which is created if it does not exist.
        format: see :func:`save`.
        private: whether a new repository is private.

    Returns:
        The URL of the repository.

    Raises:
        UserError: the Hub refuses the upload or cannot be reached.
    """
    from huggingface_hub import HfApi

    _check_format(format)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UserError(f"{name!r} is not the name of a repository on the Hub", remedy="pass owner/name")
    check_reachable(f"{name} cannot be uploaded")
    api = HfApi()
    with tempfile.TemporaryDirectory() as temporary:
        folder = save(model, Path(temporary, "model"), format)
        write_text(folder / CARD, card(model, name, format, name if format == "transformers" else f"hub:{name}"))
        try:
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload of x2vlm {VERSION}")
        except Exception as error:  # the network layer can raise many types of exceptions
            reason = reason_of(error).rstrip(".")
            raise UserError(
                f"{name} cannot be uploaded to the Hub: {reason}", remedy="log in with hf auth login"
            ) from None
    return str(address)


def _check_format(format: str) -> None:
    if format not in get_args(SavedFormat):
        raise UserError(f"format is {format!r}", remedy=f"pass {' or '.join(map(repr, get_args(SavedFormat)))}")


def save_settings(model: LoadedModel, folder: Path) -> None:
    """Writes the files that a model needs in addition to its weights: ``config.yaml``, ``tokenizer/`` and, if the model has
    candidate answers, ``answers.json``."""
    text = model.settings.model.text
    model.tokenizer.save_pretrained(str(folder / TOKENIZER))
    if text.arch is None:
        hub_config_of(text.encoder).save_pretrained(str(folder / TOKENIZER))
    save_backbone_config(model.settings.model.vision, folder / BACKBONE)
    model_settings = model.settings.model.model_copy(update={"text": text.model_copy(update={"encoder": TOKENIZER})})
    write_text(folder / CONFIG_FILE, marked(dump_config(model.settings.model_copy(update={"model": model_settings}))))
    if model.answers is not None:
        write_text(folder / ANSWERS, json.dumps(model.answers, ensure_ascii=False) + "\n")


def card(model: LoadedModel, name: str, library: str, source: str, usage: str | None = None) -> str:
    """Returns the model card, which says what the model is, how to load it from ``source``, and what its results are.

    Args:
        model: a loaded model.
        name: title of the card.
        library: the library that loads the model.
        source: folder of the model, or its name on the Hub.
        usage: code that loads the model from ``{source}``, for a library that is not in :data:`USAGE`.
    """
    parameters = model.runtime.parameters
    if library == "transformers":
        named = model.network.named_parameters()
        parameters -= sum(parameter.numel() for name, parameter in named if name.startswith(UNSAVED))
    vision = model.settings.model.vision
    calls = [name for name, call in CALLS.items() if model.settings.task in call.tasks]
    metadata = {
        "task": model.settings.task,
        "parameters": f"{parameters / 1e6:.1f} M",
        "images": in_words(vision.image_size) + (f", {vision.video.frames} frames" if vision.video else ""),
        "words": f"{len(model.tokenizer):,}",
        "answers": f"{len(model.answers):,}" if model.answers else "",
        "saved by": f"x2vlm {VERSION}",
    }
    lines = [
        "---",
        f"library_name: {library}",
        "tags: [x2vlm, vision-language]",
        "---",
        "",
        f"# {name}",
        "",
        "A vision-language model, X²-VLM ([arXiv:2211.12402](https://arxiv.org/abs/2211.12402)).",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {key} | {value} |" for key, value in metadata.items() if value]
    lines += ["", "```python", *(usage or USAGE[library]).format(source=source).splitlines(), "```", ""]
    if library == "x2vlm":
        lines += [f"It supports {', '.join(f'`{call}`' for call in calls)}.", ""]
    return "\n".join([*lines, *_numbers(model.origin)]) + "\n"


def _numbers(origin: str) -> list[str]:
    """Returns the lines of a table with the results of the run from which the model was loaded, and of the run's receipt if there
    is one."""
    folder = expanded(origin)
    folder = folder if folder.is_dir() else folder.parent
    if HEADING in (text := _text_of(folder / CARD)):  # the model was loaded from a saved model
        return [text[text.index(HEADING) :].rstrip()]
    try:
        splits = read_evaluations(folder)
    except (OSError, ValueError):
        splits = {}
    if not splits:
        return [HEADING, "", "No results were found next to the weights."]
    lines = [HEADING, "", "| split | metric | measured | chance |", "|---|---|---|---|"]
    for split, evaluation in splits.items():
        for metric in evaluation.metrics:
            if metric.unit != "count" and not math.isnan(metric.value):
                chance = "" if metric.chance is None else f"{100 * metric.chance:.1f}"
                lines.append(f"| {split} | {metric.name} | {100 * metric.value:.1f} | {chance} |")
    receipt = _text_of(folder.parent / "receipt.md")
    return [*lines, "", f"##{receipt.rstrip()}"] if receipt else lines


def _text_of(path: Path) -> str:
    """Returns the text of a card or receipt, or "" if it does not exist. If it cannot be read, this is logged."""
    try:
        return read_text(path)
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("%s: cannot be read, so the model card leaves it out: %s", path, reason_of(error))
        return ""
