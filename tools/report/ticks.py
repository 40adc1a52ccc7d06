"""Axes of a chart: their range, their ticks, and the format of the numbers on them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

LOG_FROM = 20.0
"""Minimum ratio of maximum to minimum for a logarithmic axis."""


@dataclass(frozen=True)
class Axis:
    """Maps values to positions: ``low`` is at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, about: int) -> list[float]:
        """Round values on the axis."""
        return _log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, about)


def y_axis(
    values: Iterable[float], start: float, end: float, *, may_be_log: bool = False, from_zero: bool = False
) -> Axis:
    """The axis of values: logarithmic if this is allowed and the values span several orders of magnitude; otherwise from zero if
    ``from_zero`` is set or the values come near zero."""
    values = list(values)
    low, high = min(values), max(values)
    if from_zero:
        low = min(0.0, low)
    if may_be_log and low > 0 and high / low >= LOG_FROM:
        return Axis(low / 1.15, high * 1.15, start, end, log=True)
    if low == high:
        room = abs(low) * 0.1 or 1.0
        return Axis(low - room, high + room, start, end)
    room = 0.06 * (high - low)
    return Axis(0.0 if 0 <= low < 0.35 * high else low - room, high + room, start, end)


def linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Returns multiples of 1, 2, 2.5 or 5 times a power of ten from ``low`` to ``high``, roughly ``about`` of them."""
    rough = (high - low) / max(1, about)
    if not rough > 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 2.5, 5, 10) if times * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [0.0 if number == 0 else number * step for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = math.log10(high / low)
    times = (1, 2, 5) if decades < 2.5 else (1,)
    every = max(1, round(decades / 5))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = (factor * 10.0**power for power in powers if power % every == 0 for factor in times)
    return [tick for tick in ticks if low <= tick <= high]


def written(value: float, digits: int = 4) -> str:
    """Formats a number with a few digits: 12,500 · 0.0123 · 3e-07."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 10**digits or float(value).is_integer():
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.{digits}g}"
    return f"{value:.{digits}g}"


def short(value: float) -> str:
    """Formats a number for an axis: 12.5k, 3M, 0.01, 2.5e-4."""
    if 0 < abs(value) < 0.00099999:
        digits, _, power = f"{value:.3e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    for unit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * 0.9999999:
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.4g}"
