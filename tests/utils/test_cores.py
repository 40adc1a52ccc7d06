"""The number of cores of this process: its affinity, and the quota of its control group if that is smaller."""

import os
from pathlib import Path

import pytest

from utils import cores
from utils.cores import usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    """A machine with 64 cores, of which this process may use 8."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.fixture
def groups(tmp_path, monkeypatch) -> Path:
    """An empty tree of control groups."""
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "PROCESS_CGROUP", tmp_path / "own")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_affinity_applies_instead_of_the_machines_number_of_cores(groups):
    assert usable_cores() == 8


def test_without_an_affinity_all_cores_of_the_machine_are_counted(groups, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 64


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("300000 100000", 3),
        ("350000 100000", 3),
        ("50000 100000", 1),
        ("9900000 100000", 8),
        ("?", 8),
    ],
)
def test_a_smaller_quota_limits_the_cores(groups, quota, expected):
    write(groups / "cpu.max", quota)
    assert usable_cores() == expected


def test_the_smallest_quota_of_a_group_and_its_parents_applies(groups):
    write(groups / "own", "0::/job/part\n")
    write(groups / "job/part/cpu.max", "max 100000")
    write(groups / "job/cpu.max", "200000 100000")
    write(groups / "cpu.max", "400000 100000")
    assert usable_cores() == 2


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("200000", 2)])
def test_quotas_of_cgroups_v1_apply(groups, quota, expected):
    write(groups / "own", "3:cpuset:/\n1:cpu,cpuacct:/job\n0::/\n")
    write(groups / "cpu/job/cpu.cfs_quota_us", quota)
    write(groups / "cpu/job/cpu.cfs_period_us", "100000")
    assert usable_cores() == expected
