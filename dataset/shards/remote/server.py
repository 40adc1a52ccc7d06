"""Requests to servers, with retries and a cache for the blocks that are read."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dataset.config import BLOCK_BYTES, LONGEST_WAIT_S, RemoteConfig
from dataset.shards.remote.ahead import Prefetcher
from dataset.shards.remote.requests import Files, HttpFiles, RequestError
from utils.addresses import scheme_of
from utils.block_cache import Block, BlockCache
from utils.errors import UserError
from utils.extras import install_command
from utils.files import cache_folder, expanded

T = TypeVar("T")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, LONGEST_WAIT_S
_MAX_QUICK_ATTEMPTS = 6
"""Maximum number of attempts, over a few seconds, for a host that never responded to this process, because its URL may be
wrong."""
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs"}

logger = logging.getLogger(__name__)


class _Opened:
    """Connections by protocol, the cache, and the threads that prefetch, all opened by one process to read remote files."""

    def __init__(self, config: RemoteConfig):
        self._config = config
        self.files: dict[str, Files] = {}
        self.cache = open_cache(config)
        self.failed = 0

    @functools.cached_property
    def prefetcher(self) -> Prefetcher:
        return Prefetcher(self._config.ahead)


class Server:
    """Reads all remote shards of a list. It can be pickled and used after a fork.

    Args:
        config: settings of the cache and of retries.
        key: config key of the shards, to name in error messages.
    """

    def __init__(self, config: RemoteConfig, key: str):
        self.config, self.key = config, key
        self._answered: set[str] = set()
        self._by_process: dict[int, _Opened] = {}

    def __reduce__(self) -> tuple[type[Server], tuple[RemoteConfig, str]]:
        return Server, (self.config, self.key)

    def _opened(self) -> _Opened:
        # Nothing that was opened before a fork can be used afterwards. It is kept, because to close the connections of the parent
        # process, fsspec would wait for a thread that the fork did not copy.
        process = os.getpid()
        if process not in self._by_process:
            self._by_process.setdefault(process, _Opened(self.config))  # another thread may have been first
        return self._by_process[process]

    def state(self, address: str) -> tuple[int, int]:
        """Returns the size in bytes and the version of a file.

        Raises:
            UserError: if the file cannot be read.
        """
        _, size, version = self.request(address, lambda files: files.read(address, 0, 1))
        return size, version

    def find(self, pattern: str) -> list[str]:
        """Returns the sorted URLs of the files that match a glob pattern.

        Raises:
            UserError: if the protocol cannot list files, or the server does not answer.
        """
        return sorted(self.request(pattern, lambda files: files.find(pattern)))

    def block(self, address: str, state: tuple[int, int], number: int) -> Block:
        """Returns block ``number`` of a file.

        Args:
            address: URL of the file.
            state: state of the file when it was indexed.
            number: index of the block.

        Raises:
            UserError: if the block cannot be read, or the file has changed.
        """
        name, start, end = _located(address, state, number)
        # The time limit includes the time that another process spends trying to fetch the block, because the trainer waits for
        # a worker only for a limited time.
        wait_started = time.monotonic()
        return self._opened().cache.get(
            name, end - start, lambda: self._fetch(address, state, start, end, wait_started)
        )

    def prefetch(self, address: str, state: tuple[int, int], number: int) -> None:
        """Prefetches a block in another thread. The arguments are those of :meth:`block`.

        A request that fails :data:`_MAX_QUICK_ATTEMPTS` times is dropped, and repeated when the block is read.
        """
        opened = self._opened()

        def job() -> bool:
            name, start, end = _located(address, state, number)
            return opened.cache.ensure(name, end - start, lambda: self._fetch(address, state, start, end, brief=True))

        opened.prefetcher.submit((address, number), job)

    def _fetch(
        self,
        address: str,
        state: tuple[int, int],
        start: int,
        end: int,
        wait_started: float | None = None,
        brief: bool = False,
    ) -> bytes:
        content, size, version = self.request(
            address, lambda files: files.read(address, start, end), wait_started=wait_started, brief=brief
        )
        if (size, version) != state:
            raise UserError(
                f"{without_query(address)} has changed since it was indexed ({state[0]:,} bytes then, {size:,} now)",
                where=self.key,
                remedy="rebuild the index with python run.py index-shards",
            )
        return content

    def request(
        self,
        address: str,
        ask: Callable[[Files], T],
        *,
        wait_started: float | None = None,
        brief: bool = False,
    ) -> T:
        """Makes a request and returns the response. A failed request is retried for the time that the config sets.

        Args:
            address: URL of the file. A host that never responded to this process is tried only :data:`_MAX_QUICK_ATTEMPTS` times.
            ask: makes the request.
            wait_started: time (``time.monotonic``) at which the caller began to wait; if None, now.
            brief: whether to try at most :data:`_MAX_QUICK_ATTEMPTS` times, and not at all once the process ends.

        Raises:
            UserError: if the last attempt failed, or a retry would not succeed.
        """
        shown, host = without_query(address), urlsplit(address).netloc
        opened, files = self._opened(), self._files(address)
        wait_started = time.monotonic() if wait_started is None else wait_started
        # Jitter, so that processes that failed together do not retry together.
        rng = random.Random(f"{shown} {os.getpid()}")
        for count in itertools.count(1):
            try:
                answer = ask(files)
            except RequestError as error:
                remaining_s = wait_started + 60 * self.config.retry_minutes - time.monotonic()
                if not error.again or (brief and opened.prefetcher.ended):
                    reason = f"{error}; check the URL and the permission to read it"
                    raise UserError(f"{shown}: {reason}", where=self.key) from None
                if remaining_s <= 0 or (count >= _MAX_QUICK_ATTEMPTS and (brief or host not in self._answered)):
                    reason = f"{error}; {self._gave_up(host, count, time.monotonic() - wait_started)}"
                    raise UserError(f"{shown}: {reason}", where=self.key) from None
                self._report(shown, error, opened)
                wait = min(_FIRST_WAIT_S * 2 ** min(count - 1, 30), _LONGEST_WAIT_S) * rng.uniform(0.5, 1)
                time.sleep(min(wait if brief else max(wait, error.wait_s), remaining_s))
            else:
                self._answered.add(host)
                return answer
        raise AssertionError

    def _files(self, address: str) -> Files:
        scheme, shown, opened = scheme_of(address), without_query(address), self._opened().files
        try:
            if scheme not in opened:
                files = (HttpFiles if scheme in ("http", "https") else Files)(scheme, self.config.timeout_s)
                opened.setdefault(scheme, files)  # another thread may have been first
            return opened[scheme]
        except ImportError as error:
            package = _PACKAGES.get(scheme, f"a package for {scheme} ({error})")
            remedy = install_command("remote") if scheme in _PACKAGES else "install it"
            raise UserError(f"{shown}: needs {package}, which is not installed: {remedy}", where=self.key) from None
        except ValueError as error:  # no such protocol
            raise UserError(f"{shown}: fsspec: {error}", where=self.key) from None

    def _gave_up(self, host: str, count: int, seconds: float) -> str:
        tried = f"gave up after {count} request{'s' if count > 1 else ''} over {seconds:.0f} s"
        if host in self._answered:
            return f"{tried}; check the server and the network, or raise data.remote.retry_minutes"
        return f"{tried}, all without a response; check the URL, the server and the network"

    def _report(self, shown: str, error: RequestError, opened: _Opened) -> None:
        """Logs the 1st, 10th, 100th, … failure."""
        opened.failed += 1
        if str(opened.failed).strip("0") == "1":
            logger.warning("%s: %s; retrying (failed requests of this process: %d)", shown, error, opened.failed)


def _located(address: str, state: tuple[int, int], number: int) -> tuple[str, int, int]:
    """Returns the name in the cache of block ``number`` of a file, its first byte, and the byte after its last."""
    start = number * BLOCK_BYTES
    end = min(start + BLOCK_BYTES, state[0])
    name = hashlib.sha256(f"{without_query(address)} {state} {start}-{end}".encode()).hexdigest()[:40]
    return name, start, end


def without_query(address: str) -> str:
    """Returns a URL without the query after "?", which may contain a signature, so that it can be shown."""
    return address.partition("?")[0]


def open_cache(config: RemoteConfig, **options: Any) -> BlockCache:
    """Opens the folder of cached blocks. ``options`` are passed to :class:`~utils.block_cache.BlockCache`."""
    folder = config.cache
    return BlockCache(
        expanded(folder) if folder is not None else _default_folder(),
        int(config.cache_gb * 1e9),
        "data.remote.cache names another folder",
        **options,
    )


def _default_folder() -> Path:
    caches = cache_folder()
    if caches is None:
        raise UserError(
            "the user has no home folder",
            where="data.remote.cache",
            remedy="name a folder for blocks of remote and Parquet shards",
        )
    return caches / "blocks"
