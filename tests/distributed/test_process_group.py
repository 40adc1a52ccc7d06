"""How a rank joins the process group and leaves it."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import on_each_of_two
from utils import distributed


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


def test_the_flight_recorder_writes_to_the_run_folder_and_keeps_the_users_settings(tmp_path, monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("TORCH_FR_", "TORCH_NCCL_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", {**os.environ, "TORCH_NCCL_TRACE_BUFFER_SIZE": "7"})
    distributed.record_collectives(tmp_path)
    assert os.environ["TORCH_NCCL_TRACE_BUFFER_SIZE"] == "7" and "TORCH_FR_BUFFER_SIZE" not in os.environ
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    for name in ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"):
        assert os.environ[name] == f"{tmp_path}/collectives_rank_"


@pytest.mark.filterwarnings("error")
def test_the_timeout_of_ranks_can_be_changed_without_a_warning():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        distributed.set_timeout(7.0)
        group = dist.distributed_c10d._get_default_group()
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(minutes=7)
    finally:
        dist.destroy_process_group()
