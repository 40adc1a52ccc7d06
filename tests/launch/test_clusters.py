"""The environment variables that launchers and schedulers set, and the placements of ranks on nodes that they describe."""

from __future__ import annotations

import pytest
import torch

from launch import torchrun
from launch.clusters import (
    LaunchContext,
    Rank,
    detect_context,
    first_host,
    launch_context,
    rendezvous_settings,
    unused_nodes_warning,
)
from launch.placement import Nodes, Placement, parse_nodes
from tests.messages import OneLine, naming
from utils.commands import call
from utils.distributed import process_group
from utils.errors import UserError


def placement_of(words: list[str]) -> Placement:
    """The placement given by a command line."""
    found: list[Placement] = []

    def keep(*, placement: Placement = Placement()) -> int:
        found.append(placement)
        return 0

    assert call(keep, words, "keep") == 0
    return found[0]


TORCHRUN = {
    "LOCAL_RANK": "1",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RUN_ID": "none",
}
"""Set by torchrun for a rank."""

STEP = {
    "SLURM_JOB_ID": "12017",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
"""Set by srun for the second of two tasks, with one task per node."""

BATCH = {name: value for name, value in STEP.items() if "STEP" not in name} | {"SLURM_JOB_NODELIST": "gpu[07-08]"}
"""Set by sbatch and salloc outside a step."""

INTERACTIVE = STEP | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}
"""Set by salloc if its shell is a step."""

TASK_A_GPU = STEP | {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_GPUS_ON_NODE": "4",
}

PYTORCHJOB = {"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "3", "RANK": "2"}
"""Set by the training operator in a pod."""

PYTORCHJOB_1_8 = PYTORCHJOB | {"WORLD_SIZE": "12", "PET_NODE_RANK": "2", "PET_NPROC_PER_NODE": "4", "PET_NNODES": "3"}
"""Set by later versions with nprocPerNode: 4. WORLD_SIZE counts processes there."""

ELASTIC_JOB = {
    "PET_RDZV_ENDPOINT": "job-worker-0:23456",
    "PET_RDZV_BACKEND": "c10d",
    "PET_NNODES": "1:3",
    "PET_MAX_RESTARTS": "100",
    "PET_NPROC_PER_NODE": "8",
}

TRAINJOB = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "auto",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400",
}
TWO = Nodes(2, 2)


