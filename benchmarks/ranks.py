"""Runs a function on two ranks of this machine."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from utils.errors import UserError

RANKS = 2


def on_two_ranks(work: Callable[..., Any], *arguments: Any, backend: str = "gloo") -> Any:
    """Calls ``work(*arguments)`` on two ranks, in new processes with one thread each, and returns the result of rank 0.

    Raises:
        UserError: if one of the processes failed; the message is the last line of its error.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.pt"
        try:
            mp.start_processes(_rank, (work, arguments, backend, port, out), nprocs=RANKS, start_method="spawn")
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            raise UserError(f"{str(error).strip().splitlines()[-1]}", where=backend) from None
        return torch.load(out, weights_only=True)


def _rank(rank: int, work: Callable[..., Any], arguments: tuple[Any, ...], backend: str, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    result = work(*arguments)
    if rank == 0:
        torch.save(result, out)
    dist.destroy_process_group()
