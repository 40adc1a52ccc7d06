"""The functions of planning that use a GPU, with a simulated GPU."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from batches.base import to_device
from engine import trainer
from engine.config import TrainConfig
from optim.config import OptimConfig
from tests.engine.toy import Line, points
from tests.tools.fake_gpu import CONTEXT, ROW, TOTAL, FakeGPU
from tools.steps import real as real_steps
from tools.steps.clock import PHASES
from tools.steps.real import RealSteps, ran_out_of_memory

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch) -> FakeGPU:
    fake = FakeGPU()
    fake.install(monkeypatch, lambda batch: len(batch.x))
    return fake


def run(limit: int = TOTAL, device: torch.device = GPU, **train) -> RealSteps:
    config = TrainConfig(**{"steps": 1, "precision": "fp32"} | train)
    return RealSteps(Line(), config, OptimConfig(lr=0.1), device, limit)


def total(run: RealSteps, rows: int, gradients_stay: bool = False) -> int | None:
    found = run.memory(lambda model: points(0, rows), gradients_stay=gradients_stay)
    return None if found is None else found.total


def test_a_gpu_without_an_index_is_rejected_because_torch_cannot_limit_it(gpu):
    with pytest.raises(ValueError):
        gpu.set_fraction(1.0, torch.device("cuda"))
    with pytest.raises(ValueError, match="cuda has no index"):
        run(device=torch.device("cuda"))


def test_torch_may_use_the_limit_minus_memory_outside_its_allocator(gpu):
    taken = run(40_000)
    assert gpu.cap == pytest.approx(40_000 - CONTEXT)
    gpu.outside += 300  # as when kernels are loaded
    assert total(taken, 10) == 10 * ROW
    assert gpu.cap == pytest.approx(40_000 - CONTEXT - 300)
    assert taken.outside() == CONTEXT + 300
    assert total(taken, 3930) is None
    assert total(taken, 3920) == 3920 * ROW


def test_a_smaller_try_is_measured_independently_of_larger_ones(gpu):
    taken = run(10_000)
    assert [total(taken, rows) for rows in (2000, 100, 900, 50)] == [None, 100 * ROW, 900 * ROW, 50 * ROW]


def test_memory_for_tuning_kernels_in_the_first_step_does_not_count(gpu):
    gpu.tuning = [5000]
    assert total(run(), 100) == 100 * ROW


def test_kept_gradients_are_measured_with_a_second_micro_batch(gpu):
    total(run(), 7, gradients_stay=True)
    assert gpu.rows == [7] * 4


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_with_recorded_graphs_a_step_has_one_micro_batch_plus_its_gradients(gpu, monkeypatch, mode):
    monkeypatch.setattr(trainer, "compile_encoders", lambda *_, **__: None)
    taken = run(compile=mode)
    gradients = 4 * 4  # a line has four numbers
    assert total(taken, 50) == 50 * ROW
    assert total(taken, 50, gradients_stay=True) == 50 * ROW + gradients
    assert len(gpu.rows) == 2 * 3, "one in each of three steps, of which the second records"


def test_after_an_error_during_the_update_the_next_try_is_a_whole_step(gpu, monkeypatch):
    """The optimiser has created some of its states, and the loss scaler has unscaled gradients without completing the step."""
    taken = run(precision="fp16")
    optimizer = taken.trainer.trained.optimizer

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
    assert gpu.reserved == 0, "the memory held by the error must be freed"
    assert taken.seconds(lambda model: points(0, 20)) > 0


def test_other_errors_are_raised(gpu, monkeypatch):
    taken = run()
    monkeypatch.setattr(taken.trainer, "train_step", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        total(taken, 5)


def within(error: Exception) -> Exception:
    """An error raised while another one was handled."""
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
def test_a_full_gpu_is_recognised_by_all_error_messages(error):
    assert ran_out_of_memory(error)


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this torch has no such error")
def test_a_full_gpu_is_recognised_by_torchs_own_error():
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
def test_other_errors_are_not_mistaken_for_a_full_gpu(error):
    assert not ran_out_of_memory(error)


def test_a_step_is_timed_by_phase_on_each_device(device):
    index = 0 if device.type == "cuda" else None
    taken = RealSteps(
        Line(), TrainConfig(steps=1, precision="fp32"), OptimConfig(lr=0.1), torch.device(device.type, index)
    )
    before = taken.trainer.model.fit.weight.detach().clone()
    milliseconds = taken.clocked([points(0, 4), points(4, 4)]).milliseconds()
    assert len(milliseconds) == len(PHASES) and all(each >= 0 for each in milliseconds)
    assert milliseconds[PHASES.index("forward")] > 0
    assert not torch.equal(before, taken.trainer.model.fit.weight)
