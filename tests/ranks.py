"""Ranks of a job, in processes forked from one that has imported everything, so that they start immediately."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # imported once for all ranks, like the modules below
import torch.multiprocessing as mp
from torch.utils import tensorboard  # noqa: F401
from transformers import AutoTokenizer, BertTokenizer  # noqa: F401

from engine import trainer  # noqa: F401
from tasks import captioning, grounding, nlvr, pretrain, pretrain_evaluation, retrieval, run, vqa  # noqa: F401
from tasks.drawing import sheet  # noqa: F401
from utils import distributed

START_METHOD = "forkserver"
TIMEOUT_S = 300
CONTEXT = multiprocessing.get_context(START_METHOD)
CONTEXT.set_forkserver_preload([__name__])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def become_rank(rank: int, ranks: int, port: int) -> None:
    """Sets the environment variables like torchrun."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    multiprocessing.set_start_method("fork", force=True)  # as in a run; this process belongs to another context
    torch.set_num_threads(1)


def run_rank(rank: int, ranks: int, port: int, errors: str, arguments: list[str], file_bytes: int | None) -> None:
    """Runs ``python -m tasks.run`` with ``arguments`` as one of ``ranks`` processes; see :class:`tests.faults.conftest.Job`."""
    with open(errors, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    become_rank(rank, ranks, port)
    sys.exit(run.main(arguments))


def run_alone(cwd: Path, *arguments: str) -> tuple[int, str]:
    """Runs ``python -m tasks.run`` in a folder, and returns the exit status and its stderr."""
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "stderr.txt"
        process = CONTEXT.Process(target=_alone, args=(cwd, str(errors), list(arguments)))
        process.start()
        process.join(300)
        assert process.exitcode is not None, "the run does not end"
        return process.exitcode, errors.read_text(encoding="utf-8")


def _alone(cwd: Path, errors: str, arguments: list[str]) -> None:
    os.chdir(cwd)
    run_rank(0, 1, 0, errors, arguments, None)


def on_two_ranks(job: Any, folder: Path) -> list[Any]:
    """Returns the results of a picklable job on each of two gloo ranks. Files are left in ``folder``."""
    return on_ranks(2, job, folder)


def on_ranks(ranks: int, job: Any, folder: Path) -> list[Any]:
    """Like :func:`on_two_ranks`, on any number of ranks."""
    _on_each(ranks, _saved, (job, folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def on_each_of_two(function: Any, *arguments: Any) -> None:
    """Calls a function with its rank and arguments on two ranks that have not joined a process group. An error of a rank is
    raised here."""
    _on_each(2, function, arguments)


def _on_each(ranks: int, function: Any, arguments: tuple[Any, ...]) -> None:
    given = (ranks, free_port(), function, arguments)
    context = mp.start_processes(_called, given, nprocs=ranks, start_method=START_METHOD, join=False)
    deadline = time.monotonic() + TIMEOUT_S
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise AssertionError(f"the ranks did not end within {TIMEOUT_S} s")


def _called(rank: int, ranks: int, port: int, function: Any, arguments: tuple[Any, ...]) -> None:
    become_rank(rank, ranks, port)
    function(rank, *arguments)


def _saved(rank: int, job: Any, folder: Path) -> None:
    with distributed.process_group():
        torch.save(job(), folder / f"{rank}.pt")
