"""The first stage of a search over many images: ``python -m benchmarks.search``.

The embeddings are made up: a million, as wide as those of X²-VLM base, mapped from a file that is in memory. Each search
has a query of its own. Encoding the text, and re-ranking, are not timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from x2vlm.search.files import About, open_embeddings
from x2vlm.search.index import nearest_rows


def write_embeddings(path: Path, images: int, width: int) -> None:
    """Random unit vectors."""
    rng = np.random.default_rng(0)
    made = np.lib.format.open_memmap(path, "w+", np.dtype(np.float32), (images, width))
    for start in range(0, images, 1 << 16):
        made[start : start + (1 << 16)] = unit(rng, min(1 << 16, images - start), width)
    made.flush()


def unit(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """(count, width) random vectors of length 1."""
    vectors = rng.standard_normal((count, width), dtype=np.float32)
    lengths: np.ndarray = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--searches", type=int, default=51)
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        about = About(name, "made up", "", flags.width, made=1)
        write_embeddings(about.embeddings_in(Path(name)), flags.images, flags.width)
        embeddings = open_embeddings(Path(name), about, flags.images)
        queries, took = unit(np.random.default_rng(1), flags.searches, flags.width), []
        nearest_rows(embeddings, queries[0], 64)  # the file comes into memory
        for query in queries:
            started = time.perf_counter()
            rows, _ = nearest_rows(embeddings, query, 64)
            took.append(time.perf_counter() - started)
        right = set(np.argsort(-(np.asarray(embeddings) @ queries[-1]))[:64].tolist()) == set(rows.tolist())
    p50, p95 = 1000 * np.percentile(took, [50, 95])
    sys.stdout.write(
        f"{flags.images:,} images on {torch.get_num_threads()} cores: p50 {p50:.0f} ms, p95 {p95:.0f} ms of "
        f"{flags.searches} searches; the last one's 64 best are {'' if right else 'not '}those of numpy\n"
    )


if __name__ == "__main__":
    main()
