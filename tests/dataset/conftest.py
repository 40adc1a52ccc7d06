"""Small images, records and a WordPiece tokenizer, all created on the fly."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = "a the red blue star circle left right of on small large dog cat street bright upright with number"
PIECES = "play ##ing ##ful ##ness water ##melon zero one two three four five six seven eight nine ten"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    entries = [*SPECIALS, *WORDS.split(), *PIECES.split()]
    model = Tokenizer(models.WordPiece({word: i for i, word in enumerate(entries)}, unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def picture_bytes(width: int = 40, height: int = 32, seed: int = 0, form: str = "JPEG") -> bytes:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST).save(stream, form)
    return stream.getvalue()


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """Bytes of an image of large uniform blocks: ``encoded(width, height, seed, form)``."""
    return picture_bytes


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[[str, list[Any]], str]:
    """Returns a function that writes records (or raw strings) as JSON lines and returns the file's name."""

    def write(name: str, records: list[Any]) -> str:
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


def pair(number: int, **more: Any) -> dict[str, Any]:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    text = f"number {names[number // 11 % 11]} {names[number % 11]}"
    picture = base64.b64encode(picture_bytes(seed=number)).decode()
    return {"image": picture, "caption": text, **more}


@pytest.fixture
def make_pair() -> Callable[..., dict[str, Any]]:
    """Returns image-text record n, with an image and a caption that no other record has."""
    return pair


@pytest.fixture
def make_regions() -> Callable[..., dict[str, Any]]:
    """Returns region record n: two boxes and a caption of the whole image, which is 40 x 32 pixels."""

    def make(number: int, **more: Any) -> dict[str, Any]:
        elems = [
            {"bb": [2, 3, 16, 12], "caption": "a red star"},
            {"bb": [20, 10, 15, 20], "caption": ["the blue circle"], "attributes": ["small", "large"]},
        ]
        return {**pair(number), "elems": elems, **more}

    return make
