"""Jobs on the machines of a Ray cluster, which share the disk of the files and of this project."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import UserError

J = TypeVar("J")
R = TypeVar("R")

AHEAD = 4
"""Jobs per core that run, or are done and wait for their turn."""
RETRIES = 1
"""How often a job is done again whose process or machine was lost."""
LOCAL = "local"


def in_order_on_ray(
    work: Callable[[J], R], jobs: Iterable[J], address: str, workers: int, died: Callable[[J], R]
) -> Generator[R, None, None]:
    """Yields ``work(job)`` in the order of ``jobs``, which are taken as they are needed.

    Args:
        work: a function at the top of a module.
        jobs: small: the files that they name are read where they are worked on.
        address: of the cluster; "auto": the one that this machine is of; "local": this machine alone.
        workers: cores to use, with "local".
        died: the result of a job that ended each process that did it.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _connect(address, workers)
    task = ray.remote(max_retries=RETRIES)(work)
    left, waiting = iter(jobs), deque[tuple[J, Any]]()
    try:
        while True:
            most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            waiting.extend((job, task.remote(job)) for job in islice(left, most - len(waiting)))
            if not waiting:
                return
            job, future = waiting.popleft()
            try:
                yield ray.get(future)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError):
                yield died(job)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
    finally:
        for _, future in waiting:
            ray.cancel(future, force=True)
        ray.shutdown()


def _connect(address: str, workers: int) -> Any:
    try:
        import ray
    except ImportError:
        raise UserError('--ray: needs Ray, which is not installed: pip install ".[ray]"') from None
    top = str(Path(__file__).resolve().parents[__name__.count(".")])
    paths = os.pathsep.join(filter(None, [top, os.environ.get("PYTHONPATH")]))
    options: dict[str, Any] = (
        {"num_cpus": workers, "include_dashboard": False} if address == LOCAL else {"address": address}
    )
    try:
        ray.init(
            log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": {"PYTHONPATH": paths}}, **options
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--ray {address}: {str(error).splitlines()[0]}; start a cluster with `ray start`, or give --ray local"
        ) from None
    return ray
