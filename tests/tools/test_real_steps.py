"""What planning asks of a GPU, on one that is pretended."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from batches.base import to_device
from engine import trainer
from engine.train_config import TrainConfig
from optim import OptimConfig
from tests.engine.toy import Line, points
from tests.tools.fake_gpu import CONTEXT, ROW, TOTAL, FakeGPU
from tools.steps import real as real_steps
from tools.steps.real import RealSteps, ran_out_of_memory

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch) -> FakeGPU:
    fake = FakeGPU()
    fake.install(monkeypatch, lambda batch: len(batch.x))
    return fake


def run(limit: int = TOTAL, device: torch.device = GPU, **train) -> RealSteps:
    config = TrainConfig(**{"steps": 1, "precision": "fp32"} | train)
    return RealSteps(Line, config, OptimConfig(lr=0.1), device, limit)


def total(run: RealSteps, rows: int, gradients_stay: bool = False) -> int | None:
    found = run.memory(lambda model: points(0, rows), gradients_stay=gradients_stay)
    return None if found is None else found.total


def test_a_gpu_without_an_index_is_refused_since_torch_caps_none(gpu):
    with pytest.raises(ValueError):
        gpu.set_fraction(1.0, torch.device("cuda"))
    with pytest.raises(ValueError, match="cuda has no index"):
        run(device=torch.device("cuda"))


def test_torch_may_take_what_the_limit_leaves_beside_what_lies_outside_its_allocator(gpu):
    taken = run(40_000)
    assert gpu.cap == pytest.approx(40_000 - CONTEXT)
    gpu.outside += 300  # as when kernels are loaded
    assert total(taken, 10) == 10 * ROW
    assert gpu.cap == pytest.approx(40_000 - CONTEXT - 300)
    assert taken.outside() == CONTEXT + 300
    assert total(taken, 3930) is None
    assert total(taken, 3920) == 3920 * ROW


def test_a_smaller_try_is_measured_as_if_no_larger_one_had_been(gpu):
    taken = run(10_000)
    assert [total(taken, rows) for rows in (2000, 100, 900, 50)] == [None, 100 * ROW, 900 * ROW, 50 * ROW]


def test_what_is_taken_to_tune_kernels_in_the_first_step_is_not_of_a_step(gpu):
    gpu.tuning = [5000]
    assert total(run(), 100) == 100 * ROW


def test_gradients_that_stay_are_measured_by_a_second_micro_batch(gpu):
    total(run(), 7, gradients_stay=True)
    assert gpu.rows == [7] * 4


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_where_graphs_are_recorded_a_step_has_one_micro_batch_and_gradients_are_added(gpu, monkeypatch, mode):
    monkeypatch.setattr(trainer, "compile_encoders", lambda *_, **__: None)
    taken = run(compile=mode)
    gradients = 4 * 4  # a line has four numbers
    assert total(taken, 50) == 50 * ROW
    assert total(taken, 50, gradients_stay=True) == 50 * ROW + gradients
    assert len(gpu.rows) == 2 * 3, "one in each of three steps, the second of which records"


def test_after_an_error_in_the_midst_of_the_update_the_next_try_is_a_whole_step(gpu, monkeypatch):
    """The optimiser has a part of its states, and the loss scaler has divided gradients and not seen the step."""
    taken = run(precision="fp16")
    optimizer = taken.trainer.optimizer

    def fails(*_):
        optimizer.state[next(taken.trainer.model.parameters())]["step"] = torch.zeros(())
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = optimizer.register_step_pre_hook(fails)
    assert total(taken, 5) is None
    hook.remove()
    assert total(taken, 5) == 5 * ROW
    assert all("exp_avg_sq" in state for state in optimizer.state.values())


def test_the_time_of_a_step_has_no_copy_of_its_batch(gpu, monkeypatch):
    copies = []

    def copied(batch, device):
        copies.append(device)
        return to_device(batch, device)

    for module in (real_steps, trainer):
        monkeypatch.setattr(module, "to_device", copied)
    assert run().seconds(lambda model: points(0)) > 0
    assert len(copies) == 1


def test_a_step_that_does_not_fit_has_no_time(gpu):
    taken = run(10_000)
    assert taken.seconds(lambda model: points(0, 2000)) is None
    assert gpu.reserved == 0, "what the error held is given back"
    assert taken.seconds(lambda model: points(0, 20)) > 0


def test_another_error_is_told(gpu, monkeypatch):
    taken = run()
    monkeypatch.setattr(taken.trainer, "train_step", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        total(taken, 5)


def within(error: Exception) -> Exception:
    """An error that came while this one was handled."""
    try:
        try:
            raise error
        finally:
            raise RuntimeError("the capture was invalidated")
    except RuntimeError as found:
        return found


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        BackendCompilerFailed(len, FULL, None),
        BackendCompilerFailed(len, BackendCompilerFailed(len, FULL, None), None),
        within(FULL),
    ],
)
def test_a_full_gpu_is_known_by_whatever_name(error):
    assert ran_out_of_memory(error)


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this torch has no such error")
def test_a_full_gpu_is_known_by_torchs_own_error_for_it():
    assert ran_out_of_memory(torch.AcceleratorError("CUDA error: out of memory"))
    assert not ran_out_of_memory(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        BackendCompilerFailed(len, RuntimeError("out of resource: shared memory"), None),
        ValueError("CUDA error: out of memory"),
        None,
    ],
)
def test_other_errors_are_not_taken_for_a_full_gpu(error):
    assert not ran_out_of_memory(error)
