"""Compares the speed of shards on a server and on disk: ``python -m benchmarks.remote_shards``."""

from __future__ import annotations

import io
import multiprocessing
import random
import re
import sys
import tarfile
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dataset.config import AugmentConfig, RemoteConfig, StreamConfig
from dataset.media.encoded import decode
from dataset.media.views import TrainingView
from dataset.records.schema import ImageSource
from dataset.shards.readers import Shards
from dataset.tasks.streams.base import open_source
from utils.commands import call

LANES, BATCH, SMALL = 2, 32, 100


def write_tars(folder: Path, tars: int, per_tar: int) -> None:
    """Writes tars of pictures of about 20 kB with captions."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for shard in range(tars):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            stream = io.BytesIO()
            picture = Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8))
            picture.resize((256, 256)).save(stream, "JPEG", quality=90)
            for row in range(per_tar):
                for suffix, content in (("jpg", stream.getvalue()), ("txt", b"a photo of noise")):
                    info = tarfile.TarInfo(f"{shard:05d}{row:04d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def serve(folder: Path, failing: float, port: Any, sent: Any) -> None:
    """Serves ranges of the files in a folder, in a separate process. Publishes the port and the number of bytes sent in shared
    values."""
    rng = random.Random(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert asked is not None
            size, start = path.stat().st_size, int(asked[1])
            with path.open("rb") as file:
                file.seek(start)
                content = file.read(int(asked[2]) - start + 1)
            fails = rng.random() < failing
            self.send_response(503 if fails else 206)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{size}")
            self.send_header("Content-Length", str(0 if fails else len(content)))
            self.end_headers()
            if not fails:
                self.wfile.write(content)
                sent.value += len(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port.value = server.server_address[1]
        server.serve_forever()


def read(
    files: list[str], folder: Path, ranks: int = 1, views: bool = False, block_records: int | None = SMALL
) -> float:
    """Measures the pictures per second in an epoch of rank 0, with an empty cache of segments. If ``views``, each picture is also
    augmented for training."""
    view = TrainingView(224, 10**6, AugmentConfig())
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        shards = Shards(files, index_folder=folder / "index", remote=RemoteConfig(cache=cache))
        stream = StreamConfig(files=files, batch_size=BATCH, order="blocks", lanes=LANES, block_records=block_records)
        source = open_source(stream, shards, name="images", seed=0, ranks=ranks, step=LANES)
        started, count = time.perf_counter(), 0
        for number in range(0, len(source) // BATCH, ranks):
            for record, rng in source.samples(number):
                raw = shards.read(record)
                assert raw.image is not None
                if views:
                    view(ImageSource(raw.location, content=raw.image), rng, may_flip=True)
                else:
                    decode(raw.image, 10**6, raw.location)
                count += 1
        return count / (time.perf_counter() - started)


def main(*, tars: int = 8, per_tar: int = 2000, rounds_: int = 5) -> int:
    """Compares the speed of shards on a server and on disk.

    One process reads tars of pictures in block order: from disk, from a server on this machine that answers every request, and
    from a server that fails 1% of the requests. Pictures are augmented for training, as in a run, and in a second measurement
    only decoded. Each round starts with an empty cache of segments, but with an existing index. Blocks are so small that an epoch
    has several windows, as with more data. Finally, two nodes each read half of the lanes, in blocks of the default size; the
    benchmark prints the bytes that one node fetches, as a multiple of its share.

    Args:
        tars: number of tars.
        per_tar: number of pictures per tar.
        rounds_: number of measurements of each source.

    Examples:
        python -m benchmarks.remote_shards
    """
    torch.set_num_threads(1)  # as in the workers of a run
    context = multiprocessing.get_context("fork")
    servers = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tars(folder / "tars", tars, per_tar)
        files, sent = {"disk": [str(folder / "tars")]}, context.Value("q", 0)
        for failing in (0.0, 0.01):
            port = context.Value("i", 0)
            servers.append(context.Process(target=serve, args=(folder / "tars", failing, port, sent), daemon=True))
            servers[-1].start()
            while not port.value:
                time.sleep(0.01)
            address = f"http://127.0.0.1:{port.value}/{{00000..{tars - 1:05d}}}.tar"
            files[f"server, {failing:.0%} of the requests fail"] = [address]
        for own in files.values():  # builds the indexes
            read(own, folder)
        for views, done in ((True, "augmented"), (False, "decoded")):
            rounds = [[read(own, folder, views=views) for own in files.values()] for _ in range(rounds_)]
            medians = np.median(rounds, axis=0)
            for what, rate, rates in zip(files, medians, zip(*rounds, strict=True), strict=True):
                each = f"rounds {min(rates):,.0f} to {max(rates):,.0f}"
                sys.stdout.write(
                    f"{what}: {rate:,.0f} pictures/s {done} ({each}), {rate / medians[0]:.0%} of the disk's\n"
                )
        before = sent.value
        read(files["server, 0% of the requests fail"], folder, ranks=2, block_records=None)
        share = sum(path.stat().st_size for path in (folder / "tars").iterdir()) / 2
        sys.stdout.write(f"one of two nodes fetches {(sent.value - before) / share:.2f} times its share\n")
    for process in servers:
        process.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.remote_shards"))
