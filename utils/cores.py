"""Determines the number of CPU cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROCESS_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Returns the number of CPU cores that the process's CPU affinity and its cgroup's CPU quota allow; at least 1.

    A container on a shared machine sees all cores of the machine, but its quota may allow it to use only a few.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Round down, because with one thread too many, the kernel throttles the cgroup for the rest of each period.
    return max(1, min([cores, *(int(quota) for quota in _quotas())]))


def _quotas() -> list[float]:
    """Returns the CPU quotas, in cores, of this process's cgroup and its parents."""
    quotas = [_quota_v2(folder) for folder in _with_parents(CGROUPS, _process_group(""))]
    quotas += [_quota_v1(folder) for folder in _with_parents(CGROUPS / "cpu", _process_group("cpu"))]
    return [quota for quota in quotas if quota is not None]


def _process_group(controller: str) -> str:
    """Returns the path of this process's cgroup below the root of a controller. ``controller`` is "" for cgroup v2, which has a
    single tree."""
    for line in _read(PROCESS_CGROUP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return "/"


def _with_parents(root: Path, group: str) -> list[Path]:
    parts = [part for part in group.split("/") if part]
    return [root.joinpath(*parts[:end]) for end in range(len(parts) + 1)]


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    """Returns the quota in cores, or None if it is unlimited ("max" or -1) or the file does not exist."""
    if not quota.strip().isdigit() or not period.strip().isdigit():
        return None
    return int(quota) / max(1, int(period))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
