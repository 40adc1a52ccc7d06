"""Flags that set the number of devices and nodes. All commands that start runs accept them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

from utils.commands import FLAGS
from utils.errors import UserError
from utils.flags import Positive, WrongValueError, named, read_by, whole_number
from utils.rank_variables import LAST_PORT, parsed_number

if TYPE_CHECKING:
    from tasks.config import RunConfig


class Nodes(NamedTuple):
    """The number of nodes of a job, from ``min`` to ``max``. If ``elastic`` is True, the number may change during the job, and
    the ranks then restart."""

    min: int
    max: int
    elastic: bool = False

    @property
    def counts(self) -> range:
        """All node counts that the job may have."""
        return range(self.min, self.max + 1)

    def __str__(self) -> str:
        return f"{self.min}:{self.max}" if self.elastic else str(self.max)


ONE_NODE = Nodes(1, 1)


def parse_nodes(text: str) -> Nodes:
    """Parses ``N`` or ``MIN:MAX``."""
    first, colon, last = text.partition(":")
    parts = [first, last] if colon else [first]
    counts = [parsed_number(part) or 0 for part in parts]
    if not all(counts) or counts[0] > counts[-1]:
        raise WrongValueError(f"{text!r} is neither a positive number N nor MIN:MAX")
    return Nodes(counts[0], counts[-1], bool(colon))


HOST = re.compile(r"[\w.:-]+|\[[\w.:-]+\]")
"""Pattern of the host names and IP addresses that torchrun accepts."""


def check_address(address: str, name: str) -> None:
    """Raises :class:`UserError` unless the address is HOST:PORT with a valid host name and port. ``name`` is the name of the
    address for the error message."""
    host, _, port = address.rpartition(":")
    number = parsed_number(port)
    if not host or number is None:
        raise UserError(f"{name} {address!r} is not of the form HOST:PORT")
    if not HOST.fullmatch(host):
        raise UserError(
            f"{name} {address!r}: {host!r} is neither a host name nor an IP address", remedy="pass HOST:PORT"
        )
    if not 1 <= number <= LAST_PORT:
        raise UserError(f"{name} {address!r}: the port must be within 1 .. {LAST_PORT}")


@FLAGS
@dataclass(frozen=True, kw_only=True)
class Placement:
    """Number of devices and nodes.

    Attributes:
        gpus: processes per node, one per GPU (default: all GPUs of the node).
        cpu: number of processes on the CPU, instead of GPUs (default without a GPU: 1).
        nodes: number of nodes; run the command on each node with its --node-rank. With MIN:MAX, nodes may join and leave, and
            need no --node-rank.
        node_rank: rank of this node, from 0.
        master: address of node 0 or, with MIN:MAX, of the node where all nodes meet. Required with --nodes unless SLURM,
            PyTorchJob or torchrun starts run.py.
        max_restarts: number of failures on a node after which a job with --nodes MIN:MAX ends (default: 10).
    """

    gpus: Positive | None = None
    cpu: Positive | None = None
    nodes: Annotated[Nodes | None, read_by(parse_nodes, n_tokens=1, accepts_keys=False, metavar="N|MIN:MAX")] = None
    node_rank: Annotated[int | None, read_by(whole_number(0))] = None
    master: Annotated[str | None, named("HOST:PORT")] = None
    max_restarts: Annotated[int | None, read_by(whole_number(0))] = None

    def check(self) -> None:
        """Raises :class:`UserError` if the flags contradict each other."""
        if self.gpus is not None and self.cpu is not None:
            raise UserError(f"--gpus {self.gpus} and --cpu {self.cpu} are mutually exclusive", remedy="use one of them")
        nodes = self.nodes or ONE_NODE
        if self.nodes is not None:
            self.check_restarts(self.nodes)
        if self.master and nodes == ONE_NODE:
            raise UserError("--master needs --nodes N")
        if self.master is not None:
            check_address(self.master, "--master")
        if self.node_rank is None:
            return
        if nodes.elastic:
            raise UserError(
                f"with --nodes {nodes}, node ranks are assigned automatically",
                where=f"--node-rank {self.node_rank}",
                remedy="remove it",
            )
        if not 0 <= self.node_rank < nodes.max:
            raise UserError(f"--node-rank {self.node_rank} is not within 0 .. {nodes.max - 1}")

    def check_restarts(self, nodes: Nodes) -> None:
        """Raises :class:`UserError` if restarts are limited although a job on these nodes never restarts its ranks."""
        if self.max_restarts is not None and not nodes.elastic:
            raise UserError("--max-restarts is only for --nodes MIN:MAX without --slurm", remedy="remove it")


def check_ranks(config: RunConfig, rank_counts: Sequence[int], flags: str) -> None:
    """Checks that the run supports these numbers of ranks, and that its steps do not depend on the number.

    Args:
        config: the config of the run.
        rank_counts: the numbers of ranks that the job may have.
        flags: the flags that allow these numbers, for error messages.

    Raises:
        UserError: if there are several numbers and ``train.global_batch`` is not set, or if the global batch, the chunks or the
            block order cannot be divided among the ranks.
    """
    if len(rank_counts) > 1 and config.train.global_batch is None:
        raise UserError(
            f"{flags} needs train.global_batch: without it, a different number of nodes would change which "
            "records a step uses",
            remedy="set train.global_batch=N",
        )
    for ranks in rank_counts:
        try:
            config.plan(ranks)
        except UserError as error:
            verb = "gives" if len(rank_counts) == 1 else "may give"
            raise UserError(f"{flags} {verb} {ranks} ranks: {error}") from None
