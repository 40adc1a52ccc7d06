"""CPU cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores in the affinity of this process, or the CPU quota of its control group where that is smaller; at least 1.

    A container on a shared machine sees all cores of the machine, and may use a few.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Rounded down: with one thread too many, the group is stopped for the rest of each period.
    return max(1, min([cores, *(int(quota) for quota in _quotas())]))


def _quotas() -> list[float]:
    """CPU quotas, in cores, of this process's control group and of the groups above it."""
    quotas = [_quota_v2(folder) for folder in _with_parents(CGROUPS, _own_group(""))]
    first = CGROUPS / "cpu"
    quotas += [_quota_v1(folder) for folder in _with_parents(first, _own_group("cpu"))]
    return [quota for quota in quotas if quota is not None]


def _own_group(controller: str) -> str:
    """Path of this process's group below the root of ``controller`` ("": version 2, which has one tree for all)."""
    for line in _read(OWN_CGROUP).splitlines():
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
    """None where there is no quota: "max" or -1 stands for it, or the files do not exist."""
    if not quota.strip().isdigit() or not period.strip().isdigit():
        return None
    return int(quota) / max(1, int(period))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
