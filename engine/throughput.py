"""How much work is done in a second, and what share of a device's peak that is."""

from __future__ import annotations

import math

from utils.batch import WORK, Work


class Throughput:
    """The rates since they were last asked for, over all ranks.

    Args:
        devices: there are.
        peak_tflops: of a device; None: there is no utilisation.
        uncounted: so many steps at the beginning, in which memory is found and kernels are chosen or compiled.
    """

    def __init__(self, devices: int, peak_tflops: float | None, uncounted: int = 1):
        self.devices, self.peak_tflops, self.uncounted = devices, peak_tflops, uncounted
        self.since: float | None = None
        self.until = 0.0
        self.work, self.waited_s = Work(), 0.0

    def add(self, work: Work, at: float, waited_s: float = 0.0) -> None:
        """Work over all ranks that was done at the time ``at``, after this one had waited so long for its data."""
        self.uncounted -= 1
        if self.uncounted >= 0:
            self.since = at
        else:
            self.work += work
            self.waited_s += waited_s
        self.until = at

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on training."""
        if self.since is not None:
            self.since += seconds

    def rates(self) -> dict[str, float]:
        """``samples_per_s``, ``images_per_s``, ``tokens_per_s``, ``tflops_per_s`` of all ranks, ``utilisation``, the share of the
        devices' peak, and ``data_wait``, the share of the time in which this rank waited for its data; those that are not known
        are left out, and until more steps were taken than are uncounted, all are."""
        if self.since is None or self.until <= self.since:
            return {}
        seconds = self.until - self.since
        done = {name: getattr(self.work, name) / seconds for name in WORK}
        tflops = done.pop("flops") / 1e12
        found = {f"{name}_per_s": rate for name, rate in done.items()} | {"tflops_per_s": tflops}
        if self.peak_tflops is not None:
            found["utilisation"] = tflops / self.devices / self.peak_tflops
        found["data_wait"] = self.waited_s / seconds
        self.since, self.work, self.waited_s = self.until, Work(), 0.0
        return {name: rate for name, rate in found.items() if not math.isnan(rate)}
