"""Reads one video file many times, and prints the smallest growth of the process's memory over one stretch of reads.
A leak grows memory in every stretch, while other allocations happen once."""

from __future__ import annotations

import gc
import itertools
import resource
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from torch import Tensor

from dataset.config import VideoReadingConfig
from dataset.media.sources import VideoSource
from dataset.media.video import read_frames

SIDE = 512
STRETCHES, ROUNDS = 5, 10


def write_file(path: Path) -> None:
    """Writes two seconds of large frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for number in range(20):
            pixels = np.full((SIDE, SIDE, 3), 10 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def reduced(frame: Tensor) -> Tensor:
    return frame[:, ::8, ::8].clone()


def resident_bytes() -> int:
    """The memory that the process currently uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    gc.disable()  # otherwise an unclosed container might be collected in time
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_file(path)
        held = []
        for number in range(STRETCHES * ROUNDS + 1):
            if number % ROUNDS == 0:
                held.append(resident_bytes())
            read_frames(VideoSource("test", path=path), VideoReadingConfig(), range, reduced, 10**7)
        sys.stdout.write(f"{min(after - before for before, after in itertools.pairwise(held))}\n")


if __name__ == "__main__":
    main()
