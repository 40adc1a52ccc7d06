"""Which rows are kept if more rows were read than fit into a region batch."""

from __future__ import annotations

from collections import Counter

import pytest

from dataset.config import DataConfig, RegionStreamConfig
from dataset.tasks.pretrain import PretrainBatches

IMAGES, ROWS, BATCHES = 6, 2, 24


@pytest.fixture
def kept(tokenizer, tmp_path, write_lines, make_pair):
    """``kept(seed)`` returns, for each batch, which of the images read for it kept their row. Each image has one row."""
    file = write_lines("a.jsonl", [{**make_pair(n), "elems": []} for n in range(IMAGES)])
    stream = RegionStreamConfig(files=[file], batch_size=ROWS, max_images=IMAGES, max_regions=1)
    data = DataConfig(cache_index=str(tmp_path / "index"), regions=stream)

    def places(seed: int) -> list[tuple[int, ...]]:
        batches = PretrainBatches(data, tokenizer=tokenizer, image_size=16, patch_size=8, seed=seed, world_size=1)
        found = []
        for number in range(BATCHES):
            batch = batches.make(number)
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in batch.regions.text.ids]
            names = [f"number zero {name}" for name in ("zero", "one", "two", "three", "four", "five")]
            records = [int(place.rsplit(":", 1)[1]) - 1 for place in batch.records]
            found.append(tuple(records.index(names.index(text)) for text in texts))
        return found

    return places


def test_every_batch_keeps_random_rows(kept):
    drawn = kept(0)
    assert all(len(set(places)) == ROWS and list(places) == sorted(places) for places in drawn)
    assert len(set(drawn)) > 8, "there are 15 ways to keep two of six"
    counts = Counter(place for places in drawn for place in places)
    assert len(counts) == IMAGES and max(counts.values()) < 2 * BATCHES * ROWS / IMAGES


def test_the_rows_kept_depend_only_on_the_seed(kept):
    first, again, other = kept(0), kept(0), kept(1)
    assert first == again
    same = sum(one == two for one, two in zip(first, other, strict=True))
    assert same < BATCHES / 3
