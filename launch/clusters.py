"""Detects from environment variables how a job was launched: by torchrun, by PyTorchJob or TrainJob on Kubernetes, or by SLURM.

The names of the variables come from torchrun's manual (``LOCAL_RANK`` and others for ranks, ``PET_*`` for its flags), from
Kubeflow's training operator (``pkg/controller.v1/pytorch``: envvar.go, elastic.go) and trainer
(``pkg/runtime/framework/plugins/torch``), and from srun's manual.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from launch.placement import ONE_NODE, Nodes, Placement, check_address, parse_nodes
from utils.errors import UserError
from utils.flags import WrongValueError
from utils.rank_variables import Variables, is_rank

BY_FLAGS = "flags"
"""Name of a context that the flags of the command line describe."""

PORT = 29500
"""Default port of node 0, as in torchrun."""

SLURM_PORTS = range(15000, 25000)
"""Ports for SLURM jobs, which are chosen by the job's ID so that two jobs on one node use different ports. They are below the
kernel's ephemeral ports."""


class Rank(NamedTuple):
    """The rank of this process.

    Attributes:
        global_rank: rank among all ranks of the job.
        local_rank: rank among the ranks of this node.
        world_size: number of ranks of the job.
        bound: True if the scheduler may have made only one GPU visible to this process.
    """

    global_rank: int
    local_rank: int
    world_size: int
    bound: bool = False


@dataclass(frozen=True)
class LaunchContext:
    """How a job was launched, and the role of this process in it.

    Attributes:
        name: what started this process, such as "torchrun", for messages.
        nodes: number of nodes in the job.
        node_rank: rank of this node; None if it is assigned at the rendezvous, where the nodes of an elastic job meet.
        master: HOST:PORT of node 0 or of the rendezvous; None for a single node, which does not need an address.
        processes: number of ranks on this node; if None, one per GPU, or one if there is no GPU.
        max_restarts: number of failures after which an elastic job ends; None for the default.
        rank: the rank of this process; None if this process starts the ranks of its node.
    """

    name: str
    nodes: Nodes = ONE_NODE
    node_rank: int | None = 0
    master: str | None = None
    processes: int | None = None
    max_restarts: int | None = None
    rank: Rank | None = None

    def __str__(self) -> str:
        if self.rank is not None:
            where = f"rank {self.rank.global_rank} of {self.rank.world_size}"
        elif self.nodes.elastic:
            where = f"one of {self.nodes} nodes"
        else:
            where = f"node {self.node_rank} of {self.nodes}"
        return f"{self.name}: {where}" + (f", {self.master}" if self.master else "")

    @property
    def detected(self) -> bool:
        """True if another launcher or a scheduler has started this process."""
        return self.name != BY_FLAGS

    @property
    def first(self) -> bool:
        """True if this process prints messages on behalf of the whole job."""
        return self.rank.global_rank == 0 if self.rank is not None else not self.node_rank


def detect_context(environment: Mapping[str, str]) -> LaunchContext | None:
    """Returns the launch context that the environment of this process describes, or None if no launcher is detected.

    Raises:
        UserError: if a variable is invalid or missing.
    """
    variables = Variables(environment)
    if is_rank(environment):
        return _torchrun_context(variables)
    if variables.has("PET_NNODES") or variables.has("PET_NODE_RANK") or variables.has("PET_RDZV_ENDPOINT"):
        return _torchrun_flags_context(variables)
    if variables.has("SLURM_JOB_ID") and (variables.has("SLURM_STEP_ID") or variables.has("SLURM_STEPID")):
        return _slurm_context(variables)
    if variables.has("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"):
        nodes = variables.number("WORLD_SIZE", minimum=1)
        return _fixed_context("PyTorchJob", variables, nodes, variables.index("RANK", count=nodes, of="nodes"), None)
    return None


def launch_context(placement: Placement, environment: Mapping[str, str]) -> LaunchContext:
    """Determines the launch context from the flags, or from the environment if a flag is not set.

    Raises:
        UserError: if flags contradict the environment, or the address of node 0 or the rank of this node is missing.
    """
    context = _context_of(placement, environment)
    placement.check_restarts(context.nodes)
    return context if placement.max_restarts is None else replace(context, max_restarts=placement.max_restarts)


def _context_of(placement: Placement, environment: Mapping[str, str]) -> LaunchContext:
    if placement.master is not None and not is_rank(environment):
        nodes, rank = placement.nodes or ONE_NODE, placement.node_rank
        if rank is None and (detected := detect_context(environment)) is not None and detected.nodes == nodes:
            rank = detected.node_rank
        if rank is None and not nodes.elastic and nodes.max > 1:
            raise UserError(
                f"also pass --node-rank R, the rank of this node, from 0 to {nodes.max - 1}", where=f"--nodes {nodes}"
            )
        return LaunchContext(BY_FLAGS, nodes, None if nodes.elastic else rank or 0, placement.master)
    context = detect_context(environment)
    if context is None:
        if placement.nodes not in (None, ONE_NODE):
            raise UserError("--nodes needs --master HOST:PORT", where=f"--nodes {placement.nodes}")
        return LaunchContext(BY_FLAGS)
    places = (("--nodes", placement.nodes, context.nodes), ("--node-rank", placement.node_rank, context.node_rank))
    devices = (("--master", placement.master), ("--gpus", placement.gpus), ("--cpu", placement.cpu))
    for flag, value in (*(each[:2] for each in places), *devices):
        if value is not None and context.rank is not None:
            raise UserError(f"{flag} {value}: this process is already a rank ({context})", remedy=f"remove {flag}")
    for flag, value, found in places:
        if value is not None and value != found:
            raise UserError(
                f"{flag} {value}: this process was started as {context}", remedy=f"remove {flag}, or pass --master too"
            )
    return context


