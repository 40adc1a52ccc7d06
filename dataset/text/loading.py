"""Tokenizers of Hugging Face, by name or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.hub import local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILES = ("tokenizer.json", "vocab.txt", "*.model")
"""A model on the hub has one of these."""
BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.json",
    "config.json",
)


def load_tokenizer(name_or_folder: str | Path, key: str = "tokenizer") -> PreTrainedTokenizerFast:
    """The fast tokenizer of a Hugging Face model, by name or from a folder (one with only a BERT ``vocab.txt`` will do).

    Args:
        name_or_folder: see above.
        key: what names it, for messages.

    Raises:
        UserError: in one line: not found, no network, no fast version, no vocabulary, or it needs code that the folder brings.
    """
    # Imported here: it takes seconds, and most of this package does not need it.
    from transformers import AutoTokenizer, BertTokenizer

    name = str(name_or_folder)
    folder = local_folder(name, FILES, key, beside=BESIDE)
    is_bare = (folder / "vocab.txt").is_file() and not (folder / "tokenizer.json").is_file()
    has_config = any((folder / file).is_file() for file in ("config.json", "tokenizer_config.json"))
    try:
        if is_bare and not has_config:
            tokenizer = BertTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), use_fast=True, trust_remote_code=False)
    except Exception as error:  # the library raises OSError, ValueError, KeyError, ImportError and others
        reason = str(error).strip().split("\n")[0][:200]
        remedy = "save one there with tokenizer.save_pretrained, or make one with run.py tokenizer"
        if next(folder.glob("*.model"), None) is not None and not (folder / "tokenizer.json").is_file():
            remedy = "beside a SentencePiece model it needs tokenizer.json, or `pip install sentencepiece protobuf`"
        if "trust_remote_code" in str(error):
            reason = "its tokenizer_config.json or config.json asks to run code of the folder, which we never do"
            remedy = "save one without auto_map in these files"
        raise UserError(
            f"tokenizer {name}: the folder holds no usable tokenizer; {remedy} ({type(error).__name__}: {reason})"
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"tokenizer {name}: only a slow version exists, which cannot tell words apart; use one with a fast version"
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 1:
        raise UserError(
            f"tokenizer {name}: its vocabulary has {len(tokenizer)} entries; is the vocabulary file missing or empty?"
        )
    return tokenizer
