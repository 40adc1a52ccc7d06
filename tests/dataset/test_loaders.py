"""The loader returns the same batches for any workers, ranks and interruptions, and accounts for broken records."""

from __future__ import annotations

import logging

import pytest
import torch

from batches.base import BrokenRecord, RecordCount
from batches.pretraining import PretrainBatch
from dataset.config import CleanSetConfig, DataConfig, ImageStreamConfig, RegionStreamConfig, TextStreamConfig
from dataset.loaders import BatchLoader, BrokenRecordLog
from dataset.shards.readers import Shards
from dataset.tasks.pretrain import PretrainBatches
from tests.messages import OneLine, naming
from utils.errors import UserError
from utils.events import CountedRecords


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    fields = vars(value).values() if hasattr(value, "__dataclass_fields__") else ()
    return [tensor for field in fields for tensor in tensors(field)]


def same(one: list[PretrainBatch], other: list[PretrainBatch]) -> bool:
    if len(one) != len(other):
        return False
    for a, b in zip(one, other, strict=True):
        if (a.records, a.broken, a.read) != (b.records, b.broken, b.read):
            return False
        if not all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True)):
            return False
    return True


@pytest.fixture
def data(write_lines, make_pair, make_regions, tmp_path) -> DataConfig:
    pairs = write_lines("pairs.jsonl", [make_pair(n) for n in range(11)])
    regions = write_lines("regions.jsonl", [make_regions(n) for n in range(7)])
    texts = write_lines("texts.jsonl", [{"text": f"a red star number {n}"} for n in range(5)])
    return DataConfig(
        images=ImageStreamConfig(files=[pairs], batch_size=3),
        regions=RegionStreamConfig(files=[regions], batch_size=5, max_images=2),
        texts=TextStreamConfig(files=[texts], batch_size=2),
        workers=0,
        cache_index=str(tmp_path / "index"),
    )


@pytest.fixture
def loader(data, tokenizer):
    def make(workers: int = 0, rank: int = 0, world_size: int = 1, **change) -> BatchLoader:
        changed = data.model_copy(update={"workers": workers, **change})
        batches = PretrainBatches(
            changed, tokenizer=tokenizer, image_size=32, patch_size=8, seed=3, world_size=world_size
        )
        return BatchLoader(batches, changed, rank=rank, world_size=world_size)

    return make


def test_any_number_of_workers_gives_the_same_batches(loader):
    reference = list(loader(0).batches(0, 7))
    assert len({batch.records for batch in reference}) == 7
    for workers in (1, 2):
        assert same(list(loader(workers).batches(0, 7)), reference)


