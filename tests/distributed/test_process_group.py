"""How a rank joins the process group and leaves it."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.messages import naming
from tests.ranks import on_each_of_two
from utils import distributed
from utils.errors import PeerLostError


def leave(rank: int, folder: Path) -> None:
    saved = folder / "saved"
    with distributed.process_group():
        if rank == 0:
            time.sleep(1)
            saved.touch()
    assert saved.exists(), "rank 1 must not leave while rank 0 is saving"


def test_no_rank_leaves_before_the_others_have_finished(tmp_path):
    on_each_of_two(leave, tmp_path)


@pytest.fixture
def second_gpu(monkeypatch):
    """Simulates the process of the second GPU, and returns the arguments of the process group."""
    asked: list[tuple] = []
    before = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *backend, **options: asked.append((*backend, options)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    yield asked
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_on_gpus_the_group_is_bound_to_the_device_and_waits_for_a_long_validation(second_gpu, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with distributed.process_group() as device:
        assert device == torch.device("cuda", 1)
    ((backend, options),) = second_gpu
    assert backend == "nccl"
    assert options["device_id"] == device
    assert options["timeout"] > timedelta(hours=1)


def test_attention_on_a_gpu_does_not_build_a_plan_for_each_shape(second_gpu, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    torch.backends.cuda.enable_cudnn_sdp(True)
    with distributed.process_group():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not second_gpu, "a single process must not join a group"


NCCL = "NCCL error in: ProcessGroupNCCL.cpp:4105, "


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("[gloo/pair.cc:534] Connection closed by peer [10.0.0.2]:51234"), "broke"),
        (RuntimeError("Timed out waiting 900000ms for recv operation to complete"), "timed out"),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), "broke"),
        (dist.DistStoreError("wait timeout after 900000ms, keys: /0//barrier"), "timed out"),
        (dist.DistBackendError(f"{NCCL}remote process exited or there was a network error"), "broke"),
        (
            dist.DistBackendError(f"{NCCL}unhandled system error\nncclSystemError: System call (e.g. socket) failed"),
            "broke",
        ),
        (dist.DistBackendError("NCCL communicator was aborted on rank 1."), "broke"),
        (
            dist.DistBackendError("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"),
            "timed out",
        ),
    ],
)
def test_a_lost_peer_is_the_same_event_with_every_backend(second_gpu, monkeypatch, error, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PeerLostError, match=naming("another rank", message)), distributed.process_group():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        dist.DistBackendError(f"{NCCL}unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed."),
        dist.DistBackendError(f"{NCCL}invalid usage\nncclInvalidUsage: Duplicate GPU detected"),
    ],
)
def test_an_error_of_this_rank_does_not_become_a_lost_peer(second_gpu, monkeypatch, error):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(type(error)) as raised, distributed.process_group():
        raise error
    assert raised.value is error


def change_timeouts(rank: int, folder: Path) -> None:
    """Rank 1 changes the timeout one second after rank 0, each time. Rank 0 must wait for it only where the time gets shorter."""
    returned_first = []
    with distributed.process_group(timeout_min=2.0):
        for minutes in (3.0, 3.0, 1.0, 1.0, 2.0):
            returned = folder / f"returned-{len(returned_first)}"
            distributed.barrier()
            if rank == 1:
                time.sleep(1)
                returned_first.append(returned.exists())
            distributed.set_timeout(minutes)
            if rank == 0:
                returned_first.append(True)
                returned.touch()
    assert rank == 0 or returned_first == [True, True, False, True, True]


def test_ranks_wait_for_each_other_before_the_time_for_collectives_gets_shorter(tmp_path):
    """Otherwise, a rank could start its second step with a limit that another rank exceeds in its first step."""
    on_each_of_two(change_timeouts, tmp_path)


def test_the_device_has_finished_before_ranks_agree_on_a_shorter_time(monkeypatch):
    done: list[str] = []
    monkeypatch.setattr(distributed.accelerator, "synchronize", lambda: done.append("device"))
    monkeypatch.setattr(dist, "barrier", lambda: done.append("ranks"))
    with distributed.group_of_one(torch.device("cpu")):
        distributed.set_timeout(distributed.TIMEOUT_MIN)
        done.clear()
        distributed.set_timeout(1.0)
        distributed.set_timeout(1.0)
        distributed.set_timeout(2.0)
    assert done == ["device", "ranks"]


def test_the_flight_recorder_writes_to_the_run_folder_and_keeps_the_users_settings(tmp_path, monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("TORCH_FR_", "TORCH_NCCL_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", {**os.environ, "TORCH_FR_BUFFER_SIZE": "7"})
    distributed.record_collectives(tmp_path)
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "7"
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path}/collectives_rank_"


@pytest.mark.filterwarnings("error")
def test_the_timeout_of_ranks_can_be_changed_without_a_warning():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        distributed.set_timeout(7.0)
        group = dist.distributed_c10d._get_default_group()
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(minutes=7)
    finally:
        dist.destroy_process_group()
