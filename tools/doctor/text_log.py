"""A tokenizer that counts unknown tokens, and the words in which they occur."""

from __future__ import annotations

from collections import Counter
from typing import Any


class TextLog:
    """Wraps a tokenizer, to which it forwards all calls, and counts tokens.

    Attributes:
        tokens: number of tokens in all texts, excluding special tokens.
        unknown: number of unknown tokens in each word.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.backend_tokenizer = _LoggedPieces(tokenizer.backend_tokenizer, self)
        self.unknown_id: int | None = tokenizer.unk_token_id
        self.tokens = 0
        self.unknown: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        return self._tokenizer(*texts, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._tokenizer, name)

    def record(self, text: str, encoding: Any) -> None:
        """Counts the tokens of a text."""
        self.tokens += len(encoding.ids)
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number == self.unknown_id:
                self.unknown[text[start:end]] += 1


class _LoggedPieces:
    def __init__(self, pieces: Any, log: TextLog):
        self._pieces, self._log = pieces, log

    def encode(self, text: str, *others: Any, **options: Any) -> Any:
        encoding = self._pieces.encode(text, *others, **options)
        self._log.record(text, encoding)
        return encoding

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._pieces, name)
