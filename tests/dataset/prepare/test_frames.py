"""Videos are converted to lists of frames, and the loader chooses the same frames from a list as from the video file."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataset.config import AugmentConfig, CaptionedSplitConfig, DataConfig, VideoReadingConfig, VideoStreamConfig
from dataset.formats.captioned import read_captioned_images
from dataset.formats.video_files import Videos
from dataset.media.encoded import pixels_of
from dataset.media.sources import VideoSource
from dataset.media.video import FrameSampler, read_frames
from dataset.prepare import frames
from dataset.prepare.frame_files import outputs_of_folder, outputs_of_shards
from dataset.prepare.frame_making import FrameMaking
from dataset.prepare.frames import Summary, build
from dataset.prepare.output_folder import JOURNAL, OutputFolder
from dataset.tasks.pretrain import PretrainBatches
from run import main
from tests.dataset.media.test_video import encoded, number_on, write_video
from tests.messages import OneLine, naming
from utils.config_files import read_yaml
from utils.errors import UserError

WHOLE = AugmentConfig(scale=(1, 1), ratio=(4, 4), flip=0, rand_augment_ops=0)
MAKING = FrameMaking()
SECONDS = {"video0.mp4": 3, "sub/video7010.mp4": 5, "clip.b_3_9.avi": 4}
"""Length of each intact video in seconds, by file name. Frame 5 n is shown at second n, for a fifth of a second."""


@pytest.fixture(scope="module")
def intact_videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "sub").mkdir()
    for name, seconds in SECONDS.items():
        codec = "mpeg4" if name.endswith(".avi") else "libx264"
        write_video(folder / name, [number / 5 for number in range(5 * seconds + 1)], codec=codec)
    return folder


@pytest.fixture
def videos(intact_videos, tmp_path) -> Path:
    """A separate folder with links to all intact videos."""
    folder = tmp_path / "videos"
    for name in SECONDS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(intact_videos / name, folder / name)
    return folder


def lists(videos: Path, out: Path, making: FrameMaking = MAKING, **how: Any) -> Summary:
    return build(out, outputs_of_folder(videos, making), {"a": 1}, workers=how.pop("workers", 1), **how)


def shards(files: list[str], out: Path, making: FrameMaking = MAKING, root: Path | None = None, **how: Any) -> Summary:
    outputs = outputs_of_shards(files, making, video_root=root)
    return build(out, outputs, {"a": 1}, workers=how.pop("workers", 1), **how)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbers(value: Any) -> list[int]:
    from dataset.media.sources import video_source

    source = video_source(value, "video", "p", Path())
    return [number_on(frame) for frame in read_frames(source, VideoReadingConfig(), range, pixels_of, 10**6)]


def contents(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith((JOURNAL, "_frames/"))}


def break_video(videos: Path, name: str = "broken.mp4") -> None:
    content = (videos / "video0.mp4").read_bytes()
    (videos / name).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("name", SECONDS)
def test_a_list_has_the_frames_of_its_file(videos, tmp_path, name):
    lists(videos, tmp_path / "out")
    file, made = videos / name, (tmp_path / "out" / name).with_suffix(".json")
    before, after = (
        read_frames(VideoSource("p", path=path), VideoReadingConfig(), range, pixels_of, 10**6) for path in (file, made)
    )
    assert [number_on(frame) for frame in after] == [5 * second for second in range(SECONDS[name] + 1)]
    for one, other in zip(before, after, strict=True):
        assert (one.int() - other.int()).abs().float().mean() < 4


@pytest.mark.parametrize("requested", [2, 3, 8])
def test_the_same_frames_are_chosen_from_a_list_as_from_its_file(videos, tmp_path, requested):
    lists(videos, tmp_path / "out")
    sampler = FrameSampler(requested, VideoReadingConfig(), 10**6)
    for name in SECONDS:
        sources = [
            VideoSource("p", path=path) for path in (videos / name, (tmp_path / "out" / name).with_suffix(".json"))
        ]
        one, other = ([number_on(frame) for frame in sampler.evaluation(each, pixels_of)] for each in sources)
        assert one == other
        for seed in range(3):
            one, other = (
                [number_on(f) for f in sampler.training(each, np.random.default_rng(seed), lambda f, _: pixels_of(f))]
                for each in sources
            )
            assert one == other


def test_candidates_per_second_and_a_limit_can_be_set(videos, tmp_path):
    making = FrameMaking(VideoReadingConfig(frames_per_second=2.5), max_frames=4)
    summary = lists(videos, tmp_path / "out", making)
    found = numbers(json.loads((tmp_path / "out/video0.json").read_text()))
    assert found == [0, 4, 8, 12]  # of 0, 2, 4, 6, 8, 10, 12, 14
    assert (summary.videos, summary.frames) == (3, 12)


def test_large_frames_shrink_and_small_ones_stay(videos, tmp_path):
    lists(videos, tmp_path / "small", FrameMaking(short_side=16))
    for name, shape in (("small", (3, 16, 64)), ("out", (3, 32, 128))):
        lists(videos, tmp_path / name)  # the frames of the first are not made again
        source = VideoSource("p", path=tmp_path / name / "video0.json")
        assert read_frames(source, VideoReadingConfig(), range, pixels_of, 10**6)[0].shape == shape


def test_the_default_size_is_enough_for_every_video_config():
    sizes = set()
    for path in (Path(__file__).parents[3] / "configs").rglob("*.yaml"):
        vision = (read_yaml(path).get("model") or {}).get("vision") or {}
        if "video" in vision and "image_size" in vision:
            sizes.add(vision["image_size"])
    assert max(sizes) == MAKING.short_side


def records(count: int = 12) -> list[dict[str, Any]]:
    names = list(SECONDS)
    return [
        {"n": n, "video": names[n % 3], "caption": ["ein Stern", "星", {"en": "x"}], "x": 1.5} for n in range(count)
    ]


@pytest.fixture
def files(videos, write_lines) -> list[str]:
    """Two shards with six records each."""
    return [write_lines("a.jsonl", records()[:6]), write_lines("b.jsonl", records()[6:])]


def test_records_keep_their_order_and_other_fields(videos, files, tmp_path):
    summary = shards(files, tmp_path / "out", root=videos)
    found = [*rows(tmp_path / "out/a.jsonl"), *rows(tmp_path / "out/b.jsonl")]
    for row, record in zip(found, records(), strict=True):
        assert {**row, "video": record["video"]} == record
        assert list(row) == list(record)
        assert numbers(row["video"]) == [5 * second for second in range(SECONDS[record["video"]] + 1)]
    assert (summary.videos, summary.frames) == (12, sum(len(row["video"]) for row in found))
    assert summary.bytes == sum(map(len, contents(tmp_path / "out").values()))


def test_the_number_of_workers_does_not_change_the_result(videos, files, tmp_path):
    break_video(videos)
    for workers in (1, 2):
        shards(files, tmp_path / f"records{workers}", root=videos, workers=workers)
        lists(videos, tmp_path / f"lists{workers}", workers=workers)
    assert contents(tmp_path / "records1") == contents(tmp_path / "records2")
    assert contents(tmp_path / "lists1") == contents(tmp_path / "lists2")
    assert contents(tmp_path / "lists1").keys() == {"video0.json", "sub/video7010.json", "clip.b_3_9.json"}


def test_half_of_a_surrogate_pair_survives(videos, tmp_path, write_lines):
    line = '{"video": "video0.mp4", "caption": "half \\ud83d of a 星"}'
    shards([write_lines("a.jsonl", [line])], tmp_path / "out", root=videos)
    assert rows(tmp_path / "out/a.jsonl")[0]["caption"] == "half \ud83d of a 星"


def test_records_that_embed_images_stay_unchanged(tmp_path, write_lines):
    given = [
        {"video": [encoded(3), encoded(4)], "caption": "a"},
        {"video": [[encoded(5)], [encoded(6), encoded(7)]], "caption": ["a", "b"], "is_continuous": True},
    ]
    summary = shards([write_lines("a.jsonl", given)], tmp_path / "out")
    assert rows(tmp_path / "out/a.jsonl") == given
    assert (summary.videos, summary.frames, summary.broken.total()) == (3, 5, 0)


def test_images_named_by_path_are_embedded_in_the_record(videos, tmp_path, write_lines):
    """Paths are relative to the old shard's folder, and the new shard is in another one."""
    from PIL import Image

    from tests.dataset.media.test_video import painted

    (tmp_path / "folder").mkdir()
    for number in (1, 2, 3):
        Image.fromarray(painted(number)).save(tmp_path / "folder" / f"{number}.png")
    (tmp_path / "list.json").write_text(json.dumps([encoded(8), encoded(9)]))
    given = [
        {"video": ["folder/1.png", encoded(7)], "caption": "a"},
        {"video": [["folder/1.png", "folder/2.png"], [encoded(4)]], "caption": ["a", "b"], "is_continuous": True},
        {"video": "folder", "caption": "a"},
        {"video": "list.json", "caption": "a"},
    ]
    shards([write_lines("a.jsonl", given)], tmp_path / "out")
    mixed, clips, folder, listed = (row["video"] for row in rows(tmp_path / "out/a.jsonl"))
    assert numbers(mixed) == [1, 7]
    assert [numbers(clip) for clip in clips] == [[1, 2], [4]]
    assert clips[1] == given[1]["video"][1]
    assert numbers(folder) == [1, 2, 3]
    assert numbers(listed) == [8, 9]


