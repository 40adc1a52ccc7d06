"""Runs in block order read the same records in each step, for any number of ranks and workers and from any step."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path

import pytest

from dataset.config import CleanSetConfig, DataConfig, ImageStreamConfig, TextStreamConfig
from dataset.loaders import BatchLoader
from dataset.tasks.pretrain import PretrainBatches
from tests.messages import OneLine, naming
from utils.config import bind
from utils.config_files import ConfigError
from utils.errors import UserError

STEP = 4
"""Micro-batches per global batch."""


@pytest.fixture
def data(write_lines, make_pair, tmp_path) -> DataConfig:
    noisy = [write_lines(f"noisy{part}.jsonl", [make_pair(20 * part + n) for n in range(20)]) for part in range(3)]
    clean = write_lines("clean.jsonl", [make_pair(n) for n in range(21)])
    texts = write_lines("texts.jsonl", [{"text": f"a red star number {n}"} for n in range(13)])
    return DataConfig(
        images=ImageStreamConfig(
            files=noisy,
            batch_size=3,
            order="blocks",
            block_records=4,
            clean=CleanSetConfig(files=[clean], probability=0.4),
        ),
        texts=TextStreamConfig(files=[texts], batch_size=2, order="blocks", lanes=4, block_records=3),
        cache_index=str(tmp_path / "index"),
        workers=0,
    )


@pytest.fixture
def steps(data, tokenizer):
    """The locations of the records of each step, over all ranks."""

    def read(ranks: int, first: int, last: int, workers: int = 0, **change) -> list[list[str]]:
        changed = data.model_copy(update={"workers": workers, **change})
        accumulate = STEP // ranks
        places: list[list[str]] = [[] for _ in range(first, last)]
        for rank in range(ranks):
            maker = PretrainBatches(
                changed,
                tokenizer=tokenizer,
                image_size=16,
                patch_size=8,
                seed=3,
                world_size=ranks,
                accumulate=accumulate,
            )
            loader = BatchLoader(maker, changed, rank=rank, world_size=ranks)
            for place, batch in enumerate(loader.batches(first * STEP, (last - first) * accumulate)):
                places[place // accumulate] += [Path(record).name for record in batch.records]
        return [sorted(step) for step in places]

    return read


@pytest.mark.slow
def test_resuming_repeats_the_records_of_each_step_on_any_ranks_with_any_workers(steps):
    """Twelve steps cover more than two epochs of the noisy images and seven epochs of the texts."""
    straight = steps(1, 0, 12)
    assert {name.split(".")[0] for step in straight for name in step} == {
        *(f"noisy{n}" for n in range(3)),
        "clean",
        "texts",
    }
    for ranks, workers, first in [
        (1, 0, 5),
        (1, 1, 7),
        (1, 2, 5),
        (2, 0, 0),
        (2, 2, 6),
        (4, 0, 0),
        (4, 1, 11),
        (4, 2, 5),
    ]:
        assert steps(ranks, first, 12, workers) == straight[first:], (ranks, workers, first)


def test_clean_sets_can_have_weights(steps, data):
    files = [*data.images.files[:2], {"path": data.images.files[2], "weight": 1.5}]
    images = ImageStreamConfig(**{**data.images.model_dump(), "files": files})
    straight = steps(1, 0, 8, images=images)
    assert steps(2, 3, 8, images=images) == steps(4, 3, 8, 1, images=images) == straight[3:]


@pytest.mark.slow
def test_spawned_workers_read_the_same_records_as_the_main_process(data, tokenizer):
    maker = PretrainBatches(data, tokenizer=tokenizer, image_size=16, patch_size=8, seed=3, accumulate=STEP)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        copies = pool.map(maker.make, range(9, 18))
    assert [copy.records for copy in copies] == [maker.make(number).records for number in range(9, 18)]


def test_fixed_lanes_read_the_same_records_without_clean_sets(steps, data):
    images = data.images.model_copy(update={"clean": None, "lanes": 8})
    straight = steps(1, 0, 10, images=images)
    for ranks, first in [(2, 0), (2, 3), (4, 0), (4, 7)]:
        assert steps(ranks, first, 10, images=images) == straight[first:]


@pytest.mark.parametrize("order", ["random", "blocks"])
def test_weights_hold_on_any_ranks_and_after_resuming(steps, data, order):
    """60 records, 20 of them with weight 2 and 20 with weight 0.6, make an epoch of 72 records, which four lanes divide."""
    weights = [1, 2, 0.6]
    files = [{"path": path, "weight": weight} for path, weight in zip(data.images.files, weights, strict=True)]
    images = ImageStreamConfig(files=files, batch_size=6, order=order)
    change = {"images": images, "texts": None}
    straight = steps(1, 0, 6, **change)  # two epochs
    counts = Counter(name for step in straight for name in step)
    for part, expected in enumerate([{2}, {4}, {1, 2}]):
        assert {counts[f"noisy{part}.jsonl:{line}"] for line in range(1, 21)} == expected
    for ranks, workers, first in [(2, 0, 0), (2, 1, 3), (4, 0, 2)]:
        assert steps(ranks, first, 6, workers, **change) == straight[first:]


def test_weights_set_the_length_of_an_epoch_and_repeated_records_differ(data, tokenizer):
    files = [{"path": data.images.files[0], "weight": 3}, data.images.files[1]]
    changed = data.model_copy(update={"images": ImageStreamConfig(files=files, batch_size=8), "texts": None})
    maker = PretrainBatches(changed, tokenizer=tokenizer, image_size=16, patch_size=8, seed=3)
    assert BatchLoader(maker, changed).epoch_size == 80
    source = maker.streams["images"].source
    drawn = [(record, rng.random()) for number in range(10) for record, rng in source.samples(number)]
    assert Counter(record for record, _ in drawn) == {record: 3 if record < 20 else 1 for record in range(40)}
    assert len(set(drawn)) == 80


def test_ranks_that_do_not_divide_the_lanes_are_rejected_before_training(data, tokenizer):
    images = data.images.model_copy(update={"lanes": 6})
    changed = data.model_copy(update={"images": images})
    with pytest.raises(UserError, match=naming("data.images.lanes = 6", "4 ranks", "1, 2, 3 or 6")):
        PretrainBatches(changed, tokenizer=tokenizer, image_size=16, patch_size=8, seed=0, world_size=4)


def test_fewer_records_than_lanes_are_rejected_before_training(data, tokenizer):
    images = data.images.model_copy(update={"lanes": 22})
    changed = data.model_copy(update={"images": images})
    with pytest.raises(UserError, match=r"^data.images.clean.files: 21 records cannot fill 22 lanes"):
        PretrainBatches(changed, tokenizer=tokenizer, image_size=16, patch_size=8, seed=0, world_size=2)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"order": "sequential"}, ("order = 'sequential'", "order: blocks")),
        ({"lanes": 4}, ("lanes = 4", "order: random", "order: blocks")),
        ({"block_records": 9}, ("block_records = 9", "order: random", "order: blocks")),
        ({"files": [{"path": "a", "weight": 0}]}, ("files.0.weight = 0",)),
        ({"files": [{"path": "a", "weigth": 2, "weight": 1}]}, ("files.0.weigth",)),
        ({"files": [3]}, ("files.0 = 3",)),
        ({"order": "blocks", "lanes": 0}, ("lanes = 0", "1")),
    ],
)
def test_meaningless_keys_are_reported_in_one_line(values, line):
    with pytest.raises(ConfigError) as caught:
        bind({"files": ["a"], "batch_size": 1, **values}, TextStreamConfig)
    assert str(caught.value) == OneLine(*line)
    assert "\n" not in str(caught.value)
