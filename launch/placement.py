"""On how many devices and nodes a run is started: the flags of the commands that start runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from utils.commands import FLAGS
from utils.errors import UserError
from utils.flags import Positive, WrongValueError, read_by
from utils.rank_variables import LAST_PORT, whole_number


class Nodes(NamedTuple):
    """Number of nodes: fixed, or ``elastic``, from ``least`` to ``most``, with restarts when it changes."""

    least: int
    most: int
    elastic: bool = False

    @property
    def counts(self) -> range:
        """The numbers of nodes that there may be."""
        return range(self.least, self.most + 1)

    def __str__(self) -> str:
        return f"{self.least}:{self.most}" if self.elastic else str(self.most)


ONE_NODE = Nodes(1, 1)


def parse_nodes(text: str) -> Nodes:
    """``N`` or ``MIN:MAX``."""
    least, colon, most = text.partition(":")
    parts = [least, most] if colon else [least]
    counts = [whole_number(part) or 0 for part in parts]
    if not all(counts) or counts[0] > counts[-1]:
        raise WrongValueError(f"{text!r} is neither a positive number N nor MIN:MAX")
    return Nodes(counts[0], counts[-1], bool(colon))


def check_address(address: str, name: str) -> None:
    """Raises :class:`UserError`, in which ``name`` names the address, unless it is HOST:PORT with a port that exists."""
    host, _, port = address.rpartition(":")
    number = whole_number(port)
    if not host or number is None:
        raise UserError(f"{name} {address!r} is not of the form HOST:PORT")
    if not 1 <= number <= LAST_PORT:
        raise UserError(f"{name} {address!r}: ports are within 1 .. {LAST_PORT}")


@FLAGS
@dataclass(frozen=True, kw_only=True)
class Placement:
    """Numbers of devices and nodes.

    Attributes:
        gpus: processes per node, one a GPU (default: every GPU there is).
        cpu: processes on the CPU, instead of GPUs (default without a GPU: 1).
        nodes: number of nodes; run the line on each, with its --node-rank. MIN:MAX: nodes may come and go, without numbers.
        node_rank: this node's number, from 0.
        master: HOST:PORT of node 0, or for MIN:MAX of the node where all meet; needed with --nodes, except where SLURM,
            PyTorchJob or torchrun start run.py, which tell the nodes.
    """

    gpus: Positive | None = None
    cpu: Positive | None = None
    nodes: Annotated[Nodes | None, read_by(parse_nodes, n_tokens=1, accepts_keys=False)] = None
    node_rank: int | None = None
    master: str | None = None

    def check(self) -> None:
        """Raises :class:`UserError` if the flags contradict each other."""
        if self.gpus is not None and self.cpu is not None:
            raise UserError(f"--gpus {self.gpus} and --cpu {self.cpu} exclude each other; give one of them")
        nodes = self.nodes or ONE_NODE
        if self.master and nodes == ONE_NODE:
            raise UserError("--master needs --nodes N")
        if self.master is not None:
            check_address(self.master, "--master")
        if self.node_rank is None:
            return
        if nodes.elastic:
            raise UserError(
                f"--node-rank {self.node_rank}: with --nodes {nodes}, nodes number themselves; leave it out"
            )
        if not 0 <= self.node_rank < nodes.most:
            raise UserError(f"--node-rank {self.node_rank} is not within 0 .. {nodes.most - 1}")
