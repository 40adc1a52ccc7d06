"""Speed of the first stage of a search over many images: ``python -m benchmarks.search``."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import seconds_of
from utils.commands import call
from x2vlm.search.files import Metadata, open_embeddings
from x2vlm.search.index import nearest_rows


def write_embeddings(path: Path, images: int, width: int) -> None:
    """Writes a file of random unit vectors."""
    rng = np.random.default_rng(0)
    made = np.lib.format.open_memmap(path, "w+", np.dtype(np.float32), (images, width))
    for start in range(0, images, 1 << 16):
        made[start : start + (1 << 16)] = unit(rng, min(1 << 16, images - start), width)
    made.flush()


def unit(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Returns random unit vectors, (count, width)."""
    vectors = rng.standard_normal((count, width), dtype=np.float32)
    lengths: np.ndarray = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths)


def main(*, images: int = 1_000_000, width: int = 256, searches: int = 51) -> int:
    """Speed of the first stage of a search over many images.

    The embeddings are a million random vectors of the width that X²-VLM base uses, memory-mapped from a file in the page cache.
    Each search has a different query. Encoding the text and re-ranking are not timed.

    Args:
        images: number of embeddings.
        width: width of an embedding.
        searches: number of timed searches.

    Examples:
        python -m benchmarks.search
    """
    with tempfile.TemporaryDirectory() as name:
        metadata = Metadata(name, "made up", "", width, made=1)
        write_embeddings(metadata.embeddings_in(Path(name)), images, width)
        embeddings = open_embeddings(Path(name), metadata, images)
        queries = unit(np.random.default_rng(1), searches, width)
        nearest_rows(embeddings, queries[0], 64)  # loads the file into the page cache
        took = [seconds_of(partial(nearest_rows, embeddings, query, 64)) for query in queries]
        rows, _ = nearest_rows(embeddings, queries[-1], 64)
        right = set(np.argsort(-(np.asarray(embeddings) @ queries[-1]))[:64].tolist()) == set(rows.tolist())
    p50, p95 = 1000 * np.percentile(took, [50, 95])
    sys.stdout.write(
        f"{images:,} images on {torch.get_num_threads()} cores: p50 {p50:.0f} ms, p95 {p95:.0f} ms over {searches} "
        f"searches; the 64 best results of the last search {'equal' if right else 'differ from'} numpy's\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.search"))
