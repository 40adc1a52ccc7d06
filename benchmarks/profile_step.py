"""Profiles a pre-training step by kernel and attention backend: ``python -m benchmarks.profile_step``."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import write_results
from benchmarks.step_config import CONFIG, LENGTH_FACTORS, SMALL, batches_for, build, config_for, describe_step
from tools.steps.real import RealSteps
from utils import accelerator, distributed
from utils.commands import call
from utils.flags import Override, Positive

ATTENTION = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_efficient_attention": "memory-efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
    "aten::_scaled_dot_product_attention_math": "products and a softmax",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash on the CPU",
}
"""Operations that ``scaled_dot_product_attention`` calls in a forward pass, with their backends."""


def profiled(step: Callable[[], object], steps: int, device: torch.device, trace: Path | None) -> dict[str, Any]:
    """Calls ``step`` several times under the profiler. If ``trace`` is not None, writes the complete trace to this file."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    _finish(device)
    started = time.perf_counter()
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        _finish(device)
        seconds = time.perf_counter() - started
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    events = profiler.key_averages()
    # On a GPU, count only kernels, which are events of the device: operators and annotations include the time of their kernels.
    times = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        for event in events
        if not on_gpu or (event.device_type != torch.autograd.DeviceType.CPU and not event.is_user_annotation)
    }
    busy = sum(times.values())
    attention = Counter({ATTENTION[event.key]: event.count for event in events if event.key in ATTENTION})
    return {
        "steps": steps,
        "milliseconds_per_step": 1000 * seconds / steps,
        "idle": max(0.0, 1 - busy / seconds) if on_gpu else None,
        "kernels": [
            {"name": name, "share": spent / busy, "milliseconds_per_step": 1000 * spent / steps}
            for name, spent in sorted(times.items(), key=lambda item: -item[1])
        ],
        "attention": {name: count / steps for name, count in attention.items()},
    }


def _finish(device: torch.device) -> None:
    if module := accelerator.device_module(device):
        module.synchronize(device)


def lines_of(found: dict[str, Any], limit: int) -> list[str]:
    """Returns the lines of the report, with at most ``limit`` kernels."""
    lines = [f"{found['milliseconds_per_step']:.1f} ms/step, including the profiler's overhead"]
    if found["idle"] is not None:
        lines.append(f"the device is idle {found['idle']:.0%} of the time")
    lines += [f"attention: {count:g} calls per step, {name}" for name, count in found["attention"].items()]
    shown = found["kernels"][:limit]
    lines += [f"{each['share']:6.1%} {each['milliseconds_per_step']:9.2f} ms  {each['name'][:100]}" for each in shown]
    rest = sum(each["share"] for each in found["kernels"][limit:])
    return [*lines, f"{rest:6.1%}               {len(found['kernels']) - len(shown)} others"]


def main(
    *overrides_: Override,
    steps: Positive = 8,
    config_: Path = CONFIG,
    small: bool = False,
    kernels: Positive = 20,
    trace: Path | None = None,
    json_: Path | None = None,
) -> int:
    """Profiles a pre-training step by kernel and attention backend.

    After a warm-up, a few steps of the trainer run under the profiler. The benchmark prints the kernels by their fraction of the
    device time (on a CPU: operators by their fraction of the CPU time), the number of attention calls per backend, and the
    fraction of time in which the device was idle. --trace FILE writes the complete trace for https://ui.perfetto.dev.

    Args:
        steps: number of profiled steps.
        config_: YAML file of a pre-training config.
        small: smoke test with a small model and batch.
        kernels: number of kernels to print.
        trace: file for a trace for https://ui.perfetto.dev, such as trace.json.gz.
        overrides_: config values to override.
        json_: also write the results to a JSON file.

    Examples:
        python -m benchmarks.profile_step
    """
    path, overrides = (SMALL[0], [*SMALL[1], *overrides_]) if small else (config_, overrides_)
    config = config_for(path, overrides)
    with distributed.process_group() as device:  # sets up a GPU as a run does
        model = build(config)
        runner = RealSteps(model, config.train, config.optim, device)
        batches = batches_for(config, model, static=bool(config.train.compile))
        if device.type != "cpu":
            batches = [batch.pin_memory() for batch in batches]
        endless, accumulation = itertools.cycle(batches), config.plan(1).accumulation

        def step() -> None:
            runner.clocked([next(endless) for _ in range(accumulation)])

        for _ in range(1 if small else 2 * len(LENGTH_FACTORS)):
            step()
        found = profiled(step, steps, device, trace)
    sys.stdout.write("\n".join([describe_step(config), *lines_of(found, kernels)]) + "\n")
    write_results(json_, found)
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.profile_step"))
