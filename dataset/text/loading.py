"""Tokenizers of Hugging Face, by name or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(name_or_folder: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a Hugging Face model, by name or from a folder (one with only a BERT ``vocab.txt`` will do).

    Raises:
        UserError: in one line: not found, no network, no fast version, no vocabulary.
    """
    # Imported here: it takes seconds, and most of this package does not need it.
    from transformers import AutoTokenizer, BertTokenizer

    name, folder = str(name_or_folder), Path(name_or_folder).expanduser()
    is_folder = folder.is_dir()
    is_bare = is_folder and (folder / "vocab.txt").is_file() and not (folder / "tokenizer.json").is_file()
    has_config = is_folder and any((folder / file).is_file() for file in ("config.json", "tokenizer_config.json"))
    try:
        if is_bare and not has_config:
            tokenizer = BertTokenizer.from_pretrained(str(folder))
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(folder) if is_folder else name, use_fast=True)
    # The library raises OSError, ValueError, KeyError, ImportError, and whatever its network layer raises.
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        if is_folder:
            where, remedy = "the folder holds no usable tokenizer", "save one there with tokenizer.save_pretrained"
            if next(folder.glob("*.model"), None) is not None and not (folder / "tokenizer.json").is_file():
                remedy = "beside a SentencePiece model it needs tokenizer.json, or `pip install sentencepiece protobuf`"
        else:
            where = "no such folder, and not found by name or no network"
            remedy = "check the name, or make the folder: the first lines of a config say how its data is made"
        raise UserError(f"tokenizer {name}: {where}; {remedy} ({type(error).__name__}: {reason})") from None
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"tokenizer {name}: only a slow version exists, which cannot tell words apart; use one with a fast version"
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 1:
        raise UserError(
            f"tokenizer {name}: its vocabulary has {len(tokenizer)} entries; is the vocabulary file missing or empty?"
        )
    return tokenizer
