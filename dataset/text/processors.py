"""Converts captions to tokens: cleaning as in the authors' code, whole-word and skip-gram masking, and padding to the longest
text in a batch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from batches.base import IGNORE
from batches.texts import MaskedText, Text
from dataset.broken import BrokenRecordError
from dataset.config import TextDataConfig, TextLimits
from dataset.records.schema import Texts, texts_in_language
from utils.errors import UserError
from utils.sequences import stack_rows, text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TO_SPACE = re.compile(r"[,.'!?\"()*#:;~]")
_JOINING = re.compile(r"[-/]")
_WORD_MARK = "\u2581"
"""SentencePiece's mark for a piece that begins a word; it represents the space before the word."""
_UNSPACED_SCRIPTS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Scripts without spaces between words: Thai and Lao, Burmese, Khmer, kana, Han."""
_UNSPACED = re.compile(f"[{_UNSPACED_SCRIPTS}]")
_WIDE_MARKS = "\u3001-\u3004\u3008-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
"""Punctuation of Chinese and Japanese."""
_SEGMENTED = re.compile(rf"(?<=[{_UNSPACED_SCRIPTS}{_WIDE_MARKS}])\s+(?=[{_UNSPACED_SCRIPTS}{_WIDE_MARKS}])")
"""White space that was inserted between words of a script that is written without spaces."""
_SPACES = re.compile(r"\s{2,}")
SHORTEST_PADDING = 64
"""The shortest length to which texts are padded if shapes are static."""
_SIDE = re.compile(r"\b(left|right)(most|wards?|hand)?\b", re.IGNORECASE)


class TextExample:
    """An encoded text: ``ids`` with [CLS] and [SEP], ``masked_ids``, and the masked ``positions`` with their ``labels``."""

    __slots__ = ("ids", "labels", "masked_ids", "positions")

    def __init__(self, ids: list[int], masked_ids: list[int], positions: list[int]):
        self.ids = ids
        self.masked_ids = masked_ids
        self.positions = positions
        self.labels = [ids[position] for position in positions]


def clean_caption(text: str, max_words: int) -> str:
    """Cleans a caption: lower case, no punctuation, hyphens or slashes, single spaces, and at most ``max_words`` words.

    The result equals that of ``pre_caption`` in the authors' code for every character, with one exception: spaces between two
    characters of a script that is written without spaces (segmented Chinese or Japanese) are removed. Words are split at spaces,
    so ``max_words`` does not limit texts in these scripts, but ``max_tokens`` does.

    Raises:
        ValueError: if nothing is left.
    """
    text = _TO_SPACE.sub(" ", text.lower())
    text = _JOINING.sub(" ", text).replace("<person>", "person")
    text = _SEGMENTED.sub("", _SPACES.sub(" ", text).rstrip("\n").strip(" "))
    text = " ".join(text.split(" ")[:max_words])
    if not text:
        raise ValueError("nothing is left of the caption after cleaning")
    return text


def clean_question(text: str, max_words: int) -> str:
    """Cleans a question: lower case, punctuation replaced by spaces as in captions, and at most ``max_words`` words.

    The result equals that of ``pre_question`` in the authors' code for every character, with the same exception as
    :func:`clean_caption`. Only spaces at the end are removed. Other repeated spaces are kept and count as words, which makes no
    difference to tokenizers. The result may be empty.
    """
    text = _SEGMENTED.sub("", _JOINING.sub(" ", _TO_SPACE.sub(" ", text.lower())).rstrip(" "))
    return " ".join(text.split(" ")[:max_words])


def clean_alternatives(texts: Texts, language: str | None, max_words: int) -> list[str]:
    """Returns all non-empty alternatives, cleaned, for evaluation. They are in ``language``, or if ``language`` is None, in the
    first language of each alternative.

    Raises:
        BrokenRecordError: "empty text" if all alternatives are empty, "missing key" if no alternative has the language.
    """
    cleaned = []
    for text in alternatives(texts, language, None):
        try:
            cleaned.append(clean_caption(text, max_words))
        except ValueError:
            continue
    if not cleaned:
        raise BrokenRecordError("empty text", "nothing is left of the text after cleaning")
    return cleaned


def alternatives(texts: Texts, language: str | None, rng: np.random.Generator | None) -> list[str]:
    """Returns the strings of all alternatives.

    Args:
        texts: the alternatives.
        language: language to take from a dictionary; if None, a random language is taken.
        rng: source of randomness; if None, the first language is taken.

    Raises:
        BrokenRecordError: "missing key" if no alternative has the language.
    """
    chosen: list[str] = []
    for text in texts:
        if isinstance(text, str) or language is not None:
            chosen += texts_in_language(text, language)
        else:
            names = list(text)
            chosen += texts_in_language(text, names[int(rng.integers(len(names))) if rng is not None else 0])
    if not chosen:
        wanted = "no text" if language is None else f"no text in language {language!r}"
        raise BrokenRecordError("missing key", wanted)
    return chosen


def mentions_side(text: str) -> bool:
    """Returns True if mirroring the image would make the text wrong, because the text contains "left" or "right" (or leftmost,
    rightward, right-hand, …). English only. The authors' code searches for substrings, which also match "bright" and "leftover".
    """
    return _SIDE.search(text) is not None


class PlainTextProcessor:
    """Converts texts to token ids.

    Args:
        tokenizer: a fast Hugging Face tokenizer with a classification, a separator and a padding token.
        limits: maximum lengths.

    Raises:
        UserError: if the tokenizer lacks one of these tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, limits: TextLimits):
        self.limits = limits
        self.max_words = limits.max_words or limits.max_tokens
        self.cls_id = _special(tokenizer, "cls_token")
        self.sep_id = _special(tokenizer, "sep_token")
        self.pad_id = _special(tokenizer, "pad_token")
        self.unk_id = tokenizer.unk_token_id
        self._pieces = tokenizer.backend_tokenizer
        # The underlying tokenizer is nearly twice as fast as transformers' wrapper, which would set truncation and padding at
        # each call. Here they are set once, and texts are truncated by this class.
        self._marks_words = self._pieces.token_to_id(_WORD_MARK) is not None
        self._pieces.no_truncation()
        self._pieces.no_padding()

    def encode_plain(self, texts: Sequence[str]) -> Text:
        """Encodes cleaned texts without masking."""
        return self.stack_plain([self.token_ids(text) for text in texts])

    def token_ids(self, text: str) -> list[int]:
        """Returns the token ids of a cleaned text with [CLS] and [SEP], truncated to the maximum length."""
        return self._tokens(text)[0]

    def stack_plain(self, rows: Sequence[list[int]]) -> Text:
        """Stacks lists of token ids, as returned by :meth:`token_ids`, into a padded tensor."""
        ids = stack_rows(rows, self.pad_id)
        return Text(ids, _attended(rows, ids.shape[1]), sum(map(len, rows)))

    def pieces(self, text: str) -> tuple[list[int], list[bool]]:
        """Returns all token ids of a text without special tokens, and for each token whether it continues the previous word.

        Words are the groups of the tokenizer. In scripts written without spaces (Chinese, Japanese, Thai and similar scripts),
        the tokenizer would group a whole sentence, so every token counts as a separate word.
        """
        encoding = self._pieces.encode(text, add_special_tokens=False)
        words = encoding.word_ids
        continues = [word is not None and word == before for before, word in itertools.pairwise(words)]
        if self._marks_words:  # SentencePiece marks the pieces that begin a word, which takes precedence over `words`
            continues = [
                joined and not piece.startswith(_WORD_MARK)
                for joined, piece in zip(continues, encoding.tokens[1:], strict=True)
            ]
        if _UNSPACED.search(text):
            edges = itertools.pairwise(encoding.offsets)
            continues = [
                joined and not (_unspaced(text[before[1] - 1 : before[1]]) or _unspaced(text[after[0] : after[0] + 1]))
                for joined, (before, after) in zip(continues, edges, strict=True)
            ]
        return encoding.ids, [*([False] if words else []), *continues]

    def unknown(self, text: str) -> list[str]:
        """Returns the substrings of a text for which the tokenizer has no tokens, in order."""
        encoding = self._pieces.encode(text, add_special_tokens=False)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[start:end] for number, (start, end) in pairs if number == self.unk_id and end > start]

    def _tokens(self, text: str) -> tuple[list[int], list[bool]]:
        """Returns the token ids with [CLS] and [SEP], truncated, and for each token whether it continues the previous word."""
        ids, continues = self.pieces(text)
        kept = self.limits.max_tokens - 2
        return [self.cls_id, *ids[:kept], self.sep_id], [False, *continues[:kept], False]


