"""Texts of 512 tokens, from training to search and export."""

from __future__ import annotations

import json

import numpy as np
import pytest

import x2vlm
from tests.engine.frozen import pretraining
from x2vlm.export.writing import export

pytestmark = pytest.mark.slow

WORDS = ["red", "star", "left", "of", "a", "small", "blue", "circle"] * 63
"""504 words of one token each, which are 506 tokens with [CLS] and [SEP]."""


def text(changed: int | None = None, more: int = 0) -> str:
    words = [*WORDS, *["heart"] * more]
    if changed is not None:
        words[changed] = "green"
    return " ".join(words)


def test_every_token_of_a_long_text_affects_the_result(tiny_overrides, scenes_folder, tmp_path):
    """The position table with 64 rows is stretched to 512."""
    records = [json.loads(line) for line in (scenes_folder / "train.jsonl").read_text().splitlines()]
    for number, record in enumerate(records):
        image = str(scenes_folder / record["image"])
        record |= {"image": image, "long_caption": text(number % 500)}
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    given = ["model.text.max_positions=512", "data.text.max_tokens=512", "data.images.captions=both", "train.steps=2"]
    run = pretraining(tmp_path / "run", tiny_overrides, *given, f"data.images.files=[{tmp_path}/long.jsonl]")
    run.fit()
    lengths = next(iter(run.task.train_loader().batches(0, 1))).images.long.text.mask.sum(dim=1)
    assert lengths.max() > 500
    model = x2vlm.load(tmp_path / "run")
    exported = tmp_path / "exported.onnx"
    export(model, exported)
    for network in (model, x2vlm.load(exported)):
        index = network.index(scenes_folder / "images" / "train", tmp_path / f"index{network is model}")
        texts = [text(), text(changed=499), text(more=6), text(more=50)]
        same, late, last, beyond = (np.array([hit.cosine for hit in index.search(each, top=4)]) for each in texts)
        assert not np.array_equal(same, late), "a word near the end must change the result of the search"
        assert np.array_equal(last, beyond), "words after 512 tokens must not change it"