def test_broken_records_are_skipped_reported_and_listed(videos, tmp_path, write_lines, caplog):
    break_video(videos)
    given = [
        {"video": "video0.mp4", "caption": "one"},
        *[{"video": f"none{n}.mp4", "caption": "b"} for n in range(5)],
        {"video": "broken.mp4", "caption": "c"},
        "{not json",
        {"caption": "d"},
        {"video": None, "caption": "n"},
        {"video": [], "caption": "e"},
        {"video": 3, "caption": "f"},
        {"video": "video0.mp4", "caption": "two"},
    ]
    file = write_lines("a.jsonl", given)
    with caplog.at_level(logging.WARNING):
        summary = shards([file], tmp_path / "out", root=videos, workers=2)
    assert [row["caption"] for row in rows(tmp_path / "out/a.jsonl")] == ["one", "two"]
    kinds = {"missing video": 5, "unreadable video": 2, "bad json": 1, "missing key": 2, "wrong type": 1}
    assert summary.broken == kinds
    assert "2 videos, 8 frames" in summary.line()
    assert OneLine("11 broken", "5 missing video", "2 unreadable video") in summary.line().splitlines()
    reported = [record.getMessage() for record in caplog.records]
    assert sum("missing video" in each for each in reported) == frames.MAX_LOGGED
    assert reported[2] == OneLine(f"{file}:4", "missing video", f"{videos}/none2.mp4")
    written = rows(tmp_path / "out/_frames/broken.jsonl")
    assert [each["place"].rsplit(":", 1)[1] for each in written] == [
        "2",
        "3",
        "4",
        "5",
        "6",
        "7",
        "8",
        "9",
        "10",
        "11",
        "12",
    ]
    assert written[5].keys() == {"place", "reason", "detail"}
    assert written[8]["detail"] == "'video' is null"
    assert "truncated" in written[5]["detail"] or "broken.mp4" in written[5]["detail"]


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="a spawned process does not inherit the patch")
def test_a_video_that_kills_its_process_is_broken(videos, tmp_path, monkeypatch):
    whole = FrameMaking.frames

    def kill_the_process(self, source):
        if source.path.name == "video7010.mp4":
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, source)

    monkeypatch.setattr(FrameMaking, "frames", kill_the_process)
    summary = lists(videos, tmp_path / "out", workers=2)
    assert (summary.videos, summary.broken) == (2, {"unreadable video": 1})
    (broken,) = rows(tmp_path / "out/_frames/broken.jsonl")
    assert OneLine("process", "died") in broken["detail"].splitlines()


