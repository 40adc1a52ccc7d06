"""Jobs whose nodes come and go: torch's elastic agent, with what it does when ranks end.

The agents of the nodes meet at a rendezvous. When a node comes or is lost, all ranks end and start again, on the nodes that are
there then, from the newest checkpoint. Built as torch's documentation shows under "Customization" of torch.distributed.elastic.
"""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace  # torchrun's own
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.run import config_from_args

from utils.errors import PeerLostError
from utils.processes import INTERRUPTED, MISTAKE, REQUEUE

OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Variable by which each start of the ranks has a store of its own. The agents' store outlives the ranks, and with it requests to
stop and addresses of nodes that are gone."""


class Agent(LocalElasticAgent):
    """Starts the ranks of a node, and starts them again: after a lost node or a failure as often as the job may restart, after a
    stop that another node asked for always, after a user's mistake never."""

    grace_s: int = 30
    """Seconds that ranks have to save a checkpoint and end."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            statuses = {failure.exitcode for failure in result.failures.values()}
            if MISTAKE in statuses:
                self._remaining_restarts = 0
            elif statuses & {REQUEUE, INTERRUPTED}:
                self._remaining_restarts += 1  # the agent counts as a failure that the ranks stopped in order
        return result

    def _initialize_workers(self, worker_group: WorkerGroup) -> None:
        again = worker_group.state != WorkerState.INIT
        super()._initialize_workers(worker_group)
        nodes = worker_group.group_world_size
        if again and worker_group.group_rank == 0:
            sys.stderr.write(f"the ranks start again, on {nodes} {'node' if nodes == 1 else 'nodes'}\n")

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *more: Any, **options: Any) -> None:
        if self._pcontext is not None:
            self._pcontext.close(death_sig, self.grace_s)  # torch gives ranks that make room for others 30 s
        super()._shutdown(death_sig, *more, **options)


def run_elastic(arguments: Namespace, grace_s: int) -> None:
    """Run the ranks of this node until the job ends.

    Args:
        arguments: of torchrun.
        grace_s: seconds that ranks have to save a checkpoint and end.

    Raises:
        ChildFailedError: if a rank failed, and the job may not restart.
        PeerLostError: if the job ended on another node, or the nodes lost each other.
        SignalException: if this process got a signal: this node leaves, and the others go on.
        RendezvousError, RuntimeError: if the nodes do not find each other at the start.
    """
    os.environ[OWN_STORE] = "1"
    config, entrypoint, rank_arguments = config_from_args(arguments)
    agent, handler = _agent_of(config, entrypoint, rank_arguments, grace_s)
    try:
        result = agent.run()
    except (RendezvousError, RuntimeError) as error:
        if agent.get_worker_group().state == WorkerState.INIT:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PeerLostError(
            f"the nodes of --nodes {config.min_nodes}:{config.max_nodes} lost each other ({reason}); when the node of "
            f"{config.rdzv_endpoint} is there again, the same command goes on from the newest checkpoint"
        ) from None
    # Not after a signal: the rendezvous stays open, this node leaves, and the others go on.
    handler.shutdown()
    if result is None and agent.get_worker_group().state != WorkerState.INIT:
        raise PeerLostError("the job was ended on another node, which tells why")
    if result is None:
        sys.stderr.write("the job is over: this node came too late\n")
    elif result.is_failed():
        raise ChildFailedError(str(entrypoint), result.failures)


def _agent_of(config: Any, entrypoint: Any, rank_arguments: list[str], grace_s: int) -> tuple[Agent, Any]:
    """The agent that runs the ranks of this node, and its rendezvous, as torchrun's ``config`` says."""
    if signals := getattr(config, "signals_to_handle", None):  # of torch since 2.10
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = signals
    handler = get_rendezvous_handler(
        RendezvousParameters(
            backend=config.rdzv_backend,
            endpoint=config.rdzv_endpoint,
            run_id=config.run_id,
            min_nodes=config.min_nodes,
            max_nodes=config.max_nodes,
            local_addr=config.local_addr,
            **config.rdzv_configs,
        )
    )
    spec = WorkerSpec(
        role=config.role,
        local_world_size=config.nproc_per_node,
        entrypoint=entrypoint,
        args=tuple(rank_arguments),
        rdzv_handler=handler,
        max_restarts=config.max_restarts,
        monitor_interval=config.monitor_interval,
        local_addr=config.local_addr,
    )
    assert config.logs_specs is not None
    agent = Agent(spec, config.logs_specs, config.start_method)
    agent.grace_s = grace_s
    return agent, handler
