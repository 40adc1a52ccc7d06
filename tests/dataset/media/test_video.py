"""Reading videos: every source and every backend returns the right frames, and no file stops a run."""

from __future__ import annotations

import base64
import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dataset.broken import BrokenRecordError
from dataset.config import VideoReadingConfig
from dataset.media import decoding as video_decoding
from dataset.media.encoded import pixels_of
from dataset.media.sources import VideoSource, video_source
from dataset.media.video import FrameSampler, check_backend, check_held_out, read_frames, sample_frames
from dataset.media.views import EvaluationView
from dataset.tasks.finetune import in_batches
from tests.messages import naming
from utils.errors import UserError

ROOT = Path(__file__).parents[3]
GOLDEN = json.loads((ROOT / "tests/golden/data_helpers.json").read_text())
BACKENDS = [
    name if importlib.util.find_spec(name) else pytest.param(name, marks=pytest.mark.skip(reason=f"no {name}"))
    for name in ("av", "decord")
]
CELL = 16
BITS = 8


def painted(number: int) -> np.ndarray:
    """A frame that shows its own index as a row of black and white cells, in binary."""
    pixels = np.full((2 * CELL, BITS * CELL, 3), 60, dtype=np.uint8)
    for bit in range(BITS):
        pixels[:CELL, bit * CELL : (bit + 1) * CELL] = 255 if number >> bit & 1 else 0
    return pixels


def number_on(frame: torch.Tensor) -> int:
    assert frame.shape == (3, 2 * CELL, BITS * CELL)
    assert frame.dtype == torch.uint8
    cells = frame[:, 4 : CELL - 4].float().mean(dim=(0, 1)).view(BITS, CELL)[:, 4:-4].mean(dim=1)
    return sum(1 << bit for bit, light in enumerate(cells.tolist()) if light > 128)


