"""Compares the speed of shards on a server and on disk: ``python -m benchmarks.remote_shards``."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import re
import sys
import tarfile
import tempfile
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.config import AugmentConfig, RemoteConfig, StreamConfig
from dataset.examples import Account
from dataset.media.encoded import decode
from dataset.media.sources import ImageSource
from dataset.media.views import TrainingView
from dataset.records.schema import RawRecord
from dataset.shards.readers import Shards
from dataset.tasks.streams.opening import open_stream
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
    """Serves ranges of the files in a folder, in a separate process. It also answers like an S3 store whose buckets are the
    folders in it. Publishes the port and the number of bytes sent in shared values."""
    rng = random.Random(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            size = (folder / self.path.lstrip("/")).stat().st_size
            self._answer(200, {"Content-Length": str(size)})

        def do_GET(self) -> None:
            if rng.random() < failing:
                self._answer(503, {"Content-Length": "0"})
                return
            path = folder / self.path.lstrip("/")
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert asked is not None
            start = int(asked[1])
            with path.open("rb") as file:
                file.seek(start)
                content = file.read(int(asked[2]) - start + 1)
            given = f"bytes {start}-{start + len(content) - 1}/{path.stat().st_size}"
            self._answer(206, {"Content-Range": given, "Content-Length": str(len(content))})
            with suppress(ConnectionError):  # the benchmark may end before all blocks are prefetched
                self.wfile.write(content)
            with sent.get_lock():
                sent.value += len(content)

        def _answer(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"ETag": '"1"', "Last-Modified": "Tue, 01 Dec 2026 00:00:00 GMT", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port.value = server.server_address[1]
        server.serve_forever()


def read(
    entry: str,
    folder: Path,
    cache_gb: float,
    *,
    ranks: int = 1,
    views: bool = False,
    block_records: int | None = SMALL,
    limit: int | None = None,
) -> tuple[float, int]:
    """Measures the pictures per second of rank 0 in an epoch, or in its first ``limit`` pictures, with an empty cache of blocks.
    If ``views``, each picture is also augmented for training.

    Returns:
        Pictures per second, and the number of pictures.
    """
    view = TrainingView(224, 10**6, AugmentConfig())
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as cache:  # blocks are still prefetched
        remote = RemoteConfig(cache=cache, cache_gb=cache_gb)
        shards = Shards([entry], index_folder=folder / "index", remote=remote)
        stream = StreamConfig(files=[entry], batch_size=BATCH, order="blocks", lanes=LANES, block_records=block_records)
        source = open_stream(stream, shards, name="images", seed=0, ranks=ranks, step=LANES)

        def example(raw: RawRecord, rng: np.random.Generator) -> Tensor:
            assert raw.image is not None
            if views:
                return view(ImageSource(raw.location, content=raw.image), rng, may_flip=True)
            return decode(raw.image, 10**6)

        batches = min(len(source), limit or len(source)) // BATCH
        started, count = time.perf_counter(), 0
        for number in range(0, batches, ranks):
            account = Account()
            count += len(source.examples(number, account, example))
            assert not account.broken
        return count / (time.perf_counter() - started), count


def main(*, tars: int = 128, per_tar: int = 1000, pictures: int = 8000, rounds: int = 5) -> int:
    """Compares the speed of shards on a server and on disk.

    One process reads tars of pictures in block order: from disk, over HTTP and over S3 from a server on this machine, and over
    HTTP from a server that fails 1% of the requests. Pictures are augmented for training, as in a run, and in a second
    measurement only decoded. Each round starts with an existing index and an empty cache of blocks, which has room for a tenth of
    the data (but at least 0.25 GB). Blocks of records are so small that an epoch has several windows, as with more data. Finally,
    two nodes each read half of the lanes, in blocks of the default size; the benchmark prints the bytes that one node fetches, as
    a multiple of its share.

    Args:
        tars: number of tars.
        per_tar: number of pictures per tar.
        pictures: number of pictures that a round reads.
        rounds: number of measurements of each source.

    Examples:
        python -m benchmarks.remote_shards
    """
    torch.set_num_threads(1)  # as in the workers of a run
    context = multiprocessing.get_context("fork")
    sent, servers, ports = context.Value("q", 0), [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tars(folder / "tars", tars, per_tar)
        size = sum(path.stat().st_size for path in (folder / "tars").iterdir())
        cache_gb = max(0.25, size / 1e10)
        for failing in (0.0, 0.01):
            port = context.Value("i", 0)
            servers.append(context.Process(target=serve, args=(folder, failing, port, sent), daemon=True))
            servers[-1].start()
            while not port.value:
                time.sleep(0.01)
            ports.append(port.value)
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[0]}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        numbered = f"tars/{{00000..{tars - 1:05d}}}.tar"
        entries = {
            "disk": str(folder / "tars"),
            "HTTP": f"http://127.0.0.1:{ports[0]}/{numbered}",
            "HTTP, 1% of the requests fail": f"http://127.0.0.1:{ports[1]}/{numbered}",
            "S3": f"s3://{numbered}",
        }
        for entry in entries.values():  # builds the indexes
            read(entry, folder, cache_gb, limit=BATCH)
        for views, done in ((True, "augmented"), (False, "decoded")):
            rates: dict[str, list[float]] = {what: [] for what in entries}
            fetched: dict[str, list[float]] = {what: [] for what in entries}
            for _ in range(rounds):
                for what, entry in entries.items():
                    before = sent.value
                    rate, count = read(entry, folder, cache_gb, views=views, limit=pictures)
                    rates[what].append(rate)
                    fetched[what].append((sent.value - before) / count)
            for what, own in rates.items():
                median = np.median(own)
                sys.stdout.write(
                    f"{what}: {median:,.0f} pictures/s {done} (rounds {min(own):,.0f} to {max(own):,.0f}), "
                    f"{median / np.median(rates['disk']):.0%} of the disk's, {np.median(fetched[what]):,.0f} bytes per picture\n"
                )
        before = sent.value
        read(entries["HTTP"], folder, 20.0, ranks=2, block_records=None)
        sys.stdout.write(f"one of two nodes fetches {(sent.value - before) / (size / 2):.2f} times its share\n")
    for process in servers:
        process.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.remote_shards"))
