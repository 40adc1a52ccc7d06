"""Trains a BERT-style WordPiece tokenizer on texts, so that no tokenizer has to be downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Special tokens. The index of a token is its id."""

MODEL_MAX_LENGTH = 512


def train_wordpiece(texts: Iterable[str], folder: Path, *, vocab_size: int, lowercase: bool = True) -> int:
    """Trains and saves a WordPiece tokenizer, which ``transformers.AutoTokenizer`` loads as a fast tokenizer without downloads.

    The same texts yield the same files, byte for byte. Texts are normalised as in BERT, with a space around each Chinese
    character, except that accents are kept: BERT's uncased models strip them, which turns the Japanese "が" into "か".

    Args:
        texts: the training texts.
        folder: output folder for ``tokenizer.json``, ``tokenizer_config.json`` and ``vocab.txt``; it is created if missing.
        vocab_size: maximum size of the vocabulary; it is smaller if the texts have fewer pieces.
        lowercase: whether to convert texts to lower case.

    Returns:
        The size of the vocabulary.

    Raises:
        ValueError: ``texts`` contain no words, or ``vocab_size`` is too small for the characters of the texts.
        OSError: ``folder`` cannot be written.
    """
    normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=lowercase
    )
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    normal = [normalizer.normalize_str(text) for text in texts]
    pieces = _single_characters(word for text in normal for word, _ in pre_tokenizer.pre_tokenize_str(text))
    if not pieces:
        raise ValueError("the texts contain no word to train a tokenizer on")
    if vocab_size < len(SPECIAL_TOKENS) + len(pieces):
        needed = len(SPECIAL_TOKENS) + len(pieces)
        raise ValueError(
            f"vocab_size {vocab_size} is too small: single characters and special tokens already need {needed}"
        )

    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizer
    # The trainer assigns ids to single characters in the order of a randomly seeded hash map, and breaks ties between
    # equally frequent merges by these ids. Passing all characters in sorted order makes the result deterministic.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *pieces], show_progress=False
    )
    trained.train_from_iterator(normal, trainer)
    vocabulary = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    tokenizer = _assemble({token: index for index, (token, _) in enumerate(vocabulary)}, normalizer, pre_tokenizer)
    _save(tokenizer, folder, lowercase=lowercase)
    return len(vocabulary)


def _single_characters(words: Iterable[str]) -> list[str]:
    first: set[str] = set()
    inside: set[str] = set()
    for word in words:
        first.update(word)
        inside.update("##" + character for character in word[1:])
    return [*sorted(first), *sorted(inside)]


def _assemble(
    vocabulary: dict[str, int], normalizer: normalizers.BertNormalizer, pre_tokenizer: pre_tokenizers.BertPreTokenizer
) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _save(tokenizer: Tokenizer, folder: Path, *, lowercase: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    ordered = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(token + "\n" for token, _ in ordered), encoding="utf-8", newline="\n")
    config = {
        # The generic fast class reads tokenizer.json; BertTokenizerFast in transformers 5 ignores its argument vocab_file.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "do_lower_case": lowercase,
        "model_max_length": MODEL_MAX_LENGTH,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