class TextProcessor(PlainTextProcessor):
    """Converts texts to token ids and masked copies.

    Args:
        tokenizer: see :class:`PlainTextProcessor`; it must also have a mask token.
        config: truncation and masking.
        static: make batches with few different shapes, so that compiled code can be reused.

    Raises:
        UserError: if the tokenizer lacks a required token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: TextDataConfig, *, static: bool = False):
        self.static = static
        self.mask_id = _special(tokenizer, "mask_token")
        super().__init__(tokenizer, config)
        self.config = config
        self.vocab_size = len(tokenizer)

    def choose(self, texts: Texts, rng: np.random.Generator) -> str:
        """Returns a random non-empty alternative, cleaned.

        Raises:
            BrokenRecordError: "empty text" if all alternatives are empty, "missing key" if no alternative has the configured
                language.
        """
        candidates = alternatives(texts, self.config.language, rng)
        order = rng.permutation(len(candidates)).tolist() if len(candidates) > 1 else [0]
        for index in order:
            try:
                return clean_caption(candidates[index], self.max_words)
            except ValueError:
                continue
        raise BrokenRecordError("empty text", f"nothing is left of {candidates[0][:80]!r} after cleaning")

    def encode(self, text: str, rng: np.random.Generator) -> TextExample:
        """Encodes a cleaned text as at most ``max_tokens`` token ids, with a masked copy."""
        ids, continues = self._tokens(text)
        positions = self.mask_positions(continues, rng)
        masked = list(ids)
        for position in positions:
            draw = rng.random()
            if draw < 0.8:
                masked[position] = self.mask_id
            elif draw < 0.9:
                # Uniform over the whole vocabulary, including special and unused entries, as in the authors' code.
                masked[position] = int(rng.integers(self.vocab_size))
        return TextExample(ids, masked, positions)

    def stack_plain(self, rows: Sequence[list[int]]) -> Text:
        text = super().stack_plain(rows)
        if not self.static:
            return text
        more = (0, self.static_length(text.mask.sum(dim=1).tolist()) - text.ids.shape[1])
        ids = pad(text.ids, more, value=self.pad_id)
        return Text(ids, pad(text.mask, more), rounded_up(int(text.mask.sum()), ids.numel()))

    def static_length(self, lengths: Sequence[int]) -> int:
        """Returns the length to which texts are padded if shapes are static: the smallest power of two, at least 64, that fits,
        or the maximum length if that is smaller."""
        length = SHORTEST_PADDING
        while length < max(lengths, default=0):
            length *= 2
        return min(length, self.limits.max_tokens)

    def filler(self) -> TextExample:
        """Returns the text of a filler row: [CLS] [SEP] without masks."""
        ids = [self.cls_id, self.sep_id]
        return TextExample(ids, list(ids), [])

    def collate(self, examples: Sequence[TextExample]) -> MaskedText:
        """Stacks examples into tensors, padded to the longest text and to the maximum number of masks in the batch.

        With ``static``, examples are padded to one of a few lengths (:meth:`static_length`), and to the config's maximum number
        of masks. The total numbers of tokens and masks are rounded up, which results in few shapes with little waste.
        """
        length = self.static_length([len(example.ids) for example in examples]) if self.static else None
        ids = stack_rows([example.ids for example in examples], self.pad_id, length)
        mask = _attended([example.ids for example in examples], ids.shape[1])
        masks = max(1, *(len(example.positions) for example in examples), 0)
        if self.static:
            masks = self.config.max_masks
        tokens = sum(len(example.ids) for example in examples)
        masked = max(1, sum(len(example.positions) for example in examples))
        return MaskedText(
            ids=ids,
            mask=mask,
            masked_ids=stack_rows([example.masked_ids for example in examples], self.pad_id, length),
            positions=stack_rows([example.positions for example in examples], 0, masks),
            labels=stack_rows([example.labels for example in examples], IGNORE, masks),
            text_id=text_ids(ids, mask),
            token_count=rounded_up(tokens, ids.numel()) if self.static else tokens,
            masked_count=rounded_up(masked, len(ids) * masks) if self.static else masked,
        )

    def mask_positions(self, continues: list[bool], rng: np.random.Generator, prompt: int = 0) -> list[int]:
        """Draws the positions to mask, ascending, like the authors' ``TextMaskingGenerator`` but with the words of the tokenizer.

        The ``prompt`` tokens after [CLS] are not counted and not masked. The number of masks is a fraction of all other tokens,
        including [CLS] and [SEP], rounded half to even as Python does. [SEP] may be masked; [CLS] is never masked. If the last
        span exceeds the number of masks, random positions are dropped, so a word may be masked in part.
        """
        length, first = len(continues), 1 + prompt
        count = min(self.config.max_masks, max(1, round((length - prompt) * self.config.mask_prob)))
        chosen: set[int] = set()
        for start in (rng.permutation(length - first) + first).tolist():
            if len(chosen) >= count:
                break
            if start in chosen:
                continue
            end = start + 1
            if self.config.skipgram_prob > 0 and rng.random() < self.config.skipgram_prob:
                end = start + int(rng.integers(2, self.config.skipgram_size + 1))
            if self.config.whole_word:
                while start > 0 and continues[start]:
                    start -= 1
                while end < length and continues[end]:
                    end += 1
            chosen.update(range(max(start, first), min(end, length)))
        positions = sorted(chosen)
        if len(positions) > count:
            positions = sorted(rng.permutation(positions)[:count].tolist())
        return positions


def decode_to_text(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Returns the text of generated token ids, without special tokens and :data:`~batches.base.IGNORE`."""
    kept = [token for token in ids if token != IGNORE]
    return str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=True))


