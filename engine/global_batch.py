"""Accumulation: how many micro-batches make a global batch."""

from __future__ import annotations

from utils.batch import MicroBatch
from utils.errors import UserError


def accumulation(global_batch: int, micro_batch: MicroBatch, ranks: int, *, graphs: str | None = None) -> int:
    """Micro-batches per step and rank: ``global_batch = micro-batch x ranks x accumulation``.

    Args:
        graphs: the mode of ``train.compile`` if it records CUDA graphs, which allow one micro-batch per step; else None.

    Raises:
        UserError: if no whole number does; the message names the nearest sizes for which one does.
    """
    per_pass = micro_batch.size * ranks
    count, rest = divmod(global_batch, per_pass)
    if not rest and (count == 1 or graphs is None):
        return count
    on_ranks = f"{micro_batch.key} = {micro_batch.size} on {ranks} {'rank' if ranks == 1 else 'ranks'}"
    sizes = _micro_batch_sizes(global_batch, micro_batch.size, ranks, single=graphs is not None)
    remedies = [f"{micro_batch.key} to {_either(sizes)}"] if sizes else []
    if graphs is not None:
        fact = f"not one micro-batch of all ranks, and train.compile = {graphs} records graphs, which allow no accumulation"
        remedies.append(f"train.global_batch to {per_pass}")
        remedies += [] if rest else ["train.compile to true"]
    else:
        fact = f"not a multiple of {per_pass}"
        below = global_batch - rest
        remedies.append(f"train.global_batch to {_either([size for size in (below, below + per_pass) if size])}")
    raise UserError(f"train.global_batch = {global_batch}: {fact} ({on_ranks}); set {', or '.join(remedies)}")


def _micro_batch_sizes(global_batch: int, size: int, ranks: int, *, single: bool) -> list[int]:
    """The nearest smaller and larger divisor of a rank's share of the global batch; with ``single``, the share itself."""
    share, rest = divmod(global_batch, ranks)
    if rest or not share:
        return []
    if single:
        return [share]
    divisors = [candidate for candidate in range(1, share + 1) if share % candidate == 0]
    smaller = [divisor for divisor in divisors if divisor < size][-1:]
    return smaller + [divisor for divisor in divisors if divisor > size][:1]


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))