def write_video(
    path: Path, times: list[float], *, codec: str = "libx264", group: int = 12, sound: bool = False
) -> Path:
    """Writes a file in which frame n, with n painted on it, is shown at ``times[n]`` seconds. It has B-frames and a key frame
    after every ``group`` frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = BITS * CELL, 2 * CELL, "yuv420p"
        tick = Fraction(1, 25 if path.suffix == ".avi" else 1000)
        stream.codec_context.time_base = stream.time_base = tick
        stream.gop_size = group
        if codec == "libx264":
            stream.options = {"bf": "2", "preset": "veryfast", "sc_threshold": "0"}
        heard = container.add_stream("aac", rate=8000) if sound else None
        for number, shown in enumerate(times):
            frame = av.VideoFrame.from_ndarray(painted(number), format="rgb24")
            frame.pts, frame.time_base = round(shown / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if heard is not None:
            write_sound(container, heard, times[-1])
    return path


def write_sound(container, stream, seconds: float) -> None:
    for start in range(0, int(8000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 8000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_song(path: Path) -> None:
    """Writes a sound file with a cover image, which counts as a video stream."""
    with av.open(str(path), "w") as container:
        heard = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = BITS * CELL, 2 * CELL, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        container.mux(cover.encode(av.VideoFrame.from_ndarray(painted(1), format="rgb24")))
        container.mux(cover.encode())
        write_sound(container, heard, 1.0)


CONSTANT = [number / 25 for number in range(120)]
VARIABLE = np.cumsum([0.0, *np.random.default_rng(0).choice([0.02, 0.04, 0.1, 0.35], size=100)]).round(3).tolist()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[Path, list[float]]]:
    folder = tmp_path_factory.mktemp("videos")
    made = {
        "constant.mp4": (CONSTANT, {}),
        "variable.mp4": (VARIABLE, {}),
        "variable.mkv": (VARIABLE, {"sound": True}),
        "one_group.mp4": (CONSTANT, {"group": 500}),
        "old.avi": (CONSTANT, {"codec": "mpeg4"}),
        "late.mp4": ([time + 0.7 for time in CONSTANT], {}),
    }
    return {name: (write_video(folder / name, times, **how), times) for name, (times, how) in made.items()}


NAMES = ("constant.mp4", "variable.mp4", "variable.mkv", "one_group.mp4", "old.avi", "late.mp4")


def read(path: Path, choose, look=pixels_of, max_pixels: int = 10**6, **how) -> list[torch.Tensor]:
    return read_frames(VideoSource("a.jsonl:1", path=path), VideoReadingConfig(**how), choose, look, max_pixels)


def shown_at(times: list[float], second: float) -> int:
    return max(number for number, shown in enumerate(times) if shown - times[0] <= second + 5e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_returns_the_frames_shown_at_whole_seconds(files, name, backend):
    path, times = files[name]
    found = [number_on(frame) for frame in read(path, range, backend=backend)]
    assert found == [shown_at(times, second) for second in range(int(times[-1] - times[0]) + 1)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["variable.mp4", "one_group.mp4"])
def test_every_backend_returns_any_requested_frames(files, name, backend):
    path, times = files[name]
    requested = [0, 3, 3, 40, 41, 77, 99]
    every = 0.01
    frames = read(
        path, lambda count: [round(times[n] / every) for n in requested], backend=backend, frames_per_second=100
    )
    assert [number_on(frame) for frame in frames] == requested


@pytest.mark.parametrize("name", ["constant.mp4", "variable.mkv"])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backends_agree_on_colours(files, name, backend):
    path, _ = files[name]
    ours, theirs = (torch.stack(read(path, range, backend=each)).int() for each in ("av", backend))
    assert (ours - theirs).abs().max() <= 4


def test_only_frames_from_a_key_frame_to_a_requested_frame_are_decoded(files, monkeypatch):
    path, _ = files["constant.mp4"]
    decoded = []

    class Counting(video_decoding._AvReader):
        def _run_to(self, requested):
            frames = self.decoded
            self.decoded = (decoded.append(frame.pts) or frame for frame in frames)
            return super()._run_to(requested)

    monkeypatch.setattr(video_decoding, "_AvReader", Counting)
    requested = [0, 110]
    frames = read(path, lambda count: [4 * n for n in requested], frames_per_second=100)
    assert [number_on(frame) for frame in frames] == requested
    assert len(decoded) <= 1 + 12


CODECS = {
    "libx264": {"bf": "3", "b-pyramid": "normal", "refs": "4"},
    "libx265": {"x265-params": "bframes=4:b-pyramid=1:log-level=none"},
    "mpeg4": {"bf": "2"},
    "mpeg2video": {"bf": "2"},
    "libvpx": {},
    "libvpx-vp9": {"cpu-used": "8"},
    "libsvtav1": {"preset": "12", "svtav1-params": "hierarchical-levels=3"},
}


def write_moving_noise(path: Path, codec: str) -> None:
    """A video of 70 frames."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 400, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=CODECS[codec])
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 128, 96, "yuv420p", 30
        for number in range(70):
            moved = np.ascontiguousarray(noise[:, 3 * number : 3 * number + 128])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(name not in av.codecs_available, reason=f"this FFmpeg has no {name}")
        )
        for name in CODECS
    ],
)
def test_skipping_frames_does_not_change_other_frames(codec, tmp_path, monkeypatch):
    """Compares with all frames of the file, decoded by the library alone. The video contains motion, so frames refer to each
    other."""
    # SVT-AV1 gives the calling thread realtime scheduling if it is allowed to. The main thread would keep it, and processes that
    # later tests start would inherit it and block all others.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(write_moving_noise, tmp_path / "a.mkv", codec).result()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    with av.open(str(tmp_path / "a.mkv")) as container:
        expected = [torch.from_numpy(each.to_ndarray(format="rgb24")) for each in container.decode(video=0)]
    assert len(expected) == 70
    made = []
    monkeypatch.setattr(video_decoding, "_decode", counted(video_decoding._decode, made))
    for requested in ([0, 1, 5, 6, 33, 34, 35, 69], [13], [28, 29, 30, 31], [68]):
        made.clear()
        found = read(tmp_path / "a.mkv", lambda count, requested=requested: requested, frames_per_second=25)
        assert all(torch.equal(a.permute(1, 2, 0), expected[n]) for a, n in zip(found, requested, strict=True))
        if codec in ("libx264", "libx265", "mpeg4", "mpeg2video") and len(requested) == 1:
            assert len(made) < requested[0] % 30