def interrupt_after(count: int, monkeypatch) -> None:
    def interrupted(*arguments):
        yield from islice(in_order(*arguments), count)
        raise KeyboardInterrupt

    in_order = frames.in_order
    monkeypatch.setattr(frames, "in_order", interrupted)


@pytest.mark.slow
def test_an_interrupted_run_resumes(videos, files, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    shards(files, whole, root=videos)
    with monkeypatch.context() as patch:
        interrupt_after(8, patch)
        with pytest.raises(KeyboardInterrupt):
            shards(files, out, root=videos)
    assert contents(out).keys() == {"a.jsonl"}
    with (out / JOURNAL).open("a") as journal:
        journal.write('\n{"file": "b.jsonl", "sou')  # as if the run had been killed during a write
    before = (out / "a.jsonl").stat()
    summary = shards(files, out, root=videos)
    assert (out / "a.jsonl").stat() == before
    assert (summary.videos, summary.made, summary.tried) == (12, 6, 1)
    assert "12 videos, " in summary.line() and "6 of them new" in summary.line()
    assert contents(out) == contents(whole)
    assert shards(files, out, root=videos).tried == 0


def test_an_interrupted_folder_is_resumed(videos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            lists(videos, tmp_path / "out")
    assert len([name for name in contents(tmp_path / "out") if name.endswith(".json")]) == 2
    assert lists(videos, tmp_path / "out").made == 1
    assert contents(tmp_path / "out").keys() == {"video0.json", "sub/video7010.json", "clip.b_3_9.json"}


def test_two_runs_cannot_write_to_one_folder(videos, tmp_path):
    with (
        OutputFolder(tmp_path / "out", frames.MANIFEST, {"a": 1}, []),
        pytest.raises(UserError, match=naming("out", "another run")),
    ):
        lists(videos, tmp_path / "out")
    assert lists(videos, tmp_path / "out").made == 3


def test_a_modified_output_file_is_rebuilt(videos, tmp_path):
    whole = lists(videos, tmp_path / "out") and contents(tmp_path / "out")
    with (tmp_path / "out/video0.json").open("ab") as stream:
        stream.write(b"\0\0")
    assert lists(videos, tmp_path / "out").made == 1
    assert contents(tmp_path / "out") == whole


def test_repaired_added_deleted_and_changed_files_are_processed(videos, tmp_path):
    out = tmp_path / "out"
    break_video(videos, "video9.mp4")
    assert lists(videos, out).broken.total() == 1
    again = lists(videos, out)
    assert (again.tried, again.made, again.broken.total()) == (1, 0, 1)
    assert "none of them new" in again.line()
    write_video(videos / "video9.mp4", [0.0, 1.0])
    write_video(videos / "new.mp4", [0.0, 1.0, 2.0])
    mended = lists(videos, out)
    assert (mended.tried, mended.made, mended.broken.total(), mended.videos) == (2, 2, 0, 5)
    assert not (out / "_frames/broken.jsonl").read_bytes()
    (out / "video0.json").unlink()
    (videos / "new.mp4").unlink()
    write_video(videos / "new.mp4", [n / 5 for n in range(21)])
    assert lists(videos, out).made == 2
    assert len(json.loads((out / "new.json").read_text())) == 5


def test_only_files_written_by_the_command_are_replaced(videos, tmp_path):
    out = tmp_path / "out"
    lists(videos, out)
    (out / "notes.txt").write_text("mine")
    outputs = outputs_of_folder(videos, MAKING)
    with pytest.raises(UserError, match=naming("out", "a=1", "2", "--overwrite")):
        build(out, outputs, {"a": 2}, workers=1)
    assert build(out, outputs[:1], {"a": 2}, workers=1, overwrite=True).tried == 1
    assert contents(out).keys() == {"notes.txt", outputs[0].name}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "video0.json").write_text("[]")
    with pytest.raises(UserError, match=naming("foreign", "video0.json")):
        lists(videos, foreign)


def test_another_source_with_the_same_name_is_reported(videos, tmp_path, write_lines):
    (tmp_path / "other").mkdir()
    one, other = write_lines("a.jsonl", records(1)), write_lines("other/a.jsonl", records(2))
    shards([one], tmp_path / "out", root=videos)
    with pytest.raises(UserError, match=naming("out/a.jsonl", "other/a.jsonl")):
        shards([other], tmp_path / "out", root=videos)
    with pytest.raises(UserError, match=naming("--records", "a.jsonl", "rename")):
        shards([one, other], tmp_path / "out", root=videos)


def test_a_training_stream_reads_the_folder_of_shards(videos, files, tmp_path, tokenizer):
    shards(files, tmp_path / "out", root=videos)

    def batch(file: str, root: Path | None):
        stream = VideoStreamConfig(files=[file], video_root=root and str(root), batch_size=6, augment=WHOLE)
        data = DataConfig(cache_index=str(tmp_path / "index"), videos=stream)
        made = PretrainBatches(data, tokenizer=tokenizer, image_size=32, patch_size=8, seed=0, world_size=1, frames=3)
        return made, made.make(0).videos

    everything, _ = batch(str(tmp_path / "out"), None)
    assert everything.stream_sizes == {"videos": 12}
    _, before = batch(files[0], videos)
    _, after = batch(str(tmp_path / "out/a.jsonl"), None)
    assert before.valid.all() and after.valid.all()
    assert torch.equal(before.text.ids, after.text.ids)
    assert (before.pixels.int() - after.pixels.int()).abs().float().mean() < 4


def test_a_fine_tuning_data_set_finds_lists_in_place_of_files(videos, tmp_path):
    out = tmp_path / "out"
    lists(videos / "sub", out)
    sentences = [{"video_id": "video7010", "caption": "a man sings"}]
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps({"videos": [], "sentences": sentences}))
    found = {}
    for images in (videos / "sub", out):
        split = CaptionedSplitConfig(
            format="msrvtt", annotations=str(tmp_path / "MSRVTT_data.json"), images=str(images)
        )
        found[images.name] = read_captioned_images(split, "data.train", 0.0)
    assert found["sub"].images[0].path.name == "video7010.mp4"
    assert found["out"].images[0].path == out / "video7010.json"
    sampler = FrameSampler(3, VideoReadingConfig(), 10**6)
    one, other = (
        [number_on(frame) for frame in sampler.evaluation(items.images[0], pixels_of)] for items in found.values()
    )
    assert one == other == [0, 10, 20]


