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

SAMPLES = (
    "A Big RED circle left of 2 blue stars, 3.5x the size!",
    "don't re-use: e-mails/URLs  with\ttabs\nand (odd) #spaces_",
    "Café naïve Ångström ÉCOLE straße ΑΒΓ Привет",
    "東京タワー 你好 한국어 ไทย हिन्दी العربية",
    "ﬁ ½ ² … “quotes” — \u00a0\u200b🙂👍🏽",
    f"a \x07 a {'a' * 150}",
)
"""Texts that tokenizers with different normalisers and pre-tokenizers split differently. If these texts change, weight files that
were written before no longer fit their tokenizers."""


def load_tokenizer(name_or_folder: str | Path, key: str = "tokenizer") -> PreTrainedTokenizerFast:
    """Loads the fast tokenizer of a Hugging Face model.

    Args:
        name_or_folder: name of the model, or a folder. A folder with only a BERT ``vocab.txt`` works too.
        key: config key of the tokenizer, to name in error messages.

    Raises:
        UserError: if the tokenizer is not found, there is no network, it has no fast version or no vocabulary, or loading it
            would require running code from the folder. The message is one line.
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
            f"tokenizer {name}: the folder contains no usable tokenizer",
            remedy=f"{remedy} ({type(error).__name__}: {reason})",
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"tokenizer {name}: only a slow version exists, which cannot tell words apart",
            remedy="use one with a fast version",
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 1:
        raise UserError(
            f"tokenizer {name}: its vocabulary has {len(tokenizer)} entries",
            remedy="check whether the vocabulary file is missing or empty; an encoder needs its own tokenizer in its folder "
            "(tokenizer.save_pretrained)",
        )
    return tokenizer


def token_ids_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns two SHA-256 digests, separated by a dot: of the tokens and their ids, and of the token ids of :data:`SAMPLES`,
    which also depend on how a text is normalised and split.

    Weight files store these digests, because with different ids, words would get the embeddings of other words. They do not
    depend on how a version of the library writes its files.
    """
    lines = sorted(f"{token}\t{number}" for token, number in tokenizer.get_vocab().items())
    vocabulary = "\n".join(lines).encode("utf-8", "surrogatepass")
    samples = json.dumps(tokenizer(list(SAMPLES), add_special_tokens=False)["input_ids"]).encode()
    return ".".join(hashlib.sha256(content).hexdigest() for content in (vocabulary, samples))


def has_token_ids(tokenizer: PreTrainedTokenizerFast, trained_with: str) -> bool:
    """Returns True if a tokenizer produces the token ids with the digest ``trained_with``, which is in the header of a weight
    file. In files from earlier versions, the digest consists only of its first part."""
    return token_ids_digest(tokenizer).startswith(trained_with)


def difference_of_tokenizers(tokenizer: PreTrainedTokenizerFast, expected: PreTrainedTokenizerFast) -> str | None:
    """Describes briefly why two tokenizers give different token ids for the same text; returns None if they give equal ids.

    The template that adds special tokens to a text and the decoder are not compared, because they do not change the token ids
    that a model reads. A tokenizer and its saved copy therefore count as equal.
    """
    token_ids, expected_ids = tokenizer.get_vocab(), expected.get_vocab()
    if len(token_ids) != len(expected_ids):
        return f"it has {len(token_ids):,} tokens instead of {len(expected_ids):,}"
    if moved := sorted(token for token, number in expected_ids.items() if token_ids.get(token) != number):
        known = [token for token in moved if token in token_ids] or moved
        now = f"has id {token_ids[known[0]]}" if known[0] in token_ids else "is missing"
        count = f"{len(moved):,} of its {len(expected_ids):,} tokens have"
        return f"{count} a different id: {known[0]!r} {now} instead of {expected_ids[known[0]]}"
    for name in ("cls_token", "sep_token", "mask_token", "pad_token", "unk_token"):
        if getattr(tokenizer, name) != getattr(expected, name):
            return f"its {name} is {getattr(tokenizer, name)!r} instead of {getattr(expected, name)!r}"
    parts, expected_parts = _parts_of(tokenizer), _parts_of(expected)
    changed = [name for name in expected_parts if parts[name] != expected_parts[name]]
    return (
        f"its {' and '.join(changed)} in tokenizer.json {'differs' if len(changed) == 1 else 'differ'}"
        if changed
        else None
    )


def _parts_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Returns the parts of a tokenizer that turn a text into token ids."""
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: values[name] for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
