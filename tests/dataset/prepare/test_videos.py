"""WebVid, HowTo100M and YT-Temporal-180M: small files in their official formats, and expected records written by hand."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from dataset.media.encoded import decode
from dataset.prepare import line_shards, video_clips
from dataset.prepare.counts import Counts
from dataset.prepare.options import VideoOptions
from dataset.prepare.raw_folder import MAX_LINE_BYTES
from dataset.prepare.sets.videos import _csv_rows, clips_of_words, with_times
from dataset.prepare.video_clips import Clip, speech_clips
from dataset.records.clips import parse_video_record
from dataset.shards.readers import Shards
from tests.dataset.media.test_video import number_on, write_video
from tests.dataset.prepare import official
from tests.dataset.prepare.official import counted, prepared, records, write
from tests.dataset.prepare.set_errors import files_left_in, one_line
from tests.messages import OneLine


@pytest.fixture
def serial(monkeypatch):
    monkeypatch.setattr(line_shards, "in_order", official.in_this_process)


@pytest.fixture
def raw(tmp_path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def video(path: Path, seconds: int) -> None:
    """A video of five frames per second, whose frame at second n has the number 5 n painted on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, [number / 5 for number in range(5 * seconds + 1)], codec="mpeg4")


def seconds_of(frames: list[str]) -> list[int]:
    """The seconds shown in the frames."""
    numbers = [number_on(decode(base64.b64decode(frame), 10**6)) for frame in frames]
    assert all(number % 5 == 0 for number in numbers)
    return [number // 5 for number in numbers]


def shown(record: dict[str, Any]) -> dict[str, Any]:
    frames = record["video_frames"]
    clips = [seconds_of(clip) for clip in frames] if isinstance(frames[0], list) else seconds_of(frames)
    return {**record, "video_frames": clips}


def webvid(root: Path) -> None:
    rows = [
        "videoid,contentUrl,duration,page_dir,name",
        '11,https://x/11.mp4,PT00H00M02S,000_050,"Runner, at the ""beach""!"',
        "12,https://x/12.mp4,PT00H00M02S,000_050,is not there",
        "13,https://x/13.mp4,PT00H00M02S,050_099,Two  dogs",
        "14,https://x/14.mp4,PT00H00M02S,050_099,damaged",
        "15,https://x/15.mp4,PT00H00M02S,050_099, . ",
    ]
    write(root / "results_2M_train.csv", "\n".join(rows) + "\n")
    video(root / "videos/000_050/11.mp4", 2)
    video(root / "videos/other/13.mp4", 5)
    video(root / "videos/050_099/13.mp4", 1)
    write(root / "videos/050_099/14.mp4", "no video")
    video(root / "videos/050_099/15.mp4", 1)


def test_webvid_becomes_records(raw, out, serial):
    webvid(raw / "webvid")
    prepared("webvid", raw, out)
    assert [shown(record) for record in records(out / "webvid")] == [
        {"video_id": "11", "video_frames": [0, 1, 2], "text": "runner at the beach"},
        {"video_id": "13", "video_frames": [0, 1], "text": "two dogs"},
    ]
    assert counted(out / "webvid") == {
        "read": {"videos": 5},
        "written": {"clips": 2, "frames": 5, "records": 2},
        "fixed": {},
        "skipped": {"missing video": 1, "unreadable video": 1, "empty text": 1},
    }
    assert (out / "webvid/_prepare/missing.txt").read_text().split() == ["12"]


TRANSCRIPTS = {
    "nVbIUDjzWY4": {
        "start": [0.0, 3.2, 4.0, 6.1, 60.0],
        "end": [1.5, 6.1, 4.5, 8.0, 70.0],
        "text": ["Hi there", "now we [Laughter] cut", "the Onions", "[Music]", "never shown"],
    },
    "aaaaaaaaaaa": {"start": [0.0], "end": [1.0], "text": ["held out"]},
    "bbbbbbbbbbb": {"start": [0.0], "end": [1.0], "text": ["is not there"]},
    "ccccccccccc": {"start": [0.0], "end": [1.0], "text": ["[Music]"]},
}


def howto(root: Path, name: str = "caption.json") -> None:
    write(root / name, TRANSCRIPTS)
    video(root / "any/nVbIUDjzWY4.mp4", 8)
    video(root / "aaaaaaaaaaa.webm".replace("webm", "mkv"), 1)
    video(root / "ccccccccccc.mp4", 1)
    rows = [
        {"video_id": "video1", "url": "https://www.youtube.com/watch?v=aaaaaaaaaaa", "split": "test"},
        {"video_id": "video2", "url": "https://www.youtube.com/watch?v=nVbIUDjzWY4", "split": "train"},
    ]
    write(root / "msrvtt/MSRVTT_data.json", {"videos": rows, "sentences": []})


@pytest.mark.parametrize("name", ["caption.json", "raw_caption.json"])
def test_howto100m_becomes_records(raw, out, serial, name):
    """Clip 2 lasts until clip 3 begins. A clip that begins and ends within one second gets the frame before it."""
    howto(raw, name)
    prepared("howto100m", raw, out)
    [record] = [shown(record) for record in records(out / "howto100m")]
    assert record == {
        "video_id": "nVbIUDjzWY4",
        "video_frames": [[0, 1], [3], [4]],
        "text": ["hi there", "now we cut", "the onions"],
        "is_continuous": True,
    }
    assert counted(out / "howto100m") == {
        "read": {"videos": 4, "clips": 6},
        "written": {"clips": 3, "frames": 4, "videos": 1, "records": 1},
        "fixed": {"clip cut where the next begins": 1},
        "skipped": {
            "held out by MSR-VTT test": 1,
            "missing video": 1,
            "clip without speech": 2,
            "video without speech": 1,
            "clip outside its video": 1,
        },
    }


def test_times_that_are_not_decimal_numbers_are_counted(raw, out, serial):
    howto(raw)
    text = (raw / "caption.json").read_text()
    write(
        raw / "caption.json",
        text.replace('"start": [0.0], "end": [1.0], "text": ["held', '"start": ["0_1"], "end": [1.0], "text": ["held'),
    )
    prepared("howto100m", raw, out, max_broken=1.0)
    yt_temporal(raw / "yt")
    path = raw / "yt/yttemporal180m_000of100.jsonl"
    text = path.read_text().replace('"time": 0.4', '"time": "0_4"', 1)
    write(path, text.replace('"id": "dddddddddd3"', '"id": "dddddddddd3", "duration": "0_7"'))
    prepared("yt_temporal", raw, out, max_broken=1.0)
    assert counted(out / "howto100m")["skipped"]["wrong type"] == 1
    assert counted(out / "yttemporal")["skipped"]["wrong type"] == 2


def test_neighbouring_clips_share_records_that_the_stream_reads(raw, out, serial):
    howto(raw)
    prepared("howto100m", raw, out, videos=VideoOptions(clips=2))
    assert [shown(record)["video_frames"] for record in records(out / "howto100m")] == [[[0, 1], [3]], [[4]]]
    shards = Shards([str(out / "howto100m")])
    record = parse_video_record(shards.read(0), "video_frames", "text", None)
    assert record.continuous and len(record.clips) == 2


def test_frame_rate_and_frame_size_can_be_set(raw, out, serial):
    webvid(raw)
    prepared("webvid", raw, out, videos=VideoOptions(frames_per_second=2.5, short_side=20))
    frames = records(out / "webvid")[0]["video_frames"]
    assert len(frames) == 6
    assert min(decode(base64.b64decode(frames[0]), 10**6).shape[1:]) == 20
    message = "built from other files or with other flags (videos); --overwrite rebuilds it"
    assert message in re.sub(r"\s+", " ", failing(raw, out))


def failing(raw: Path, out: Path) -> str:
    from utils.errors import UserError

    with pytest.raises(UserError) as error:
        prepared("webvid", raw, out)
    return str(error.value)


def yt_temporal(root: Path, packed: bool = False) -> None:
    words = [("so", 0.4), ("today", 1.0), ("wee", 1.5), ("cook", 2.2), ("rice", 3.1), ("[Music]", 4.0), ("bye", 5.2)]
    subtitles = [{"word": word, "time": time} for word, time in words]
    denoised = [{"cleanasr": "So, today we cook"}, {"cleanasr": "rice. Bye!"}]
    lines = [
        {"info": {"id": "dddddddddd1", "title": "t", "duration": 7}, "subtitles": subtitles, "denoised": denoised},
        {"info": {"id": "dddddddddd2", "title": "t", "duration": 7}, "subtitles": subtitles},
        {"info": {"id": "dddddddddd3"}, "subtitles": subtitles},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    name = "yttemporal180m_000of100.jsonl"
    if packed:
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    else:
        write(root / name, text)
    video(root / "v/dddddddddd1.mp4", 7)
    video(root / "v/dddddddddd2.mp4", 7)
    write(root / "youtube_mapping.txt", "kkkkkkkkkkk_1_9 vid1200\ndddddddddd3_12_33 vid1301\n")


@pytest.mark.parametrize("packed", [False, True])
def test_yt_temporal_becomes_records(raw, out, serial, packed):
    yt_temporal(raw / "yt", packed)
    prepared("yt_temporal", raw, out, videos=VideoOptions(words=3))
    assert [shown(record) for record in records(out / "yttemporal")] == [
        {
            "video_id": "dddddddddd1",
            "video_frames": [[1, 2], [3, 4, 5, 6]],
            "text": ["so today we", "cook rice bye"],
            "is_continuous": True,
        },
        {
            "video_id": "dddddddddd2",
            "video_frames": [[1, 2], [3, 4, 5], [6]],
            "text": ["so today wee", "cook rice", "bye"],
            "is_continuous": True,
        },
    ]
    assert counted(out / "yttemporal")["skipped"] == {"held out by MSVD test": 1}


@pytest.mark.parametrize("place", ["000.jsonl", "YT-Temporal-180M/train_000.jsonl"])
def test_yt_temporal_may_use_other_names(raw, out, serial, place):
    yt_temporal(raw)
    target = raw / place
    target.parent.mkdir(exist_ok=True)
    (raw / "yttemporal180m_000of100.jsonl").rename(target)
    prepared("yt_temporal", raw, out)
    assert len(records(out / "yttemporal")) == 2


def test_words_of_a_cleaned_transcript_have_the_times_of_the_raw_one():
    raw_words = [("uh", 0.0), ("so", 0.4), ("today", 1.0), ("wee", 1.5), ("cook", 2.2)]
    assert with_times(["Today,", "we", "cook!"], raw_words) == [("Today,", 1.0), ("we", 1.0), ("cook!", 2.2)]
    assert with_times(["nothing", "alike"], raw_words) == []
    assert with_times(["x"], []) == []


def test_a_cleaned_transcript_without_known_times_is_skipped(raw, out, serial):
    yt_temporal(raw / "yt")
    path = raw / "yt/yttemporal180m_000of100.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["subtitles"] = []
    write(path, "".join(json.dumps(line) + "\n" for line in lines))
    prepared("yt_temporal", raw, out)
    assert [record["video_id"] for record in records(out / "yttemporal")] == ["dddddddddd2"]
    assert counted(out / "yttemporal")["skipped"]["transcript without times"] == 1


def test_clips_of_words_cover_the_transcript_to_its_end():
    words = [("a", 1.0), ("b", 2.0), ("c", 3.5)]
    assert clips_of_words(words, 9.0, 2) == [Clip(1.0, 3.5, "a b"), Clip(3.5, 9.0, "c")]
    assert clips_of_words(words, 0.0, 3) == [Clip(1.0, 4.5, "a b c")]
    assert clips_of_words([], 9.0, 3) == []


def test_clips_are_ordered_and_cut_where_the_next_begins():
    counts = Counts()
    clips = [Clip(5, 9, "c"), Clip(0, 4, "a"), Clip(2, 3, "b"), Clip(2, 6, "B")]
    found = speech_clips(clips, counts, "place")
    assert found == [Clip(0, 2, "a"), Clip(2, 3, "b"), Clip(2, 5, "b"), Clip(5, 9, "c")]
    assert counts.fixed["clip cut where the next begins"] == 2


def test_mistakes_are_reported_in_one_line(raw, out, serial):
    for name, fragments in [
        ("webvid", "results_2M_train.csv does not exist"),
        ("howto100m", "caption.json does not exist"),
        ("yt_temporal", "yttemporal*.jsonl of YT-Temporal-180M does not exist"),
    ]:
        assert fragments in one_line(name, raw, out)
    write(raw / "results_2M_train.csv", "a,b\n1,2\n")
    assert one_line("webvid", raw, out) == OneLine("videoid, page_dir, name", "WebVid's")
    write(raw / "caption.json", {"a": {"start": [1], "end": [], "text": []}})
    assert "1 wrong type" in one_line("howto100m", raw, out)
    write(raw / "yttemporal.jsonl", "{}\n")
    assert "1 wrong type" in one_line("yt_temporal", raw, out)
    write(raw / "youtube_mapping.txt", "one column\n")
    assert one_line("howto100m", raw, out) == OneLine("youtube_mapping.txt:1")
    assert files_left_in(out) == []


def dies(options: VideoOptions, found: Any, counts: Counts) -> Any:
    if found.values.values["video_id"] == "11":
        os.kill(os.getpid(), signal.SIGKILL)
    return video_clips.video_records(options, found, counts)


def test_a_video_that_kills_its_process_is_skipped_and_the_others_are_prepared(raw, out, monkeypatch):
    """This test uses real processes."""
    webvid(raw)
    monkeypatch.setattr("dataset.prepare.sets.videos.video_records", dies)
    prepared("webvid", raw, out, workers=2)
    assert [record["video_id"] for record in records(out / "webvid")] == ["13"]
    assert counted(out / "webvid")["skipped"]["unreadable video"] == 2


def test_quoted_webvid_texts_may_contain_line_breaks(raw, out, serial):
    rows = ['1,u,d,p,"two\r\nlines, here"', "", "2,u,d,p,a\rb", '3,u,d,p,"a ""red"" car"', "4,u,d,p,c"]
    write(raw / "results_2M_train.csv", "\r\n".join(["\ufeffvideoid,contentUrl,duration,page_dir,name", *rows]))
    for number in range(1, 5):
        video(raw / f"p/{number}.mp4", 1)
    prepared("webvid", raw, out)
    assert [(record["video_id"], record["text"]) for record in records(out / "webvid")] == [
        ("1", "two lines here"),
        ("2", "a b"),
        ("3", "a red car"),
        ("4", "c"),
    ]


def test_an_unclosed_quotation_mark_spoils_only_its_own_row():
    lines = ['1,"a', *(f"{number},b" for number in range(2, 60))]
    rows = list(_csv_rows(("", line) for line in lines))
    assert rows == [("", []), *(("", [str(number), "b"]) for number in range(2, 60))]


def test_clips_with_invalid_times_are_skipped_and_clips_before_the_video_have_no_frames(raw, out, serial):
    nan = float("nan")
    clips = [
        (-3, -1, "before"),
        (-2, 2, "half before"),
        (2, nan, "no end"),
        (2, float("inf"), "no end"),
        (4, 3, "back"),
        (2, 3, 5),
        (3, 4, None),
        (3, 4, nan),
    ]
    values = dict(zip(("start", "end", "text"), map(list, zip(*clips, strict=True)), strict=True))
    write(raw / "caption.json", {"nVbIUDjzWY4": values})
    video(raw / "nVbIUDjzWY4.mkv", 5)
    prepared("howto100m", raw, out)
    [record] = [shown(record) for record in records(out / "howto100m")]
    assert record["text"] == ["half before", "5"] and record["video_frames"] == [[0, 1], [2]]
    found = counted(out / "howto100m")
    assert found["read"] == {"videos": 1, "clips": 8}
    assert found["skipped"] == {
        "clip with wrong times": 3,
        "clip outside its video": 1,
        "clip without speech": 2,
    }


def test_a_long_yt_temporal_transcript_is_read_like_others(raw, out, serial):
    yt_temporal(raw)
    path = raw / "yttemporal180m_000of100.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["info"]["description"] = "x" * MAX_LINE_BYTES
    write(path, "".join(json.dumps(line) + "\n" for line in lines) + "\n")
    prepared("yt_temporal", raw, out)
    assert counted(out / "yttemporal")["read"]["videos"] == 3 and len(records(out / "yttemporal")) == 2
