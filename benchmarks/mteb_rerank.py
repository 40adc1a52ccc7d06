"""Compares the speed of re-ranking through mteb and through our own search: ``python -m benchmarks.mteb_rerank``."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.export import build
from utils.commands import call
from utils.flags import Positive
from x2vlm import Model
from x2vlm.integrations.mteb import X2VLMReranker
from x2vlm.search.index import ImageIndex
from x2vlm.settings import Settings

WORDS = ("a", "dog", "cat", "man", "woman", "with", "red", "green", "hat", "on", "in", "the", "street", "grass")
QUERY = "a man with a red hat in the street with a dog on the green grass"


def model_of(size: str) -> Model:
    """Builds a model with random weights and a tokenizer with a few words."""
    special = {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    words = {word: number for number, word in enumerate([*special.values(), *WORDS])}
    tokens = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, **special)
    network = build(size)
    return Model(network, tokenizer, Settings(task="pretrain", model=network.config), origin="random weights")


def main(*, rounds: Positive = 5, size: str = "base", images: Positive = 100) -> int:
    """Compares the speed of re-ranking through mteb and through our own search.

    Both re-rank the same candidate images for one query: our search with ``ImageIndex.search(rerank=…)``, and mteb with
    ``X2VLMReranker.search``. Both have cached the image states of all candidates in an earlier search. The two alternate in one
    process. The last line is the median ratio of the times.

    Args:
        rounds: number of pairs of measurements.
        size: size of the model: base, demo or tiny.
        images: number of candidates.

    Examples:
        python -m benchmarks.mteb_rerank
    """
    model, rng, ratios = model_of(size), np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "images")
        folder.mkdir()
        paths = [folder / f"{number:03}.png" for number in range(images)]
        for path in paths:
            Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)).save(path)
        model.index(folder, Path(name, "index"))
        index = ImageIndex(Path(name, "index"), model, cache=Path(name, "cache"))
        task = SimpleNamespace(name="Query", get_modalities=lambda side: ["text"] if side == "query" else ["image"])
        corpus = Dataset.from_dict({"id": [path.name for path in paths], "image": [Image.open(path) for path in paths]})
        queries = Dataset.from_dict({"id": ["query"], "text": [QUERY]})
        reranker = X2VLMReranker(model)
        reranker.index(corpus, task_metadata=task)
        candidates = {"query": [path.name for path in paths]}
        for number in range(rounds + 1):
            started = time.perf_counter()
            hits = index.search(QUERY, top=images, rerank=images)
            ours_s = time.perf_counter() - started
            started = time.perf_counter()
            found = reranker.search(queries, task_metadata=task, top_k=images, top_ranked=candidates)["query"]
            mteb_s = time.perf_counter() - started
            difference = max(abs(1 / (1 + np.exp(-found[hit.path.name])) - (hit.score or 0)) for hit in hits)
            assert difference < 1e-4, f"scores differ by {difference}"
            if number:  # the first round fills the caches
                ratios.append(mteb_s / ours_s)
                sys.stdout.write(
                    f"{images} candidates: ours {1e3 * ours_s:.0f} ms, mteb {1e3 * mteb_s:.0f} ms, ratio "
                    f"{ratios[-1]:.2f}, probabilities differ by {difference:.1e}\n"
                )
    sys.stdout.write(f"ratio: {statistics.median(ratios):.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.mteb_rerank"))