def rounded_up(count: int, maximum: int) -> int:
    """Rounds ``count`` up to a multiple of 1/16 of ``maximum``; or, if this step is more than an eighth of ``count``, to one of
    the eight steps between a power of two and the next."""
    step = max(1, -(-maximum // 16))
    if 8 * step > count:
        step = 1 << max(0, count.bit_length() - 4)
    return min(maximum, -(-count // step) * step)


_INSTEAD = {"cls_token": "bos_token_id", "sep_token": "eos_token_id"}
"""Attributes to use if a special token is missing. Gemma's tokenizer, which mmBERT and SigLIP 2 use, has no classification or
separator token; its tokens for the beginning and the end of a text are used instead."""


def _special(tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    number = getattr(tokenizer, f"{name}_id")
    if number is None and name in _INSTEAD:
        number = getattr(tokenizer, _INSTEAD[name])
    if number is None and name == "mask_token":
        number = tokenizer.backend_tokenizer.token_to_id(
            "<mask>"
        )  # Gemma's vocabulary contains it, but does not declare it
    if number is None:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no {name}",
            remedy="set one and save it",
        )
    return int(number)


def _unspaced(character: str) -> bool:
    return _UNSPACED.match(character) is not None


def _attended(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    lengths = torch.tensor([len(row) for row in rows])
    return torch.arange(width)[None, :] < lengths[:, None]
