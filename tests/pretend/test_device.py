"""The pretend device detects errors and waits that would occur on a GPU, and casts like CUDA."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.pretend import streams
from tests.pretend.autocast import lists_of_torch
from tests.pretend.tensor import recorded_waits
from utils.accelerator import send, start_copy_to_host


def test_operations_that_mix_devices_fail(pretend):
    ours, theirs = torch.ones(3, device=pretend), torch.ones(3)
    mixed: list[Callable[[], object]] = [
        lambda: ours + theirs,
        lambda: torch.cat([theirs, ours]),
        lambda: ours[torch.tensor([0, 2])],
        lambda: ours.index_select(0, torch.tensor([1])),
        lambda: torch.stack([ours, ours]).matmul(theirs),
        lambda: theirs.mul_(ours),
        lambda: nn.functional.linear(ours, torch.ones(2, 3)),
    ]
    for operation in mixed:
        with pytest.raises(RuntimeError, match="is on cpu, another one on pretend:0"):
            operation()
    assert (ours + torch.tensor(2.0)).tolist() == [3, 3, 3], "a scalar on the host is allowed, as on a GPU"


@pytest.mark.parametrize(
    ("what", "operation"),
    [
        ("reads a number", lambda ours: ours.sum().item()),
        ("reads a number", lambda ours: bool(ours.any())),
        ("copies to the host", lambda ours: ours.cpu()),
        ("copies to the host", lambda ours: ours.tolist()),
        ("copies to the host", lambda ours: torch.zeros(3).copy_(ours)),
        ("copies to the host", lambda ours: torch.zeros(3).pin_memory().copy_(ours)),
        ("copies from the host", lambda ours: torch.zeros(3).to(ours.device)),
        ("copies from the host", lambda ours: torch.tensor([1.0], device=ours.device)),
        ("copies from the host", lambda ours: torch.zeros(3).to(ours.device, non_blocking=True)),
        ("counts what is not zero", lambda ours: ours.nonzero()),
        ("counts what a mask selects", lambda ours: ours[ours > 0]),
        ("counts what a mask selects", lambda ours: ours.clone().index_put_((ours > 0,), ours.new_tensor(1.0))),
        ("counts what a mask selects", lambda ours: ours.masked_select(ours > 0)),
        ("counts repetitions", lambda ours: ours.repeat_interleave(ours.long())),
        ("counts unique numbers", lambda ours: ours.unique()),
    ],
)
def test_waits_are_recorded_with_their_location(what, operation, pretend):
    ours = torch.ones(3, device=pretend)
    with recorded_waits() as waits:
        operation(ours)
    assert what in [wait.what for wait in waits]
    assert {wait.location.file for wait in waits} == {"tests/pretend/test_device.py"}
    first = operation.__code__.co_firstlineno
    assert {wait.line for wait in waits} == {first}


def test_operations_allowed_in_a_step_wait_for_nothing(pretend):
    ours = torch.ones(3, device=pretend)
    with recorded_waits() as waits:
        send(torch.ones(2), pretend)
        start_copy_to_host(ours)
        ours.masked_fill_(ours > 1, 0).index_select(0, ours.long())
        torch.where(ours > 0, ours, 0).sum()
    assert not waits


def test_a_copy_to_the_host_arrives_when_the_host_waits_for_it(pretend):
    copy, copied = start_copy_to_host(torch.ones(3, device=pretend))
    assert copy.isnan().all() and not copied.query()
    copied.synchronize()
    assert copy.tolist() == [1, 1, 1] and copied.query()


def test_a_stream_must_wait_for_results_of_another_stream(pretend):
    copying = streams.Stream()
    with copying:
        ours = torch.ones(3, device=pretend)
    with pytest.raises(RuntimeError, match="without waiting for it"):
        ours + 1
    streams.current_stream().wait_stream(copying)
    with pytest.raises(RuntimeError, match="record_stream"):
        ours + 1
    ours.record_stream(streams.current_stream())
    assert (ours + 1).tolist() == [2, 2, 2]
    with copying:
        ours.add_(1)
    with pytest.raises(RuntimeError, match="without waiting for it"):
        ours[1:] + 1


def test_parameters_shared_by_modules_stay_shared(pretend):
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    nn.ModuleList([first, second]).to(pretend)
    assert first.weight is second.weight and first.weight.device == pretend


def test_dropout_draws_the_same_numbers_as_on_the_cpu(pretend):
    dropped = []
    for device in (torch.device("cpu"), pretend):
        torch.manual_seed(0)
        dropped.append(nn.functional.dropout(torch.ones(20, device=device), 0.3).tolist())
    assert dropped[0] == dropped[1] and 0 in dropped[0]


ONLY_ON_CUDA = ("cudnn_convolution", "cudnn_convolution_transpose", "lstm_cell", "gru_cell")
"""Operations that only have kernels for CUDA."""
RULES = {
    "torch_fp16": torch.bfloat16,
    "nn_fp16": torch.bfloat16,
    "torch_fp32": torch.float32,
    "nn_fp32": torch.float32,
    "torch_need_autocast_promote": torch.float32,
}
"""Lists in torch's own tests of CUDA's autocast, and the precision of the results."""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_autocast_follows_the_lists_of_torch(rule, pretend):
    seen = 0
    for name, *given in getattr(lists_of_torch(pretend), rule):
        if name in ONLY_ON_CUDA:
            continue
        equation = [given.pop(0)] if isinstance(given[0], str) else []
        arguments, options = given[0], given[1] if len(given) > 1 and isinstance(given[1], dict) else {}
        if equation:  # the operands are matrices, but this equation has more axes
            equation = ["bk,kq->bq"]
        module = torch if hasattr(torch, name) else torch._C._nn
        with torch.autocast(pretend.type, torch.bfloat16):
            result = getattr(module, name)(*equation, *arguments, **options)
        result = result if isinstance(result, Tensor) else result[0]
        assert result.dtype == RULES[rule], name
        seen += 1
    assert seen
