"""Measures the throughput of a run and the utilisation of its devices."""

from __future__ import annotations

import math

from batches.losses import WORK, Work


class Throughput:
    """Computes rates over all ranks since the last call to :meth:`rates`.

    Args:
        devices: number of devices.
        peak_tflops: peak TFLOP/s of a device; if None, utilisation is omitted.
        excluded_steps: number of steps to exclude at the start, while memory is allocated and kernels are selected or compiled.
    """

    def __init__(self, devices: int, peak_tflops: float | None, excluded_steps: int = 1):
        self.devices, self.peak_tflops, self.excluded_steps = devices, peak_tflops, excluded_steps
        self.since: float | None = None
        self.until = 0.0
        self.work, self.data_wait_s = Work(), 0.0

    def add(self, work: Work, at: float, data_wait_s: float = 0.0) -> None:
        """Adds a step.

        Args:
            work: size of the step over all ranks.
            at: time at which the step was enqueued, in seconds.
            data_wait_s: seconds that this rank spent waiting for the data of the step.
        """
        self.excluded_steps -= 1
        if self.excluded_steps >= 0:
            self.since = at
        else:
            self.work += work
            self.data_wait_s += data_wait_s
        self.until = at

    def exclude(self, seconds: float) -> None:
        """Excludes time that was not spent training."""
        if self.since is not None:
            self.since += seconds

    def rates(self) -> dict[str, float]:
        """Returns the rates by name, or an empty dictionary if no step has followed the excluded steps.

        ``samples_per_s``, ``images_per_s``, ``tokens_per_s`` and ``tflops_per_s`` are totals over all ranks. ``utilisation`` is a
        fraction of the devices' peak. ``data_wait`` is the fraction of time that this rank spent waiting for data. Unknown rates
        are omitted.
        """
        if self.since is None or self.until <= self.since:
            return {}
        seconds = self.until - self.since
        per_s = {name: getattr(self.work, name) / seconds for name in WORK}
        tflops = per_s.pop("flops") / 1e12
        rates = {f"{name}_per_s": rate for name, rate in per_s.items()} | {"tflops_per_s": tflops}
        if self.peak_tflops is not None:
            rates["utilisation"] = tflops / self.devices / self.peak_tflops
        rates["data_wait"] = self.data_wait_s / seconds
        self.since, self.work, self.data_wait_s = self.until, Work(), 0.0
        return {name: rate for name, rate in rates.items() if not math.isnan(rate)}