def test_resuming_at_any_step_gives_the_batches_of_an_uninterrupted_run(loader):
    straight = list(loader().batches(0, 9))
    for consumed in range(10):
        assert same(list(loader().batches(consumed, 9 - consumed)), straight[consumed:])


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_draws_nothing_from_the_global_generator(loader, workers):
    """Otherwise the dropout of a resumed run would differ from that in an uninterrupted run."""
    before = torch.random.get_rng_state()
    list(loader(workers).batches(0, 2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_run_may_be_resumed_on_another_number_of_ranks(loader):
    straight = list(loader().batches(0, 10))
    shares = [list(loader(rank=rank, world_size=3).batches(4, 2)) for rank in range(3)]
    merged = [shares[rank][step] for step in range(2) for rank in range(3)]
    assert same(merged, straight[4:10])


def test_two_ranks_cover_an_epoch_without_overlap(loader, data):
    for order in ("random", "blocks"):
        images = data.images.model_copy(update={"batch_size": 1, "order": order, "block_records": 2})
        shares = []
        for rank in range(2):
            own = loader(rank=rank, world_size=2, images=images, regions=None, texts=None)
            # There are eleven records, and the lane of rank 0 has five of them.
            size = 5 + rank if order == "blocks" else 6 - rank
            shares.append([batch.records[0] for batch in own.batches(0, size)])
        assert len(set(shares[0] + shares[1])) == len(shares[0]) + len(shares[1]) == 11


def test_facts_for_the_log_describe_the_data(loader):
    own = loader()
    assert own.examples_per_batch == 10
    assert own.epoch_size == 11
    assert own.stream_sizes == {"images": 11, "regions": 7, "texts": 5}
    assert list(own.batches(0, 0)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_user_error_in_a_worker_reaches_the_user_unchanged(loader, data, workers, monkeypatch):
    own = loader(workers)

    def broken(self, number):
        raise UserError("pairs.jsonl: cannot be read any more")

    monkeypatch.setattr(Shards, "read", broken)
    with pytest.raises(UserError) as caught:
        list(own.batches(0, 1))
    assert str(caught.value) == OneLine("pairs.jsonl", "cannot be read")


def test_broken_records_are_logged_once_per_kind_with_file_and_line(loader, write_lines, make_pair, caplog):
    file = write_lines("some.jsonl", [make_pair(0), "{", make_pair(1), "{", {"caption": "a"}, make_pair(2)])
    images = ImageStreamConfig(files=[file], batch_size=2)
    own = loader(images=images, regions=None, texts=None, max_broken=0.5)
    with caplog.at_level(logging.WARNING, logger="dataset.loaders"):
        list(own.batches(0, 3))
    assert len(caplog.records) == 2
    text = caplog.text
    assert f"{file}:5: missing key: no 'image'" in text
    assert f"{file}:2: bad json" in text or f"{file}:4: bad json" in text
    summary = str(own.broken.finish())
    assert summary == OneLine("3 of 6", "50.0%", "2 bad json")
    assert f"1 missing key (first: {file}:5: no 'image'" in summary


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_stops_early_logs_how_many_records_it_has_read(loader, write_lines, make_pair, workers, caplog):
    file = write_lines("some.jsonl", ["{", *[make_pair(n) for n in range(99)]])
    config = ImageStreamConfig(files=[file], batch_size=5)
    batches = loader(workers, images=config, regions=None, texts=None, max_broken=0.5).batches(0, 20)
    next(batches), next(batches)
    with caplog.at_level(logging.INFO, logger="dataset.loaders"):
        batches.close()
    (counted,) = [record.msg for record in caplog.records if isinstance(record.msg, CountedRecords)]
    assert counted.read == 10 and counted.broken <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_with_too_many_broken_records_stops_with_a_summary(loader, write_lines, make_pair, workers):
    file = write_lines("some.jsonl", [*[make_pair(n) for n in range(9)], "{"])
    own = loader(workers, images=ImageStreamConfig(files=[file], batch_size=5), regions=None, texts=None)
    message = (
        r"^1 of 10 records \(10.0%\) are broken, more than data.max_broken = 1%: 1 bad json \(first: .*some.jsonl:10: .*\); "
        r"fix or remove them, or raise data.max_broken$"
    )
    with pytest.raises(UserError, match=message):
        list(own.batches(0, 2))


def batch(read: int, *broken: tuple[str, str]) -> PretrainBatch:
    records = tuple(BrokenRecord(place, kind, "why") for kind, place in broken)
    count = len({record.place for record in records})
    counts = {"images": RecordCount(read, max(read - count, 0), count)}
    return PretrainBatch(None, None, None, broken=records, counts=counts)


def test_the_share_of_broken_records_is_checked_after_enough_records_or_at_the_end():
    log = BrokenRecordLog(0.01, {"images": 5000})
    log.add(batch(500, *[("bad json", f"a:{n}") for n in range(9)]))
    with pytest.raises(UserError, match=r"9 of 500 records \(1.8%\)"):
        log.finish()
    log.add(batch(500))
    with pytest.raises(UserError, match=naming("11 of 1001", "1.1%", "9 bad json", "2 empty text", "b:1")):
        log.add(batch(1, ("empty text", "b:1"), ("empty text", "b:2")))


def test_a_stream_without_usable_records_is_named_if_too_many_records_are_broken():
    log = BrokenRecordLog(0.05, {"images": 5000, "regions": 5000})
    for number in range(2):
        broken = tuple(BrokenRecord(f"a:{number}:{n}", "missing key", "no 'caption'") for n in range(8))
        counts = {"images": RecordCount(8, 0, 8), "regions": RecordCount(16, 16)}
        log.add(PretrainBatch(None, None, None, broken=broken, counts=counts))
    with pytest.raises(UserError, match=naming("16 records", "images", "16 missing")):
        log.finish()


def test_a_record_with_several_broken_parts_counts_once():
    log = BrokenRecordLog(0.02, {"images": 100})
    log.add(batch(100, *[("degenerate box", "a:1")] * 5, ("degenerate box", "a:2")))
    assert str(log.finish()) == OneLine("2 of 100", "2.0%", "6 degenerate box", "a:1")
    assert str(BrokenRecordLog(0.0, {"images": 10}).finish()) == "0 records read, none broken"


def test_pixels_stay_uint8_and_every_tensor_of_a_batch_is_pinned(loader, monkeypatch):
    """Only pinned tensors are copied to a GPU asynchronously. Bytes are enough, because normalisation happens on the GPU."""
    (batch,) = loader(workers=2).batches(0, 1)
    for stream in (batch.images, batch.regions):
        assert stream.pixels.dtype == torch.uint8
        assert stream.pixels.is_contiguous()
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    batch.pin_memory()
    assert [id(tensor) for tensor in pinned] == [id(tensor) for tensor in tensors(batch)]


def test_an_epoch_with_a_clean_set_reads_a_share_of_the_noisy_set(tokenizer, write_lines, make_pair, tmp_path):
    """The epoch has the same number of steps as without a clean set. Noisy records are read at most once, and the next epoch
    reads others."""
    noisy = write_lines("noisy.jsonl", [make_pair(n) for n in range(100)])
    clean = write_lines("clean.jsonl", [make_pair(n) for n in range(5)])
    images = ImageStreamConfig(files=[noisy], batch_size=1, clean=CleanSetConfig(files=[clean], probability=0.15))
    data = DataConfig(images=images, cache_index=str(tmp_path / "index"), workers=0)
    loader = BatchLoader(PretrainBatches(data, tokenizer=tokenizer, image_size=32, patch_size=8, seed=0), data)
    assert (loader.epoch_size, loader.records_per_batch) == (100, 1)
    epochs = []
    for first in (0, 100):
        places = [batch.records[0] for batch in loader.batches(first, 100)]
        taken = [place for place in places if place.startswith(noisy)]
        assert len(set(taken)) == len(taken)
        assert 75 <= len(taken) <= 95
        epochs.append(set(taken))
    assert len(epochs[0] | epochs[1]) > len(epochs[0]) + 5
