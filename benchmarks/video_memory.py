"""Memory while many video files are read: ``python -m benchmarks.video_memory [--files 1000] [--backend av]``."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from dataset.config import VideoReadingConfig
from dataset.media.encoded import pixels_of
from dataset.media.sources import VideoSource
from dataset.media.video import FrameSampler
from utils.commands import call

FRAMES = 150
SIDE = 256


def write_file(path: Path) -> None:
    """Writes six seconds of moving noise."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (SIDE, 2 * SIDE, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(noise[:, number : number + SIDE]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def memory_mb() -> float:
    """Returns the memory of the process in MB, or its peak if the system does not report the current value."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main(*, files: int = 1000, backend: str = "av") -> int:
    """Memory while many video files are read.

    The benchmark writes a short file with PyAV, reads five frames from this file --files times, and prints the memory of the
    process as it goes. Each read reopens the file, so that leaks of a decoder add up.

    Args:
        files: number of reads.
        backend: av or decord.

    Examples:
        python -m benchmarks.video_memory [--files 1000] [--backend av]
    """
    sampler = FrameSampler(5, VideoReadingConfig(backend=backend), 10**7)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_file(path)
        started = time.monotonic()
        for number in range(1, files + 1):
            sampler.training(
                VideoSource("benchmark", path=path), rng, lambda frame, _: pixels_of(frame)[:, ::2, ::2].clone()
            )
            if number in (10, 100) or number % max(1, files // 4) == 0:
                elapsed_s = time.monotonic() - started
                sys.stdout.write(f"{number} files: {memory_mb():.0f} MB, {1000 * elapsed_s / number:.0f} ms/file\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.video_memory"))