@pytest.mark.parametrize(
    ("environment", "context"),
    [
        ({}, None),
        ({"MASTER_ADDR": "left", "MASTER_PORT": "over"}, None),
        (TORCHRUN, LaunchContext("torchrun", master="node0:29400", rank=Rank(3, 1, 4))),
        ({"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}, LaunchContext("a launcher", rank=Rank(0, 0, 1))),
        (STEP | TORCHRUN, LaunchContext("torchrun", master="node0:29400", rank=Rank(3, 1, 4))),
        (STEP, LaunchContext("SLURM job 12017", TWO, 1, "gpu07:17017")),
        (STEP | {"SLURM_GPUS_ON_NODE": "4"}, LaunchContext("SLURM job 12017", TWO, 1, "gpu07:17017", 4)),
        (STEP | {"SLURM_STEP_ID": "3"}, LaunchContext("SLURM job 12017", TWO, 1, "gpu07:17020")),
        (STEP | {"MASTER_PORT": "4242"}, LaunchContext("SLURM job 12017", TWO, 1, "gpu07:4242")),
        (TASK_A_GPU, LaunchContext("SLURM job 12017", TWO, 1, "gpu07:17017", rank=Rank(5, 1, 8, bound=True))),
        (BATCH, None),
        (INTERACTIVE, LaunchContext("SLURM job 12017")),
        (PYTORCHJOB, LaunchContext("PyTorchJob", Nodes(3, 3), 2, "job-master-0:23456")),
        (PYTORCHJOB | {"WORLD_SIZE": "1", "RANK": "0"}, LaunchContext("PyTorchJob")),
        (PYTORCHJOB_1_8, LaunchContext("Kubernetes (PET_*)", Nodes(3, 3), 2, "job-master-0:23456", 4)),
        (ELASTIC_JOB, LaunchContext("Kubernetes (PET_*)", Nodes(1, 3, True), None, "job-worker-0:23456", 8, 100)),
        (TRAINJOB, LaunchContext("Kubernetes (PET_*)", TWO, 1, "job-node-0-0.job:29400")),
        (TRAINJOB | {"PET_NNODES": "1", "PET_NODE_RANK": "0"}, LaunchContext("Kubernetes (PET_*)")),
    ],
)
def test_an_environment_describes_a_placement(environment, context):
    assert detect_context(environment) == context


def test_the_settings_of_a_rendezvous_are_read_and_a_mistake_is_named():
    conf = "last_call_timeout=1, is_host=0"
    assert rendezvous_settings({"PET_RDZV_CONF": conf}) == {"last_call_timeout": "1", "is_host": "0"}
    assert rendezvous_settings({}) == {}
    for wrong in ("last_call_timeout", "=1", "is_host="):
        with pytest.raises(UserError, match=naming("PET_RDZV_CONF", wrong, "KEY=VALUE")):
            rendezvous_settings({"PET_RDZV_CONF": wrong})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (STEP | {"SLURM_NODEID": "one"}, ("SLURM_NODEID", "'one'")),
        ({name: value for name, value in TORCHRUN.items() if name != "MASTER_ADDR"}, ("MASTER_ADDR",)),
        (TRAINJOB | {"PET_NNODES": "a few"}, ("PET_NNODES", "'a few'", "MIN:MAX")),
    ],
)
def test_a_broken_environment_is_reported_in_one_line(environment, message):
    with pytest.raises(UserError, match=naming(*message)) as caught:
        detect_context(environment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[07-08]", "gpu07"),
        ("gpu[3,5-9],big1", "gpu3"),
        ("big1,gpu[3-4]", "big1"),
        ("rack[1-2]n[04,6].example.org,x", "rack1n04.example.org"),
    ],
)
def test_the_first_host_of_a_compressed_list_is_found(hosts, first):
    """The expected host is the first one printed by `scontrol show hostnames`."""
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    ("flags", "environment", "context"),
    [
        ([], {}, LaunchContext("flags")),
        (["--nodes", "2", "--node-rank", "1", "--master", "h:1"], {}, LaunchContext("flags", TWO, 1, "h:1")),
        (["--nodes", "2", "--master", "h:1"], STEP, LaunchContext("flags", TWO, 1, "h:1")),
        (["--nodes", "2", "--master", "h:1", "--node-rank", "0"], STEP, LaunchContext("flags", TWO, 0, "h:1")),
        (["--nodes", "1:3", "--master", "h:1"], {}, LaunchContext("flags", Nodes(1, 3, True), None, "h:1")),
        (["--nodes", "2"], STEP, LaunchContext("SLURM job 12017", TWO, 1, "gpu07:17017")),
        (["--gpus", "2"], STEP, LaunchContext("SLURM job 12017", TWO, 1, "gpu07:17017")),
        (["--cpu", "1"], BATCH, LaunchContext("flags")),
    ],
)
def test_flags_have_priority_and_the_environment_fills_in_the_rest(flags, environment, context):
    assert launch_context(placement_of(flags), environment) == context


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--nodes", "2"], {}, ("--nodes 2", "--master HOST:PORT")),
        (["--nodes", "2", "--master", "h:1"], {}, ("--nodes 2", "--node-rank R", "0 to 1")),
        (["--nodes", "4"], STEP, ("--nodes 4", "SLURM job 12017", "node 1 of 2", "gpu07:17017")),
        (["--nodes", "2", "--node-rank", "0"], STEP, ("--node-rank 0", "SLURM job 12017")),
        (["--gpus", "2"], TORCHRUN, ("--gpus 2", "torchrun", "rank 3 of 4", "node0:29400")),
        (["--nodes", "2", "--master", "h:1"], TORCHRUN, ("--nodes 2", "rank")),
        (["--cpu", "8"], TASK_A_GPU, ("--cpu 8", "SLURM job 12017", "rank 5 of 8")),
    ],
)
def test_a_contradiction_is_reported_in_one_line(flags, environment, message):
    with pytest.raises(UserError, match=naming(*message)):
        launch_context(placement_of(flags), environment)


def test_a_job_of_several_nodes_without_srun_is_reported():
    assert unused_nodes_warning(BATCH) == OneLine("SLURM job 12017", "2 nodes", "srun")
    assert unused_nodes_warning(STEP) is None
    assert unused_nodes_warning(BATCH | {"SLURM_NNODES": "1"}) is None
    assert unused_nodes_warning({}) is None


