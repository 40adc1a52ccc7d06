"""Communication of a training step by formula: which collectives the ranks call, and how many bytes each rank sends.

Three parts of the code call collectives in a step. DDP sums the gradients once, in the backward pass of the last micro-batch;
FSDP2 gathers weights, and sums and scatters their gradients, in each micro-batch.
Each contrastive loss gathers embeddings and keys, and scatters the summed gradients of the embeddings. The trainer sums counts,
losses and status flags. ``tests/distributed/test_communication.py`` compares the formulas with the collectives of real steps.

In a ring of R ranks, a tensor has R parts. A ring forwards each part R - 1 times to gather it, R - 1 times to reduce and scatter
it, and 2 (R - 1) times for an all-reduce. So a rank sends (R - 1) / R of the whole tensor, or twice that, which is the minimum
(Patarasuk and Yuan, 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"). nccl-tests reports the "bus
bandwidth" of collectives by the same factors (its doc/PERFORMANCE.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from batches.losses import WORK
from engine.config import ShardingConfig
from engine.parallel.fsdp import Groups

Kind = Literal["all-reduce", "all-gather", "reduce-scatter"]

ROUNDS: dict[Kind, int] = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}
"""How often a ring forwards each part of the whole tensor to all other ranks."""

FLOAT32, INT64 = 4, 8
"""Bytes per number."""


@dataclass(frozen=True)
class Exchange:
    """A collective that a step calls on each of R ranks.

    Attributes:
        content: content of the tensors.
        kind: kind of collective.
        calls: number of calls in a step; None for one call per bucket of DDP or group of FSDP2.
        whole: bytes of the full tensor, over all calls: the result of an all-gather, or the argument of any other collective.
        participants: number of ranks that take part; None for all ranks.
    """

    content: str
    kind: Kind
    calls: int | None
    whole: int
    participants: int | None = None

    def sent(self, ranks: int) -> float:
        """Returns the bytes that a rank sends, and receives, in a step if the ranks form a ring."""
        ranks = self.participants or ranks
        return ROUNDS[self.kind] * self.whole * (ranks - 1) / ranks


@dataclass(frozen=True)
class StepSizes:
    """Sizes of a step on one rank, which determine its communication.

    Attributes:
        gradients: bytes of the gradients of all trainable parameters; frozen parameters have none.
        losses: number of losses.
        examples: examples of each contrastive loss in a micro-batch; each rank has the same number.
        embed_dim: width of an embedding; each example has two embeddings.
        accumulation: number of micro-batches.
        chunks: number of micro-batches whose embeddings are gathered at once (``model.contrastive.chunks``).
        groups: the parameters that a rank gathers together with FSDP2; None with DDP.
        mesh: the mesh of FSDP2; None with DDP.
    """

    gradients: int
    losses: int
    examples: Sequence[int]
    embed_dim: int
    accumulation: int = 1
    chunks: int = 1
    groups: Groups | None = None
    mesh: ShardingConfig | None = None

    def exchanges(self, ranks: int, *, logs: bool = False) -> list[Exchange]:
        """Returns the collectives of a step on ``ranks`` ranks; empty for a single rank.

        Args:
            ranks: number of ranks R, at least 1.
            logs: the step writes a line of metrics (``train.log_every``), for which ranks exchange their times, two numbers each.
        """
        if ranks == 1:
            return []
        gathered = sum(self.examples) * self.accumulation * ranks
        calls = len(self.examples) * self.accumulation // self.chunks
        embeddings = gathered * 2 * self.embed_dim * FLOAT32
        keys = gathered * 2 * INT64  # including the flag of valid examples
        extra = 1 + 2 * ranks * logs
        sums = (self.losses + len(WORK)) + (self.losses + 1 + extra)
        contrastive = [
            Exchange("embeddings", "all-gather", calls, embeddings),
            Exchange("keys", "all-gather", calls, keys),
            Exchange("gradients of embeddings", "reduce-scatter", calls, embeddings),
        ]
        return [
            *self._parameter_exchanges(),
            *(contrastive if calls else []),
            Exchange("counts and losses", "all-reduce", 2, sums * FLOAT32),
        ]

    def _parameter_exchanges(self) -> list[Exchange]:
        """Returns the exchanges of weights and gradients."""
        if self.mesh is None or self.groups is None:
            return [Exchange("gradients", "all-reduce", None, self.gradients)]
        participants, groups = self.mesh.shard, self.groups
        sharded = self.gradients - groups.replicated
        # Blocks are gathered for the forward and again for the backward pass; gradient caching adds a forward pass.
        cached = self.chunks > 1
        gathered = (groups.rest + (2 + cached) * sum(groups.blocks)) * self.accumulation
        found = [
            Exchange("weights", "all-gather", None, gathered, participants),
            Exchange("gradients", "reduce-scatter", None, sharded * self.accumulation, participants),
            Exchange("norm and replicated gradients", "all-reduce", 2, FLOAT32 + self.gradients - sharded),
        ]
        if self.mesh.replicate > 1:
            shard = sharded // self.mesh.shard
            found.append(Exchange("gradients of copies", "all-reduce", None, shard, self.mesh.replicate))
        return found

    def sent(self, ranks: int) -> float:
        """Returns the bytes that a rank sends in a step if the ranks form a ring."""
        return sum(exchange.sent(ranks) for exchange in self.exchanges(ranks))