def test_lists_are_found_for_rows_with_files_and_for_mapped_data_sets(videos, tmp_path):
    out = tmp_path / "out"
    lists(videos, out)
    (tmp_path / "rows.jsonl").write_text('{"video": "sub/video7010.mp4", "caption": "a man sings"}\n')
    split = CaptionedSplitConfig(annotations=str(tmp_path / "rows.jsonl"), images=str(out))
    items = read_captioned_images(split, "data.train", 0.0)
    assert items.images[0].path == out / "sub/video7010.json"
    assert list(items.ids) == ["sub/video7010.mp4"]
    assert Videos(out, {"video_12": "clip.b_3_9"}).by_id(12) == out / "clip.b_3_9.json"


def run(monkeypatch, *flags: Any) -> int:
    monkeypatch.setattr(frames.log, "set_up", lambda: None)
    return main(["prepare", "frames", *map(str, flags)])


def test_the_command_summarises_its_output_in_one_line(videos, files, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    command = ("--folder", videos, "--out", out)
    assert run(monkeypatch, *command, "--workers", 2) == 0
    message = capsys.readouterr()
    assert message.out.startswith(f"{out}: 3 videos, 15 frames, ")
    assert "GB; none broken; " in message.out and message.out.endswith(" videos per second\n")
    assert "3/3" in message.err
    assert run(monkeypatch, *command, "--workers", 1) == 0
    assert capsys.readouterr().out == OneLine(out, "complete")
    assert run(monkeypatch, *command, "--quality", 50) == 2
    assert OneLine("quality=90", "50") in capsys.readouterr().err.splitlines()
    assert run(monkeypatch, *command, "--quality", 50, "--overwrite") == 0
    break_video(videos)
    assert run(monkeypatch, *command, "--quality", 50) == 0
    message = capsys.readouterr().out
    assert OneLine("1 broken", "1 unreadable video", "none of them new") in message.splitlines()
    assert "\nbroken videos: " in message


def test_the_command_writes_records(videos, files, tmp_path, monkeypatch, capsys):
    pattern = tmp_path / "[ab].jsonl"
    assert run(monkeypatch, "--records", pattern, "--video-root", videos, "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/out: 12 videos, 60 frames, ")
    interrupt_after(3, monkeypatch)
    assert run(monkeypatch, "--records", *files, "--video-root", videos, "--out", tmp_path / "again") == 130
    assert "interrupted; rerun the same command to resume\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "o"], ("--records", "--folder")),
        (["--folder", "videos", "--records", "a.jsonl", "--out", "o"], ("--records", "--folder", "not both")),
        (["--folder", "videos"], ("--out",)),
        (["--folder", "none", "--out", "o"], ("--folder", "none")),
        (
            ["--folder", "empty", "--out", "o"],
            ("--folder", "empty", ".mp4, .avi, .mov, .mkv, .webm, .m4v, .mpg, .mpeg"),
        ),
        (["--folder", "twice", "--out", "o"], ("twice/a.mp4", "twice/a.webm", "a.json")),
        (["--folder", "videos", "--out", "videos"], ("--out", "videos")),
        (["--folder", "videos", "--out", "o", "--video-root", "v"], ("--video-root", "--records")),
        (["--folder", "videos", "--out", "o", "--quality", "101"], ("--quality", "'101'", "1 to 100")),
        (["--folder", "videos", "--out", "o", "--frames-per-second", "0"], ("'0'",)),
        (["--folder", "videos", "--out", "o", "--backend", "cv"], ("'cv'",)),
        (["--folder", "videos", "--out", "a.jsonl/o"], ("Not a directory",)),
        (["--records", "none.jsonl", "--out", "o"], ("--records", "none.jsonl")),
        (["--records", "a.jsonl", "--out", "."], ("a.jsonl", "replace")),
        (["--records", "a.jsonl", "--out", "o"], ("3 missing video", "a.jsonl:1")),
        (["--records", "a.jsonl", "--out", "o", "--video-key", "v"], ("3 missing key",)),
    ],
)
def test_mistakes_are_reported_in_one_line(videos, tmp_path, monkeypatch, capsys, write_lines, flags, message):
    write_lines("a.jsonl", records(3))
    for name in ("empty/a.txt", "twice/a.mp4", "twice/a.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0] == OneLine(*message)


def test_a_missing_decoder_is_reported_before_any_work(videos, files, tmp_path, monkeypatch):
    from tests.dataset.media.test_video import without_decoders

    without_decoders(monkeypatch)
    expected = r"^--backend: av cannot be loaded \(No module named 'av'\), and .* is a video file; pip install av$"
    with pytest.raises(UserError, match=expected):
        outputs_of_folder(videos, MAKING)
    with pytest.raises(UserError, match=expected):
        outputs_of_shards(files, MAKING, video_root=videos)