@pytest.mark.parametrize(
    ("text", "nodes"), [("4", Nodes(4, 4)), ("2:2", Nodes(2, 2, True)), ("1:3", Nodes(1, 3, True))]
)
def test_node_counts_survive_the_round_trip(text, nodes):
    assert parse_nodes(text) == nodes
    assert str(nodes) == text


@pytest.mark.parametrize(
    ("visible", "local"),
    [(0, "1"), (4, "1"), (1, "0")],  # in the last case, each task sees only its own GPU
)
def test_a_task_per_gpu_becomes_a_rank_as_with_torchrun(monkeypatch, visible, local):
    environment: dict[str, str] = {}
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    torchrun.become_rank(detect_context(TASK_A_GPU))
    expected = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": local, "MASTER_ADDR": "gpu07", "MASTER_PORT": "17017"}
    expected["LOCAL_WORLD_SIZE"] = "4"
    assert {name: environment[name] for name in expected} == expected


def test_the_number_of_ranks_per_node_is_taken_from_torchrun(monkeypatch):
    environment = TORCHRUN | {"LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
    monkeypatch.setattr("os.environ", environment)
    torchrun.become_rank(detect_context(dict(environment)))
    assert (environment["WORLD_SIZE"], environment["LOCAL_WORLD_SIZE"]) == ("4", "2")


def test_a_node_with_fewer_gpus_than_tasks_is_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=naming("2 GPUs", "one task per GPU")):
        torchrun.become_rank(detect_context(TASK_A_GPU | {"SLURM_LOCALID": "2"}))
    with pytest.raises(UserError, match=naming("8 processes", "2 GPUs", "--gpus N")):
        torchrun.ranks_of_node(Placement(), detect_context(ELASTIC_JOB))
    assert torchrun.ranks_of_node(Placement(gpus=2), detect_context(ELASTIC_JOB)) == 2


def test_the_scheduler_sets_the_number_of_processes_even_without_a_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert torchrun.ranks_of_node(Placement(), detect_context(ELASTIC_JOB)) == 8
    assert torchrun.ranks_of_node(Placement(), detect_context(TRAINJOB)) == 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (STEP | {"SLURM_STEP_NUM_NODES": "²"}, r"SLURM_STEP_NUM_NODES = '²' is not a number"),
        (STEP | {"SLURM_NODEID": "5"}, r"SLURM_NODEID = 5 is not within 0 \.\. 1 \(2 nodes\)"),
        (TASK_A_GPU | {"SLURM_PROCID": "8"}, r"SLURM_PROCID = 8 is not within 0 \.\. 7"),
        (STEP | {"MASTER_PORT": "99999999"}, r"MASTER_PORT = 99999999 is not within 1 \.\. 65535"),
        (TORCHRUN | {"MASTER_PORT": "99999999"}, r"MASTER_PORT = 99999999 is not within 1 \.\. 65535"),
        (TORCHRUN | {"RANK": "5"}, r"RANK = 5 is not within 0 \.\. 3 \(4 ranks\)"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, r"WORLD_SIZE = 0 is not 1 or more"),
        (PYTORCHJOB | {"RANK": "3"}, r"RANK = 3 is not within 0 \.\. 2 \(3 nodes\)"),
        (PYTORCHJOB_1_8 | {"PET_NPROC_PER_NODE": "0"}, r"PET_NPROC_PER_NODE = 0 is not 1 or more"),
        (PYTORCHJOB_1_8 | {"PET_NODE_RANK": "3"}, r"PET_NODE_RANK = 3 is not within 0 \.\. 2"),
        (
            ELASTIC_JOB | {"PET_RDZV_ENDPOINT": "job:99999"},
            r"PET_RDZV_ENDPOINT 'job:99999': the port must be within 1 \.\. 65535",
        ),
    ],
)
def test_an_impossible_number_is_reported_before_anything_waits(environment, message):
    with pytest.raises(UserError, match=message):
        detect_context(environment)


def test_node_counts_of_a_job_must_be_ascii_digits():
    with pytest.raises(UserError, match="SLURM_NNODES = '²' is not a number"):
        unused_nodes_warning(BATCH | {"SLURM_NNODES": "²"})


def test_an_impossible_rank_is_also_reported_by_the_task_scripts(monkeypatch):
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK = 5"), process_group():
        pass
