"""Jobs whose nodes may join and leave. They use torch's elastic agent, adapted to the exit statuses of our ranks.

An agent runs on each node, and the agents meet at a rendezvous. When a node joins or is lost, all ranks stop and then restart
from the newest checkpoint on the available nodes. Our agent is written as described in the section "Customization" of the
documentation of torch.distributed.elastic.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.launcher.api import LaunchConfig

from launch.signals import killed_rank
from utils.errors import PeerLostError, reason_of
from utils.processes import INTERRUPTED, REQUEUE, USER_ERROR

SEPARATE_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Environment variable that makes the ranks create a new store each time they start. They must not share the agents' store, which
outlives the ranks and would keep old stop requests and the addresses of lost nodes."""


class Agent(LocalElasticAgent):
    """Starts and restarts the ranks of a node. After a node is lost or a rank fails, the ranks restart until the job's limit is
    reached. After a stop that another node requested, they always restart. After a user error, they never restart."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            statuses = {failure.exitcode for failure in result.failures.values()}
            if USER_ERROR in statuses:
                self._remaining_restarts = 0
            elif statuses & {REQUEUE, INTERRUPTED}:
                self._remaining_restarts += 1  # the agent counts an orderly stop as a failure
            if self._remaining_restarts > 0:  # otherwise the job ends, and its error is printed
                for rank, failure in result.failures.items():
                    if failure.exitcode < 0:
                        sys.stderr.write(f"{killed_rank(rank, -failure.exitcode)}\n")
        return result

    def _initialize_workers(self, worker_group: WorkerGroup) -> None:
        restarted = worker_group.state != WorkerState.INIT
        super()._initialize_workers(worker_group)
        nodes = worker_group.group_world_size
        if worker_group.group_rank == 0:  # may be a node that has just joined, whose ranks start for the first time
            started = "restarting" if restarted else "starting"
            sys.stderr.write(f"{started} the ranks on {nodes} {'node' if nodes == 1 else 'nodes'}\n")

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown(timeout=self._shutdown_timeout)  # torch allows ranks only 30 s to stop before a restart


def run_elastic(config: LaunchConfig, entrypoint: str, arguments: Sequence[str]) -> None:
    """Runs the ranks of this node until the job ends, like torch's ``elastic_launch`` but with our agent.

    Raises:
        ChildFailedError: if a rank failed and the job may not restart.
        PeerLostError: if the job ended on another node, or the nodes lost contact with each other.
        SignalException: if this process received a signal. This node then leaves the job, and the others continue.
        RendezvousError, DistError: if the nodes cannot reach each other at the start.
    """
    os.environ[SEPARATE_STORE] = "1"
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = config.signals_to_handle
    parameters = RendezvousParameters(
        backend=config.rdzv_backend,
        endpoint=config.rdzv_endpoint,
        run_id=config.run_id,
        min_nodes=config.min_nodes,
        max_nodes=config.max_nodes,
        local_addr=config.local_addr,
        **config.rdzv_configs,
    )
    rendezvous = get_rendezvous_handler(parameters)
    spec = WorkerSpec(
        role=config.role,
        local_world_size=config.nproc_per_node,
        entrypoint=entrypoint,
        args=tuple(arguments),
        rdzv_handler=rendezvous,
        max_restarts=config.max_restarts,
        monitor_interval=config.monitor_interval,
        local_addr=config.local_addr,
    )
    assert config.logs_specs is not None and config.shutdown_timeout is not None
    agent = Agent(spec, config.logs_specs, config.start_method, shutdown_timeout=config.shutdown_timeout)
    try:
        result = agent.run()
    except (RendezvousError, DistError) as error:
        if agent.get_worker_group().state == WorkerState.INIT:
            raise
        raise PeerLostError(
            f"the nodes of --nodes {config.min_nodes}:{config.max_nodes} lost contact with each other ("
            f"{reason_of(error)})",
            remedy=f"when the node of {config.rdzv_endpoint} is available again, run the same command to resume from "
            "the newest checkpoint",
        ) from None
    # This is not reached after a signal. In this case, the node leaves, but the rendezvous stays open for the other nodes.
    rendezvous.shutdown()
    if result is None and agent.get_worker_group().state != WorkerState.INIT:
        raise PeerLostError("the job ended on another node, which reports the reason")
    if result is None:
        sys.stderr.write("the job has already ended: this node joined too late\n")
    elif result.is_failed():
        raise ChildFailedError(entrypoint, result.failures)
