"""Runs jobs on a Ray cluster. Its machines must share the disk that contains the files and this project."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import UserError
from utils.extras import require

J = TypeVar("J")
R = TypeVar("R")

AHEAD = 4
"""Maximum number of running and finished jobs per core whose results have not yet been yielded."""
RETRIES = 1
"""Number of retries of a job whose process or machine was lost."""
LOCAL = "local"


def in_order_on_ray(
    work: Callable[[J], R], jobs: Iterable[J], address: str, workers: int, died: Callable[[J], R]
) -> Generator[R, None, None]:
    """Runs jobs on a Ray cluster and yields ``work(job)`` in the order of ``jobs``, which are fetched as needed.

    Args:
        work: a top-level function, or a :class:`functools.partial` of one.
        jobs: the jobs. Jobs should be small: they contain the paths of the files that the workers read.
        address: address of the cluster; "auto" for the cluster of this machine, "local" for this machine alone.
        workers: number of cores to use if ``address`` is "local".
        died: function that returns the result for a job that killed its process in every attempt.

    Raises:
        UserError: Ray is not installed, or connecting to the cluster failed.
    """
    ray = _connect(address, workers)

    def run(job: J) -> R:  # Ray does not accept a functools.partial
        return work(job)

    task = ray.remote(max_retries=RETRIES)(run)
    remaining, waiting = iter(jobs), deque[tuple[J, Any]]()
    try:
        while True:
            limit = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            waiting.extend((job, task.remote(job)) for job in islice(remaining, limit - len(waiting)))
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
    ray = require("ray", "ray", where="--ray")
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
            f"{str(error).splitlines()[0]}",
            where=f"--ray {address}",
            remedy="start a cluster with `ray start`, or pass --ray local",
        ) from None
    return ray