def unused_nodes_warning(environment: Mapping[str, str]) -> str | None:
    """Returns a warning if this process runs in a SLURM job with several nodes but was not started by srun, otherwise None."""
    variables = Variables(environment)
    if not variables.has("SLURM_JOB_ID", "SLURM_NNODES") or variables.has("SLURM_STEP_ID"):
        return None
    if (nodes := variables.number("SLURM_NNODES", minimum=1)) == 1:
        return None
    return (
        f"SLURM job {variables.text('SLURM_JOB_ID')} has {nodes} nodes, but this run uses only one; start it with srun to use "
        "all of them"
    )


def rendezvous_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the settings of the rendezvous of an elastic job in PET_RDZV_CONF, such as ``last_call_timeout=10``."""
    conf = environment.get("PET_RDZV_CONF", "")
    settings = [pair.strip().partition("=") for pair in conf.split(",") if pair.strip()]
    if not all(key and value for key, _, value in settings):
        raise UserError(
            f"PET_RDZV_CONF = {conf!r} is not of the form KEY=VALUE,KEY=VALUE", remedy="correct it, or unset it"
        )
    return {key: value for key, _, value in settings}


def _torchrun_context(variables: Variables) -> LaunchContext:
    """Returns the context of a rank that was started by torchrun, or by another launcher that sets the same variables."""
    ranks = variables.number("WORLD_SIZE", minimum=1)
    global_rank = variables.index("RANK", count=ranks, of="ranks")
    rank = Rank(global_rank, variables.index("LOCAL_RANK", count=ranks, of="ranks"), ranks)
    master = None if rank.world_size == 1 else f"{variables.text('MASTER_ADDR')}:{variables.port('MASTER_PORT')}"
    return LaunchContext("torchrun" if variables.has("TORCHELASTIC_RUN_ID") else "a launcher", master=master, rank=rank)


def _torchrun_flags_context(variables: Variables) -> LaunchContext:
    """Returns the context of a node whose ``PET_*`` variables contain flags for torchrun."""
    try:
        nodes = parse_nodes(variables.text("PET_NNODES")) if variables.has("PET_NNODES") else ONE_NODE
    except WrongValueError as error:
        raise UserError(f"{error}", where="PET_NNODES") from None
    processes = None
    if variables.has("PET_NPROC_PER_NODE") or variables.has("PET_N_PROC_PER_NODE"):
        names = ("PET_NPROC_PER_NODE", "PET_N_PROC_PER_NODE")
        if not re.fullmatch("[a-z]+", variables.text(*names)):  # auto, gpu, cpu
            processes = variables.number(*names, minimum=1)
    name = "Kubernetes (PET_*)"
    if not variables.has("PET_RDZV_ENDPOINT"):
        rank = variables.index("PET_NODE_RANK", "RANK", count=nodes.max, of="nodes") if nodes.max > 1 else 0
        return _fixed_context(name, variables, nodes.max, rank, processes)
    restarts = variables.number("PET_MAX_RESTARTS") if variables.has("PET_MAX_RESTARTS") else None
    endpoint = variables.text("PET_RDZV_ENDPOINT")
    master = endpoint if re.search(r":\d+$", endpoint) else f"{endpoint}:{PORT}"
    check_address(master, "PET_RDZV_ENDPOINT")
    return LaunchContext(name, nodes._replace(elastic=True), None, master, processes, restarts)


def _fixed_context(name: str, variables: Variables, nodes: int, node_rank: int, processes: int | None) -> LaunchContext:
    if nodes == 1:
        return LaunchContext(name, processes=processes)
    port = variables.port("PET_MASTER_PORT", "MASTER_PORT") if _has_port(variables) else PORT
    master = f"{variables.text('PET_MASTER_ADDR', 'MASTER_ADDR')}:{port}"
    return LaunchContext(name, Nodes(nodes, nodes), node_rank, master, processes)


def _has_port(variables: Variables) -> bool:
    return variables.has("PET_MASTER_PORT") or variables.has("MASTER_PORT")


def _slurm_context(variables: Variables) -> LaunchContext:
    """Returns the context of a task in a SLURM job step. A task starts the ranks of its node if there is one task per node.
    Otherwise, each task is a rank."""
    job = variables.number("SLURM_JOB_ID")
    name = f"SLURM job {job}"
    nodes = variables.number("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES", minimum=1)
    tasks = variables.number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS", minimum=1)
    processes = variables.number("SLURM_GPUS_ON_NODE") if variables.has("SLURM_GPUS_ON_NODE") else None
    if tasks == 1:
        return LaunchContext(name, processes=processes or None)
    host = first_host(variables.text("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"))
    step = variables.number("SLURM_STEP_ID", "SLURM_STEPID")
    port = (
        variables.port("MASTER_PORT") if variables.has("MASTER_PORT") else SLURM_PORTS[(job + step) % len(SLURM_PORTS)]
    )
    master = f"{host}:{port}"
    node_rank = variables.index("SLURM_NODEID", count=nodes, of="nodes")
    if tasks == nodes:
        return LaunchContext(name, Nodes(nodes, nodes), node_rank, master, processes or None)
    global_rank = variables.index("SLURM_PROCID", count=tasks, of="tasks")
    rank = Rank(global_rank, variables.index("SLURM_LOCALID", count=tasks, of="tasks"), tasks, bound=True)
    return LaunchContext(name, Nodes(nodes, nodes), node_rank, master, rank=rank)


def first_host(hosts: str) -> str:
    """Returns the first host of a SLURM host list, such as node03 for ``node[03-05,9],big1``."""
    first = re.split(r",(?![^\[]*\])", hosts)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)
