"""Requests that are repeated when they fail, and what they bring kept in the cache of blocks."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import Field

from dataset.shards.remote.ahead import Ahead
from dataset.shards.remote.cache import Block, BlockCache
from dataset.shards.remote.transports import RequestError, Transport, open_transport
from utils.addresses import scheme_of
from utils.config import Config
from utils.errors import UserError
from utils.files import cache_folder, expanded

T = TypeVar("T")

BLOCK_BYTES = 1 << 20
"""Of a request. Two nodes that read neighbouring runs of records both fetch the block on the border."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 20.0

logger = logging.getLogger(__name__)


class RemoteConfig(Config):
    """How shards at addresses are read."""

    cache: str | None = Field(
        None,
        description="folder of this machine that keeps blocks of remote shards; null: in the user's cache folder",
    )
    cache_gb: float = Field(
        20.0, ge=0.25, description="the most that the folder holds, in GB, over all processes of this machine"
    )
    timeout_s: float = Field(60.0, gt=0, description=f"seconds for a request, of at most {BLOCK_BYTES >> 20} MiB")
    ahead: int = Field(
        4,
        ge=0,
        le=64,
        description="requests that a worker has under way at a time for records that it will read later; 0: none",
    )
    retries: int = Field(
        6, ge=0, le=20, description="how often a failed request is repeated, after longer and longer waits"
    )
    protocols: list[str] = Field(
        ["http", "https", "s3"],
        description="protocols that addresses may have; others that fsspec knows can be named, and are untested",
    )


class _Wanted(NamedTuple):
    """A block of a file: see :meth:`Server.block`."""

    address: str
    told: str
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
        """In the cache of blocks."""
        return hashlib.sha256(f"{self.told} {self.state} {self.start}-{self.end}".encode()).hexdigest()[:40]


class Server:
    """The way to all remote shards of a list.

    Safe after a fork, and to pickle: every process has its own connections.

    Args:
        config: cache, and what happens to requests that fail.
        key: config key of the shards, for messages.

    Attributes:
        failed: requests of this process that failed and were repeated.
    """

    def __init__(self, config: RemoteConfig, key: str):
        self.config, self.key = config, key
        self._process = -1
        self._inherited: list[Any] = []
        self._start_anew()

    def _start_anew(self) -> None:
        # What was opened before a fork is the parent's: it is not used, and not closed either.
        if self._process != -1:
            self._inherited.append(self._transports)
        self._process = os.getpid()
        self._transports: dict[str, Transport] = {}
        self._cache: BlockCache | None = None
        self._ahead: Ahead | None = None
        self._opening = threading.Lock()
        self.failed = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "key": self.key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def state(self, address: str, told: str) -> tuple[int, int]:
        """Bytes and version of a file. ``told``: the address for messages.

        Raises:
            UserError: it cannot be read.
        """
        piece = self.request(address, told, lambda transport: transport.read(address, 0, 1))
        return piece.size, piece.version

    def block(self, address: str, told: str, state: tuple[int, int], number: int) -> Block:
        """Block ``number`` of the file that had a ``state``.

        Raises:
            UserError: it cannot be read, or has another state now.
        """
        wanted = _Wanted(address, told, state, number)
        return self._blocks().get(wanted.name, wanted.end - wanted.start, lambda: self._fetch(wanted))

    def expect(self, address: str, told: str, state: tuple[int, int], number: int) -> None:
        """Say that :meth:`block` will be called with these arguments: it is fetched before, by another thread.

        A request that fails for the last time is of no account here: it is made again when the block is read.
        """
        blocks = self._blocks()
        if self._ahead is None:
            self._ahead = Ahead(self.config.ahead)

        def bring() -> bool:
            wanted = _Wanted(address, told, state, number)
            return blocks.bring(wanted.name, wanted.end - wanted.start, lambda: self._fetch(wanted))

        self._ahead.ask((told, number), bring)

    def _fetch(self, wanted: _Wanted) -> bytes:
        address, told, state, _ = wanted
        piece = self.request(address, told, lambda transport: transport.read(address, wanted.start, wanted.end))
        if (piece.size, piece.version) != state:
            raise UserError(
                f"{self.key}: {told} has changed since it was indexed ({state[0]:,} bytes then, {piece.size:,} now); index "
                "it again with python run.py index-shards"
            )
        return piece.content

    def request(self, address: str, told: str, ask: Callable[[Transport], T]) -> T:
        """The answer to a request, which is repeated as often as the config says.

        Raises:
            UserError: it failed for the last time, or will not succeed.
        """
        transport = self._transport(address)
        # Processes that failed together do not come again together.
        rng = random.Random(f"{told} {os.getpid()}")
        for attempt in range(self.config.retries + 1):
            try:
                return ask(transport)
            except RequestError as error:
                if not error.again:
                    raise UserError(
                        f"{self.key}: {told}: {error}; check the address and the rights to read it"
                    ) from None
                if attempt == self.config.retries:
                    raise UserError(
                        f"{self.key}: {told}: {error}; gave up after {attempt + 1} requests; check the server and the network, "
                        "or raise data.remote.retries and data.remote.timeout_s"
                    ) from None
                self._tell(told, error)
                time.sleep(min(_FIRST_WAIT_S * 2**attempt, _LONGEST_WAIT_S) * rng.uniform(0.5, 1))
        raise AssertionError

    def _tell(self, told: str, error: RequestError) -> None:
        """Log failures number 1, 10, 100, …"""
        self.failed += 1
        if str(self.failed).strip("0") == "1":
            logger.warning("%s: %s; it is repeated (failed requests of this process: %d)", told, error, self.failed)

    def _transport(self, address: str) -> Transport:
        if self._process != os.getpid():
            self._start_anew()
        scheme = scheme_of(address)
        with self._opening:
            if scheme not in self._transports:
                self._transports[scheme] = open_transport(address, self.config.timeout_s, self.key)
            return self._transports[scheme]

    def _blocks(self) -> BlockCache:
        if self._process != os.getpid():
            self._start_anew()
        if self._cache is None:
            folder = self.config.cache
            self._cache = BlockCache(
                expanded(folder) if folder is not None else _default_folder(), int(self.config.cache_gb * 1e9)
            )
        return self._cache


def _default_folder() -> Path:
    caches = cache_folder()
    if caches is None:
        raise UserError("data.remote.cache: the user has no home folder; name a folder for blocks of remote shards")
    return caches / "blocks"
