"""Computes the batch, memory and communication time of a step on different numbers of GPUs, for ``run.py plan --nodes``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools.plan.rows import aligned, or_unknown
from tools.steps.communication import StepSizes
from utils.printing import bytes_of

RANKS = (8, 64, 512)
"""Numbers of GPUs that are shown in addition to the requested number."""


@dataclass(frozen=True)
class Scale:
    """A step on ``ranks`` GPUs, one rank each, on ``nodes`` nodes.

    Attributes:
        micro_batch, global_batch: number of examples of the leading stream.
        accumulation: number of micro-batches per GPU.
        negatives: number of negatives of each example in the first contrastive loss; 0 if the model has no contrastive loss.
        memory: memory per GPU in bytes.
        step_s: step time in seconds without communication; None if unknown.
        sent: number of bytes of each type of content that a rank sends in a step (:mod:`tools.steps.communication`).
        network_s: seconds of communication between nodes; None if unknown, or for a single node.
        network_share: fraction of the step spent on communication, without any overlap; None if unknown.
    """

    ranks: int
    nodes: int
    micro_batch: int
    accumulation: int
    global_batch: int
    negatives: int
    memory: int
    step_s: float | None
    sent: dict[str, float]
    network_s: float | None
    network_share: float | None


def scale_of(
    sizes: StepSizes,
    ranks: int,
    micro_batch: int,
    *,
    memory: int,
    step_s: float | None,
    nodes: int,
    network: float | None,
) -> Scale:
    """Computes a step of the given sizes on ``ranks`` GPUs.

    Args:
        sizes: sizes of the step on one rank.
        ranks: number of ranks R.
        micro_batch: number of examples of the leading stream.
        memory: memory per GPU in bytes.
        step_s: step time in seconds without communication; None if unknown.
        nodes: number of nodes that contain the GPUs.
        network: bus bandwidth of collectives between nodes in 1e9 bytes/s; None if unknown.
    """
    sent = {exchange.content: exchange.sent(ranks) for exchange in sizes.exchanges(ranks)}
    network_s = None if network is None or nodes == 1 else sum(sent.values()) / (network * 1e9)
    compared = sizes.chunks * ranks * sizes.examples[0] if sizes.examples else 1
    return Scale(
        ranks=ranks,
        nodes=nodes,
        micro_batch=micro_batch,
        accumulation=sizes.accumulation,
        global_batch=micro_batch * ranks * sizes.accumulation,
        negatives=compared - 1,
        memory=memory,
        step_s=step_s,
        sent=sent,
        network_s=network_s,
        network_share=None if network_s is None or step_s is None else network_s / (network_s + step_s),
    )


def scaling_lines(scales: Sequence[Scale], refused: dict[int, str], requested: int) -> list[str]:
    """Returns a table with a line for each number of GPUs, and a line that lists what each rank sends on the ``requested`` number
    of GPUs."""
    parts = next(", ".join(_parts(scale)) for scale in scales if scale.ranks == requested)
    return [
        *aligned(_rows(scales)),
        *(f"{ranks:,} GPUs: {reason}" for ranks, reason in refused.items()),
        "",
        f"each of {requested:,} GPUs sends per step: {parts or 'nothing'}",
    ]


def _rows(scales: Sequence[Scale]) -> list[tuple[str, ...]]:
    titles = [
        "GPUs",
        "nodes",
        "micro-batch",
        "accumulation",
        "examples per step",
        "negatives",
        "memory",
        "sent",
        "time",
    ]
    rows = [tuple(titles), *map(_row, scales)]
    if all(scale.network_s is None for scale in scales):
        return rows
    network = [("on the network", "share"), *map(_network, scales)]
    return [row + more for row, more in zip(rows, network, strict=True)]


def _network(scale: Scale) -> tuple[str, str]:
    if scale.nodes == 1:
        return "within a node", ""
    return or_unknown(scale.network_s, "{:.3g} s"), or_unknown(scale.network_share, "{:.0%}")


def _row(scale: Scale) -> tuple[str, ...]:
    return (
        f"{scale.ranks:,}",
        f"{scale.nodes:,}",
        f"{scale.micro_batch:,}",
        f"{scale.accumulation:,}",
        f"{scale.global_batch:,}",
        f"{scale.negatives:,}" if scale.negatives else "none",
        bytes_of(scale.memory),
        bytes_of(sum(scale.sent.values())),
        or_unknown(scale.step_s, "{:.3g} s"),
    )


def _parts(scale: Scale) -> list[str]:
    return [f"{content} {bytes_of(size)}" for content, size in scale.sent.items()]
