"""Video-text records of pre-training: clips, their neighbours, and a video stream that is mixed with other streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataset.broken import BrokenRecordError
from dataset.config import (
    AugmentConfig,
    CleanSetConfig,
    DataConfig,
    ImageStreamConfig,
    RegionStreamConfig,
    VideoStreamConfig,
)
from dataset.loaders import BatchLoader
from dataset.records.clips import choose_clip, parse_video_record
from dataset.records.schema import RawRecord
from dataset.tasks.pretrain import PretrainBatches, Steps
from tests.dataset.media.test_video import encoded, without_decoders
from tests.messages import naming
from utils.errors import UserError

WHOLE = AugmentConfig(scale=(1, 1), ratio=(4, 4), flip=0, rand_augment_ops=0)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def parse(**values: Any):
    return parse_video_record(RawRecord(values, "a.jsonl:1", Path("shards")), "video", "caption", None)


def clips(sizes: list[int]) -> list[list[str]]:
    """Records of clips. The images of clip c are named c/0.png, c/1.png and so on, and are never read."""
    return [[f"{clip}/{frame}.png" for frame in range(size)] for clip, size in enumerate(sizes)]


def chosen(record, seed: int, join: bool = True, min_frames: int = 8) -> tuple[list[str], list[str]]:
    source, texts = choose_clip(record, np.random.default_rng(seed), join=join, min_frames=min_frames)
    frames = [frame.path.relative_to("shards").as_posix() for frame in source.frames]
    return frames, [message[0] for message in texts]


def test_a_single_clip_is_the_video():
    record = parse(video=["a.png", "b.png"], caption="a dog")
    assert chosen(record, 0) == (["a.png", "b.png"], ["a dog"])
    assert parse(video="a.mp4", caption=["x", "y"]).clips[0].path == Path("shards/a.mp4")


@pytest.mark.parametrize("video", ["a.mp4", ["a.mp4", "b.mp4"]])
def test_files_of_a_continuous_video_are_not_mistaken_for_frames(video):
    with pytest.raises(BrokenRecordError, match=naming("is_continuous", "video")):
        parse(video=video, caption=["x", "y"], is_continuous=True)
    assert len(parse(video=video, caption="x", is_continuous=True).clips) == 1


def test_neighbouring_clips_are_joined_until_there_are_enough_frames():
    sizes = [3, 3, 3, 3, 3, 3]
    record = parse(video=clips(sizes), caption=list(WORDS[:6]), is_continuous=True)
    starts = set()
    for seed in range(60):
        frames, message = chosen(record, seed)
        first = WORDS.index(message[0])
        starts.add(first)
        assert message == list(WORDS[first : first + 3])
        assert frames == [f"{clip}/{n}.png" for clip in range(first, first + 3) for n in range(3)]
    assert starts == {0, 1, 2, 3}


def test_clips_without_text_are_skipped_and_do_not_count():
    message = ["zero", "[Music]", "two", " [music] ", "four"]
    record = parse(video=clips([3] * 5), caption=message, is_continuous=True)
    for seed in range(40):
        frames, texts = chosen(record, seed)
        assert texts == ["zero", "two", "four"]
        assert len(frames) == 9
    alone = {chosen(record, seed, join=False)[1][0] for seed in range(40)}
    assert alone == {"zero", "two", "four"}
    with pytest.raises(BrokenRecordError, match=naming("[Music]")):
        chosen(parse(video=clips([3]), caption=["[Music]"], is_continuous=True), 0)


def test_clips_that_are_not_consecutive_are_not_joined():
    record = parse(video=clips([2, 2, 2]), caption=["zero", "one", "two"])
    assert {tuple(chosen(record, seed)[1]) for seed in range(30)} == {("zero",), ("one",), ("two",)}


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"caption": "a"}, "missing key", ("no 'video'",)),
        ({"video": "a.mp4"}, "missing key", ("no 'caption'",)),
        ({"video": [["a.png"], ["b.png"]], "caption": "a"}, "wrong type", ("caption", "2")),
        ({"video": [["a.png"], ["b.png"]], "caption": ["a"]}, "wrong type", ("caption", "1 texts", "2 clips")),
        ({"video": [["a.png"], []], "caption": ["a", "b"]}, "unreadable video", ("video[1]", "empty")),
        ({"video": [3], "caption": "a"}, "wrong type", ("is a number",)),
        ({"video": 3, "caption": "a"}, "wrong type", ("neither a path nor a list",)),
        ({"video": "a.mp4", "caption": 3}, "wrong type", ("caption contains a number",)),
    ],
)
def test_a_broken_record_is_named(values, kind, message):
    with pytest.raises(BrokenRecordError, match=naming(*message)) as caught:
        parse(**values)
    assert caught.value.reason == kind


@pytest.fixture
def maker(tokenizer, tmp_path):
    def make(
        seed: int = 0, frames: int | None = 3, world_size: int = 1, accumulate: int = 1, **data
    ) -> PretrainBatches:
        given = DataConfig(cache_index=str(tmp_path / "index"), max_broken=1.0, workers=0, **data)
        return PretrainBatches(
            given,
            tokenizer=tokenizer,
            image_size=32,
            patch_size=8,
            seed=seed,
            world_size=world_size,
            frames=frames,
            accumulate=accumulate,
        )

    return make


def video_lines(write_lines, name: str = "videos.jsonl", count: int = 6, word: str = "number") -> str:
    rows = [
        {
            "video": [[encoded(10 * n + k) for k in range(4)], [encoded(200 + n) for _ in range(4)]],
            "caption": [f"{word} {WORDS[n]}", "the end"],
            "is_continuous": True,
        }
        for n in range(count)
    ]
    return write_lines(name, rows)


def number_on_small(frame: torch.Tensor) -> int:
    """The number painted on a frame after it was resized to 32 x 32: eight cells of four columns."""
    cells = frame[:, 2:14].float().mean(dim=(0, 1)).view(8, 4)[:, 1:3].mean(dim=1)
    return sum(1 << bit for bit, light in enumerate(cells.tolist()) if light > 128)


def test_a_video_stream_is_mixed_with_images_and_regions(maker, write_lines, make_regions, tokenizer):
    images = write_lines("images.jsonl", [make_regions(n) for n in range(6)])
    videos = VideoStreamConfig(files=[video_lines(write_lines)], batch_size=4, augment=WHOLE)
    batches = maker(
        images=ImageStreamConfig(files=[images], batch_size=2),
        regions=RegionStreamConfig(files=[images], batch_size=5, max_images=2),
        videos=videos,
    )
    batch = batches.make(3)
    assert batch.videos.pixels.shape == (4, 3, 3, 32, 32)
    assert batch.videos.pixels.dtype == torch.uint8
    assert batch.videos.valid.all()
    assert batch.unmatched == ()
    for frames, ids in zip(batch.videos.pixels, batch.videos.text.ids, strict=True):
        numbers = [number_on_small(frame) for frame in frames]
        (record,) = {number - 200 if number >= 200 else number // 10 for number in numbers}
        assert tokenizer.decode(ids).split("[SEP]")[0] == f"[CLS] number {WORDS[record]} the [UNK] "
    assert batches.examples_per_batch == 2 + 5 + 4
    assert torch.equal(batches.make(3).videos.pixels, batch.videos.pixels)
    alone = maker(videos=videos).make(3)
    assert torch.equal(alone.videos.pixels, batch.videos.pixels)


def test_a_broken_video_is_an_invalid_row(maker, write_lines):
    lines = write_lines("a.jsonl", [{"video": ["none.png"], "caption": "a"}, {"video": [encoded(1)], "caption": "a"}])
    batch = maker(videos=VideoStreamConfig(files=[lines], batch_size=2)).make(0)
    assert sorted(batch.videos.valid.tolist()) == [False, True]
    assert [each.reason for each in batch.broken] == ["missing image"]


def test_only_video_files_need_a_decoder(maker, write_lines, monkeypatch):
    without_decoders(monkeypatch)
    lists = video_lines(write_lines)
    assert maker(videos=VideoStreamConfig(files=[lists], batch_size=2)).make(0).videos.valid.all()
    files = write_lines("files.jsonl", [{"video": "a.mp4", "caption": "a dog"}])
    with pytest.raises(UserError, match=naming("data.videos.reading.backend", "files.jsonl:1", "av")):
        maker(videos=VideoStreamConfig(files=[lists, files], batch_size=2))


def test_an_image_model_rejects_a_video_stream(maker, write_lines):
    stream = VideoStreamConfig(files=[video_lines(write_lines)], batch_size=2)
    with pytest.raises(UserError, match=r"data.videos: .* set model.vision.video.frames"):
        maker(frames=None, videos=stream)


def draws(steps: Steps, count: int) -> tuple[dict[str, float], float]:
    found = [steps.draw(step) for step in range(count)]
    shares = {name: np.mean([name in taken for taken, _ in found]) for name in steps.clean}
    return shares, float(np.mean([not unmatched for _, unmatched in found]))


def test_clean_steps_are_as_frequent_as_configured_and_noisy_steps_skip_matching():
    shares, matched = draws(Steps({"images": 0.15}, None, 0), 4000)
    assert shares["images"] == pytest.approx(0.15, abs=0.02)
    assert matched == pytest.approx(shares["images"])
    shares, _ = draws(Steps({"videos": 0.35}, None, 0), 4000)
    assert shares["videos"] == pytest.approx(0.35, abs=0.025)
    assert {Steps({"videos": 0.35}, None, 0).draw(step)[1] for step in range(50)} == {(), ("videos",)}
    assert Steps({"images": 0.15}, None, 0).draw(7) == Steps({"images": 0.15}, None, 0).draw(7)


def test_there_is_no_matching_loss_after_the_last_matching_step():
    steps = Steps({}, 5, 0)
    assert [bool(steps.draw(step)[1]) for step in range(8)] == [False] * 5 + [True] * 3


def test_all_micro_batches_of_a_step_read_from_one_set(maker, write_lines, make_pair):
    noisy, clean = (write_lines(f"{name}.jsonl", [make_pair(n) for n in range(12)]) for name in ("noisy", "clean"))
    videos = VideoStreamConfig(
        files=[video_lines(write_lines)],
        batch_size=2,
        clean=CleanSetConfig(files=[video_lines(write_lines, "good.jsonl", word="dog")], probability=0.5),
    )
    batches = maker(
        world_size=2,
        accumulate=2,
        images=ImageStreamConfig(files=[noisy], batch_size=2, clean=CleanSetConfig(files=[clean], probability=0.5)),
        videos=videos,
        matching_steps=30,
    )
    assert batches.numbers_per_step == 4
    seen = set()
    for step in range(12):
        made = [batches.make(4 * step + place) for place in range(4)]
        assert len({batch.unmatched for batch in made}) == 1
        files = {(part, Path(place.rsplit(":", 1)[0]).stem) for batch in made for part, place in locations(batch)}
        assert len(files) == 2
        names = dict(files)
        assert ("images" in made[0].unmatched) == (names["images"] == "noisy")
        assert ("videos" in made[0].unmatched) == (names["images"] == "noisy" or names["videos"] == "videos")
        seen |= files
    assert seen == {("images", "noisy"), ("images", "clean"), ("videos", "videos"), ("videos", "good")}
    with pytest.raises(UserError, match=naming("6 micro-batches", "4")):
        next(BatchLoader(batches, DataConfig(videos=videos), world_size=2).batches(6, 1))


def locations(batch):
    """The stream and location of each record: two images, then two videos."""
    return zip(["images", "images", "videos", "videos"], batch.records, strict=True)
