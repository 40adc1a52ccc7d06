"""Loads Hugging Face tokenizers by name or from a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.hub import local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILES = ("tokenizer.json", "vocab.txt", "*.model")
"""A model on the Hub has at least one of these files."""
BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.json",
    "config.json",
)


def load_tokenizer(name_or_folder: str | Path, key: str = "tokenizer") -> PreTrainedTokenizerFast:
    """Loads the fast tokenizer of a Hugging Face model.

    Args:
        name_or_folder: name of the model, or a folder. A folder with only a BERT ``vocab.txt`` works too.
        key: config key of the tokenizer, for messages.

    Raises:
        UserError: in one line, if the tokenizer is not found, there is no network, it has no fast version or no vocabulary, or it
            would have to run code from the folder.
    """
    # Imported here because the import takes seconds, and most of this package does not need it.
    from transformers import AutoTokenizer, BertTokenizer

    name = str(name_or_folder)
    folder = local_folder(name, FILES, key, extra_files=BESIDE)
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
            remedy = (
                "in addition to a SentencePiece model it needs tokenizer.json, or `pip install sentencepiece protobuf`"
            )
        if "trust_remote_code" in str(error):
            reason = (
                "its tokenizer_config.json or config.json requires running code from the folder, which is never done"
            )
            remedy = "save one without auto_map in these files"
        raise UserError(
            f"tokenizer {name}: the folder contains no usable tokenizer; {remedy} ({type(error).__name__}: {reason})"
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"tokenizer {name}: only a slow version exists, which cannot tell words apart; use one with a fast version"
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 1:
        raise UserError(
            f"tokenizer {name}: its vocabulary has {len(tokenizer)} entries; check whether the vocabulary file "
            "is missing or empty"
        )
    return tokenizer


def token_ids_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns the SHA-256 of the tokens and their ids, as hexadecimal digits.

    Weight files store this digest, because with different ids, words would get the embeddings of other words. It does not depend
    on how a version of the library writes its files.
    """
    lines = sorted(f"{token}\t{number}" for token, number in tokenizer.get_vocab().items())
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def difference_of_tokenizers(ours: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast) -> str | None:
    """Describes briefly why two tokenizers give different token ids for the same text; returns None if they give equal ids.

    The template of special tokens around a text and the decoder are not compared, because they do not change the token ids that a
    model reads. A tokenizer and its saved copy therefore count as equal.
    """
    our_ids, their_ids = ours.get_vocab(), theirs.get_vocab()
    if len(our_ids) != len(their_ids):
        return f"it has {len(our_ids):,} tokens instead of {len(their_ids):,}"
    if moved := sorted(token for token, number in their_ids.items() if our_ids.get(token) != number):
        known = [token for token in moved if token in our_ids] or moved
        now = f"has id {our_ids[known[0]]}" if known[0] in our_ids else "is missing"
        count = f"{len(moved):,} of its {len(their_ids):,} tokens have"
        return f"{count} a different id: {known[0]!r} {now} instead of {their_ids[known[0]]}"
    for name in ("cls_token", "sep_token", "mask_token", "pad_token", "unk_token"):
        if getattr(ours, name) != getattr(theirs, name):
            return f"its {name} is {getattr(ours, name)!r} instead of {getattr(theirs, name)!r}"
    our_parts, their_parts = _parts_of(ours), _parts_of(theirs)
    changed = [name for name in their_parts if our_parts[name] != their_parts[name]]
    return (
        f"its {' and '.join(changed)} in tokenizer.json {'differs' if len(changed) == 1 else 'differ'}"
        if changed
        else None
    )


def _parts_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Returns the parts of a tokenizer that turn a text into token ids."""
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: values[name] for name in ("normalizer", "pre_tokenizer", "model")}
