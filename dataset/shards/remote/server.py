"""Requests to servers, with retries and a cache for the blocks that are read."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from dataset.config import BLOCK_BYTES, LONGEST_WAIT_S, RemoteConfig
from dataset.shards.remote.ahead import Prefetcher
from dataset.shards.remote.transports import RequestError, Transport, open_transport
from utils.addresses import scheme_of
from utils.block_cache import Block, BlockCache
from utils.errors import UserError
from utils.files import cache_folder, expanded

T = TypeVar("T")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, LONGEST_WAIT_S
_MAX_QUICK_ATTEMPTS = 6
"""Maximum number of attempts, over a few seconds, for a host that never responded to this process, because its URL may be
wrong."""

logger = logging.getLogger(__name__)


class _BlockRequest(NamedTuple):
    """A block of a file; see :meth:`Server.block`."""

    address: str
    shown: str
    state: tuple[int, int]
    number: int

    @property
    def start(self) -> int:
        return self.number * BLOCK_BYTES

    @property
    def end(self) -> int:
        return min(self.start + BLOCK_BYTES, self.state[0])

    @property
    def name(self) -> str:
        """Name of the block in the cache."""
        return hashlib.sha256(f"{self.shown} {self.state} {self.start}-{self.end}".encode()).hexdigest()[:40]


class Server:
    """Reads all remote shards of a list.

    It can be pickled and used after a fork, because every process opens its own connections.

    Args:
        config: settings of the cache and of retries.
        key: config key of the shards, to name in error messages.

    Attributes:
        failed: number of failed requests of this process that were retried.
    """

    def __init__(self, config: RemoteConfig, key: str):
        self.config, self.key = config, key
        self._process = -1
        self._inherited: list[Any] = []
        self._answered: set[str] = set()
        self._reset()

    def _reset(self) -> None:
        # Connections opened before a fork belong to the parent process, so they are neither used nor closed.
        if self._process != -1:
            self._inherited.append(self._transports)
        self._process = os.getpid()
        self._transports: dict[str, Transport] = {}
        self._cache: BlockCache | None = None
        self._prefetcher: Prefetcher | None = None
        self._opening = threading.Lock()
        self.failed = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "key": self.key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def state(self, address: str, shown: str) -> tuple[int, int]:
        """Returns the size in bytes and the version of a file. ``shown`` is the URL to show in messages.

        Raises:
            UserError: if the file cannot be read.
        """
        piece = self.request(address, shown, lambda transport: transport.read(address, 0, 1))
        return piece.size, piece.version

    def block(self, address: str, shown: str, state: tuple[int, int], number: int) -> Block:
        """Returns block ``number`` of a file.

        Args:
            address: URL of the file.
            shown: the URL to show in messages.
            state: state of the file when it was indexed.
            number: index of the block.

        Raises:
            UserError: if the block cannot be read, or the file has changed.
        """
        wanted = _BlockRequest(address, shown, state, number)
        # The time limit includes the time that another process spends trying to fetch the block, because the trainer waits for
        # a worker only for a limited time.
        wait_started = time.monotonic()
        return self._blocks().get(wanted.name, wanted.end - wanted.start, lambda: self._fetch(wanted, wait_started))

    def prefetch(self, address: str, shown: str, state: tuple[int, int], number: int) -> None:
        """Prefetches a block in another thread. The arguments are those of :meth:`block`.

        A request that fails :data:`_MAX_QUICK_ATTEMPTS` times is dropped, and repeated when the block is read.
        """
        blocks = self._blocks()
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self.config.ahead)

        def job() -> bool:
            wanted = _BlockRequest(address, shown, state, number)
            return blocks.ensure(wanted.name, wanted.end - wanted.start, lambda: self._fetch(wanted, brief=True))

        self._prefetcher.submit((shown, number), job)

    def _fetch(self, wanted: _BlockRequest, wait_started: float | None = None, brief: bool = False) -> bytes:
        address, shown, state, _ = wanted
        piece = self.request(
            address,
            shown,
            lambda transport: transport.read(address, wanted.start, wanted.end),
            wait_started=wait_started,
            brief=brief,
        )
        if (piece.size, piece.version) != state:
            raise UserError(
                f"{shown} has changed since it was indexed ({state[0]:,} bytes then, {piece.size:,} now)",
                where=self.key,
                remedy="rebuild the index with python run.py index-shards",
            )
        return piece.content

    def request(
        self,
        address: str,
        shown: str,
        ask: Callable[[Transport], T],
        *,
        wait_started: float | None = None,
        brief: bool = False,
    ) -> T:
        """Makes a request and returns the response. A failed request is retried for the time that the config sets.

        Args:
            address: URL of the file. A host that never responded to this process is tried only :data:`_MAX_QUICK_ATTEMPTS` times.
            shown: the URL to show in messages.
            ask: makes the request.
            wait_started: time (``time.monotonic``) at which the caller began to wait; if None, now.
            brief: whether to try at most :data:`_MAX_QUICK_ATTEMPTS` times.

        Raises:
            UserError: if the last attempt failed, or a retry would not succeed.
        """
        transport, host = self._transport(address), urlsplit(address).netloc
        wait_started = time.monotonic() if wait_started is None else wait_started
        # Jitter, so that processes that failed together do not retry together.
        rng = random.Random(f"{shown} {os.getpid()}")
        for count in itertools.count(1):
            try:
                answer = ask(transport)
            except RequestError as error:
                remaining_s = wait_started + 60 * self.config.retry_minutes - time.monotonic()
                if not error.again:
                    reason = f"{error}; check the URL and the permission to read it"
                    raise UserError(f"{shown}: {reason}", where=self.key) from None
                if remaining_s <= 0 or (count >= _MAX_QUICK_ATTEMPTS and (brief or host not in self._answered)):
                    reason = f"{error}; {self._gave_up(host, count, time.monotonic() - wait_started)}"
                    raise UserError(f"{shown}: {reason}", where=self.key) from None
                self._report(shown, error)
                wait = min(_FIRST_WAIT_S * 2 ** min(count - 1, 30), _LONGEST_WAIT_S) * rng.uniform(0.5, 1)
                time.sleep(min(wait if brief else max(wait, error.wait_s), remaining_s))
            else:
                self._answered.add(host)
                return answer
        raise AssertionError

    def _gave_up(self, host: str, count: int, seconds: float) -> str:
        tried = f"gave up after {count} request{'s' if count > 1 else ''} over {seconds:.0f} s"
        if host in self._answered:
            return f"{tried}; check the server and the network, or raise data.remote.retry_minutes"
        return f"{tried}, all without a response; check the URL, the server and the network"

    def _report(self, shown: str, error: RequestError) -> None:
        """Logs the 1st, 10th, 100th, … failure."""
        self.failed += 1
        if str(self.failed).strip("0") == "1":
            logger.warning("%s: %s; retrying (failed requests of this process: %d)", shown, error, self.failed)

    def _transport(self, address: str) -> Transport:
        if self._process != os.getpid():
            self._reset()
        scheme = scheme_of(address)
        with self._opening:
            if scheme not in self._transports:
                self._transports[scheme] = open_transport(address, self.config.timeout_s, self.key)
            return self._transports[scheme]

    def _blocks(self) -> BlockCache:
        if self._process != os.getpid():
            self._reset()
        if self._cache is None:
            self._cache = open_cache(self.config)
        return self._cache


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
