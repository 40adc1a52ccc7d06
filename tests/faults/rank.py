"""A rank of a run in a process that is forked when everything is imported."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys

import torch
from torch.utils import tensorboard  # noqa: F401 (imported once for all ranks)
from transformers import AutoTokenizer, BertTokenizer  # noqa: F401

from engine import trainer  # noqa: F401
from tasks import pretrain, pretrain_evaluation  # noqa: F401
from tasks.drawing import sheet  # noqa: F401
from tasks.run import main


def run_rank(rank: int, ranks: int, port: int, errors: str, arguments: list[str], file_bytes: int | None) -> None:
    """Run ``python -m tasks.run`` with ``arguments`` as one of ``ranks`` processes; see :class:`tests.faults.conftest.Job`."""
    with open(errors, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    multiprocessing.set_start_method("fork", force=True)  # as in a run; this process is of another context
    torch.set_num_threads(1)
    sys.exit(main(arguments))