def counted(run, made: list):
    """Wraps ``run``, which produces frames, so that each frame is appended to ``made`` too."""
    return lambda *given: (made.append(frame) or frame for frame in run(*given))


def test_only_the_chosen_images_of_a_list_are_decoded(tmp_path):
    source = video_source([encoded(5), "data:image/png;base64,a", encoded(7)], "video", "a.jsonl:1", tmp_path)
    frames = read_frames(source, VideoReadingConfig(), lambda count: [0, 2], pixels_of, 10**6)
    assert [number_on(frame) for frame in frames] == [5, 7]
    with pytest.raises(BrokenRecordError, match="unreadable image: not base64"):
        read_frames(source, VideoReadingConfig(), range, pixels_of, 10**6)


def test_frames_are_reduced_one_by_one(files):
    """Only one full-size frame is in memory at a time: each frame is processed before the next one is decoded."""
    path, _ = files["constant.mp4"]
    order = []
    frames = read(path, range, lambda frame: order.append(number_on(frame)) or frame[:, :2, :2])
    assert order == [0, 25, 50, 75, 100]
    assert all(frame.shape == (3, 2, 2) for frame in frames)


def encoded(number: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(painted(number)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def as_list(folder: Path, numbers: list[int]) -> VideoSource:
    return video_source([encoded(number) for number in numbers], "video", "a.jsonl:1", folder)


def as_json(folder: Path, numbers: list[int]) -> VideoSource:
    (folder / "a.json").write_text(json.dumps([encoded(number) for number in numbers]))
    return video_source("a.json", "video", "a.jsonl:1", folder)


def as_folder(folder: Path, numbers: list[int]) -> VideoSource:
    (folder / "a").mkdir()
    for place, number in enumerate(numbers, start=8):  # 8, 9, 10, 11 in numerical order, not alphabetical
        Image.fromarray(painted(number)).save(folder / "a" / f"frame{place}.png")
    (folder / "a" / "notes.txt").write_text("no picture")
    return video_source("a", "video", "a.jsonl:1", folder)


def as_paths(folder: Path, numbers: list[int]) -> VideoSource:
    for number in numbers:
        Image.fromarray(painted(number)).save(folder / f"{number}.png")
    return video_source([f"{number}.png" for number in numbers], "video", "a.jsonl:1", folder)


@pytest.mark.parametrize("make", [as_list, as_json, as_folder, as_paths])
def test_lists_and_folders_of_images_need_no_video_decoder(tmp_path, make, monkeypatch):
    monkeypatch.setattr(video_decoding, "import_backend", None)
    source = make(tmp_path, [7, 5, 200, 9])
    frames = read_frames(source, VideoReadingConfig(), lambda count: [0, 2, 2, 3], pixels_of, 10**6)
    assert [number_on(frame) for frame in frames] == [7, 200, 200, 9]


@pytest.mark.parametrize("case", GOLDEN["sample_frame_ids_eval"], ids=str)
def test_evaluation_uses_the_published_frames(case):
    assert sample_frames(case["num_frames"], case["num_segments"]) == case["eval_ids"]


@pytest.mark.parametrize(("count", "requested"), [(1, 3), (2, 3), (3, 3), (7, 3), (8, 5), (100, 8)])
def test_training_uses_a_random_frame_from_each_segment(count, requested):
    seen = set()
    for seed in range(200):
        found = sample_frames(count, requested, np.random.default_rng(seed))
        assert found == sorted(found)
        assert len(found) == requested
        seen.update(found)
        if count <= requested:
            assert set(found) == set(range(count))
        else:
            most = -(-count // requested)
            assert all(b - a < 2 * most for a, b in itertools.pairwise(found))
    assert seen == set(range(count))


def test_sampling_depends_only_on_the_generator():
    def sampled(seed: int, **how) -> list[int]:
        source = VideoSource("p", frames=tuple(as_list(Path(), list(range(30))).frames))
        sampler = FrameSampler(4, VideoReadingConfig(**how), 10**6)
        return [
            number_on(f)
            for f in sampler.training(source, np.random.default_rng(seed), lambda frame, rng: pixels_of(frame))
        ]

    assert sampled(1) == sampled(1) == sampled(1, same_view=True)
    assert len({tuple(sampled(seed)) for seed in range(8)}) > 4


@pytest.mark.parametrize("same", [True, False])
def test_the_frames_of_a_video_share_a_view_if_configured(same):
    sampler = FrameSampler(4, VideoReadingConfig(same_view=same), 10**6)
    seen = []
    source = as_list(Path(), list(range(9)))
    sampler.training(source, np.random.default_rng(0), lambda frame, rng: seen.append(rng.random()) or pixels_of(frame))
    assert (len(set(seen)) == 1) == same


def broken(path: Path, **how) -> BrokenRecordError:
    started = time.monotonic()
    with pytest.raises(BrokenRecordError) as caught:
        read(path, range, **how)
    assert time.monotonic() - started < 10
    return caught.value


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["constant.mp4", "variable.mkv", "old.avi"])
@pytest.mark.parametrize("share", [0.02, 0.4, 0.7])
def test_a_truncated_file_is_a_broken_record(files, tmp_path, name, backend, share):
    path, content = tmp_path / name, files[name][0].read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert broken(path, backend=backend).reason == "unreadable video"


def test_a_file_truncated_after_its_index_is_broken_too(tmp_path, files):
    """An mp4 file for streaming states at its start how many frames follow."""
    with (
        av.open(str(files["constant.mp4"][0])) as given,
        av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as made,
    ):
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    content = (tmp_path / "a.mp4").read_bytes()
    assert len(read(tmp_path / "a.mp4", range)) == 5
    (tmp_path / "a.mp4").write_bytes(content[: int(0.6 * len(content))])
    assert "truncated" in str(broken(tmp_path / "a.mp4")) or "cannot be decoded" in str(broken(tmp_path / "a.mp4"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_is_not_a_video_is_a_broken_record(tmp_path, backend):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        write_sound(container, container.add_stream("aac", rate=8000), 1.0)
    write_song(tmp_path / "song.mp4")
    (tmp_path / "folder").mkdir()
    (tmp_path / "object.json").write_text('{"a": 1}')
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "number.json").write_text("[1]")
    kinds = {
        "missing.mp4": ("missing video", "does not exist"),
        "empty.mp4": ("unreadable video", "empty.mp4"),
        "text.mp4": ("unreadable video", "text.mp4"),
        "sound.mp4": ("unreadable video", "no video stream, only sound"),
        "song.mp4": ("unreadable video", "no video stream, only sound"),
        "folder": ("unreadable video", "contains no images"),
        "object.json": ("unreadable video", "not a JSON list"),
        "none.json": ("unreadable video", "contains no images"),
        "number.json": ("wrong type", "is a number, not a string"),
        "x" * 5000: ("missing video", "xxx"),
    }
    for name, (kind, message) in kinds.items():
        error = broken(tmp_path / name, backend=backend)
        assert error.reason == kind
        assert message in str(error)


def test_a_value_that_does_not_name_a_video_is_broken(tmp_path):
    for value, kind in ((3, "wrong type"), ("", "missing video"), ([], "unreadable video"), ([3], "wrong type")):
        with pytest.raises(BrokenRecordError) as caught:
            video_source(value, "video", "a.jsonl:1", tmp_path)
        assert caught.value.reason == kind


def test_frames_that_are_too_large_are_not_decoded(files):
    assert broken(files["constant.mp4"][0], max_pixels=100).reason == "image too large"


def test_a_hanging_decoder_times_out(files, monkeypatch):
    def hang(*_):
        time.sleep(20)
        yield

    monkeypatch.setitem(video_decoding._BACKENDS, "av", hang)
    error = broken(files["constant.mp4"][0], time_limit_s=0.3)
    assert "not read within time_limit_s = 0.3 s" in str(error)


def test_a_slow_decoder_stops_itself(files, monkeypatch):
    clock = video_decoding.Clock(0.0)
    with pytest.raises(BrokenRecordError, match="not read within"):
        video_decoding.index_of(files["constant.mp4"][0], 10**6, clock)


def without_decoders(monkeypatch) -> None:
    """Simulates an installation without decoding libraries."""

    def fail(name: str):
        raise ImportError(f"No module named {name!r}\nand more", name=name)

    monkeypatch.setattr(video_decoding, "import_backend", fail)


def test_a_missing_backend_is_reported_in_one_line(monkeypatch, tmp_path):
    without_decoders(monkeypatch)
    file = VideoSource("a.jsonl:3", path=tmp_path / "a.mp4")
    expected = (
        r"^data.video.backend: decord cannot be loaded \(No module named 'av'\), and .*a.mp4 \(a.jsonl:3\) is a video file; "
        r"pip install av decord, or use backend: av$"
    )
    with pytest.raises(UserError, match=expected):
        check_backend([file], VideoReadingConfig(backend="decord"), "data.video")
    with pytest.raises(UserError, match=r"pip install av$"):
        check_backend([file], VideoReadingConfig(), "data.video")


@pytest.mark.parametrize("make", [as_list, as_json, as_folder, as_paths])
def test_lists_and_folders_work_without_a_backend(monkeypatch, tmp_path, make):
    without_decoders(monkeypatch)
    sources = [make(tmp_path, [1, 2])]
    check_backend(sources, VideoReadingConfig(), "data.video")
    check_held_out(sources, VideoReadingConfig(), 10**6, "evaluation.test.test")


def test_a_video_file_found_later_without_a_decoder_is_reported_in_one_line(monkeypatch, files):
    without_decoders(monkeypatch)
    with pytest.raises(UserError, match=naming("constant.mp4", "av", "pip install")):
        read(files["constant.mp4"][0], range)


def seen_by(view: EvaluationView, sources: list[VideoSource], index: int) -> torch.Tensor:
    return view(sources[index])


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_worker_processes_read_the_same_frames_as_the_main_process(files, backend):
    """This also holds if the main process has decoded a video before it starts the workers."""
    sources = [VideoSource("p", path=files[name][0]) for name in NAMES[:4]]
    view = EvaluationView(16, 10**6, FrameSampler(3, VideoReadingConfig(backend=backend), 10**6))
    expected = [view(source) for source in sources]
    found = [
        each for made in in_batches(partial(seen_by, view, sources), range(4), 1, 2, "row {}".format) for each in made
    ]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="/proc is needed to measure the memory of a process")
def test_reading_many_files_does_not_leak_memory():
    """Ten unclosed containers of such large frames keep 0.5 MB in total, or twenty times that after decoding. Ten closed ones
    keep almost nothing. docs/ablations.md has the memory after a thousand files."""
    command = [sys.executable, "-m", "tests.dataset.reread_video"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(found.stdout) < 200_000


def test_the_thread_of_a_timed_out_video_ends(tmp_path, monkeypatch):
    """The thread checks the time after each frame."""

    def slow(frame):
        time.sleep(0.1)
        return pixels_of(frame)

    monkeypatch.setattr(video_decoding, "_HANGING", [])
    source = as_list(tmp_path, list(range(40)))
    config = VideoReadingConfig(time_limit_s=0.15)
    for _ in range(3):
        with pytest.raises(BrokenRecordError, match="not read within"):
            read_frames(source, config, lambda count: range(count), slow, 10**6)
    assert video_decoding._HANGING
    for thread in video_decoding._HANGING:
        thread.join(30)
        assert not thread.is_alive()


def test_calls_that_never_return_leave_few_threads(monkeypatch):
    monkeypatch.setattr(video_decoding, "_HANGING", [])
    go_on, started = threading.Event(), []

    def hang():
        started.append(1)
        go_on.wait(30)

    for number in range(12):
        with pytest.raises(BrokenRecordError) as caught:
            video_decoding.run_with_limit(video_decoding.Clock(0.02), hang)
        assert ("stuck in the decoder" in str(caught.value)) == (number >= 8)
    assert len(started) == 8
    go_on.set()
    for thread in list(video_decoding._HANGING):
        thread.join()
    assert video_decoding.run_with_limit(video_decoding.Clock(5), lambda: 7) == 7
