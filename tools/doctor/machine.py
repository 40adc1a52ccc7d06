"""Checks versions, device and cores."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from pathlib import Path

import torch

from engine.precision import check_precision
from engine.trackers import check_package
from tasks import ROOT
from tools.doctor.findings import Report
from tools.doctor.subject import Subject
from utils.cores import usable_cores
from utils.findings import Finding

SHOWN = ("torch", "torchvision", "transformers", "timm", "numpy")
OLDEST_PYTHON = (3, 11)


def check_versions(subject: Subject, report: Report) -> None:
    """Compares the versions of packages with the requirements."""
    found = versions(ROOT / "requirements.txt")
    shown = ", ".join(f"{name} {installed(name) or 'missing'}" for name in SHOWN)
    report.add("versions", found, f"python {platform.python_version()}, {shown}")


def check_wandb(subject: Subject, report: Report) -> None:
    """Checks that wandb is installed if the run uses it."""
    if subject.config.train.wandb is not None:
        check_package(subject.config.train.wandb)
        report.ok("wandb", installed("wandb") or "unknown version")


def check_device(subject: Subject, report: Report) -> None:
    """Checks that the device supports the precision of the run."""
    report.ok("device", described(subject.device))
    check_precision(subject.config.train.precision, subject.device, "train.precision")


def check_cores(subject: Subject, report: Report) -> None:
    """Reports the cores and the workers of the run."""
    cores, workers = usable_cores(), subject.config.data.workers
    report.ok("cores", f"{cores} usable, data.workers = {workers} in each process")


def versions(requirements: Path) -> list[Finding]:
    """Returns findings about packages that are missing or whose version the requirements exclude."""
    from packaging.requirements import InvalidRequirement, Requirement

    findings = []
    if sys.version_info < OLDEST_PYTHON:
        findings.append(Finding("refused", "python", f"version {platform.python_version()}", "use 3.11 or newer"))
    lines = requirements.read_text(encoding="utf-8").splitlines() if requirements.is_file() else []
    for line in lines:
        try:
            wanted = Requirement(re.sub(r"\s*#.*", "", line))
        except InvalidRequirement:
            continue
        version = installed(wanted.name)
        remedy = "pip install -r requirements.txt"
        if version is None:
            findings.append(Finding("refused", wanted.name, "is not installed", remedy))
        elif not wanted.specifier.contains(version, prereleases=True):
            fact = f"version {version} is not in {wanted.specifier} of requirements.txt"
            findings.append(Finding("warning", wanted.name, fact, remedy))
    return findings


def installed(name: str) -> str | None:
    """Returns the version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def described(device: torch.device) -> str:
    """Describes a device with its memory."""
    if device.type != "cuda":
        return f"CPU, {torch.get_num_threads()} threads; no GPU"
    memory = torch.cuda.get_device_properties(device).total_memory
    return f"{torch.cuda.get_device_name(device)}, {memory / 1e9:.1f} GB"
