"""The receipt of a cell: what was run, on what, with what, and what came out; as JSON and as Markdown."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint import find_weights
from tasks.data_identity import data_identity
from tasks.kinds import ROOT
from tools.reproduce.cells import ReadyCell
from tools.reproduce.measured import Number, table_of
from utils.config import dump_config
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import write_text
from utils.version import VERSION

PACKAGES = ("torch", "torchvision", "transformers", "timm", "tokenizers", "numpy", "scipy")
"""Packages whose releases may change a number."""

SOURCES = ("models", "dataset", "tasks", "engine", "optim", "scheduler", "metrics", "utils")


def receipt_of(
    ready: ReadyCell, runs: Mapping[int, Mapping[str, Any]], numbers: Sequence[Number], remarks: Sequence[str]
) -> dict[str, Any]:
    """The receipt as JSON values.

    Args:
        ready: the cell, as it was run.
        runs: by seed: the command, the folder and the seconds of each run.
        numbers: the cell's numbers.
        remarks: facts that a reader of the numbers has to know.
    """
    cell = ready.cell
    return {
        "cell": cell.name,
        "protocol": cell.protocol.strip(),
        "measured_by": cell.server or "the run",
        "remarks": list(remarks),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "numbers": [
            {
                "split": number.split,
                "metric": number.metric,
                "published": number.published,
                "measured": [round(value, 4) for value in number.measured],
                "mean": None if number.mean is None else round(number.mean, 4),
                "spread": None if number.spread is None else round(number.spread, 4),
                "difference": None if number.difference is None else round(number.difference, 4),
            }
            for number in numbers
        ],
        "runs": {str(seed): dict(run) for seed, run in runs.items()},
        "config": {
            "file": cell.config,
            "overrides": list(ready.overrides),
            "sha256": _digest(dump_config(ready.config).encode()),
        },
        "weights": _weights(ready.weights),
        "data": _data(ready.config),
        "code": code_identity(),
        "environment": environment(),
    }


def write_receipt(folder: Path, receipt: Mapping[str, Any], numbers: Sequence[Number]) -> Path:
    """Write ``receipt.json`` and ``receipt.md``; returns the path of the second."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "receipt.json", json.dumps(receipt, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "receipt.md", as_markdown(receipt, numbers))
    return folder / "receipt.md"


def as_markdown(receipt: Mapping[str, Any], numbers: Sequence[Number]) -> str:
    """The receipt for people."""
    weights, code, where = receipt["weights"], receipt["code"], receipt["environment"]
    started = "random weights" if weights is None else f"{weights['path']} (SHA-256 {weights['sha256'][:16]})"
    state = (
        f"{code['commit'][:12]}{', changed since' if code['changed'] else ''}" if code["commit"] else "no repository"
    )
    lines = [f"# {receipt['cell']}", "", receipt["protocol"], "", "```", table_of(numbers, "published"), "```", ""]
    lines += [f"- {remark}" for remark in receipt["remarks"]] + [""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| seed {seed} | {run['seconds']:.0f} s, `{run['folder']}` |" for seed, run in receipt["runs"].items()]
    lines += [
        f"| config | `{' '.join([receipt['config']['file'], *receipt['config']['overrides']])}` |",
        f"| weights | {started} |",
        f"| data | {', '.join(f'{key} {digest[:12]}' for key, digest in receipt['data'].items()) or 'not read'} |",
        f"| code | version {code['version']}, {state}, sources {code['sha256'][:16]} |",
        f"| machine | {where['device']}, {where['cores']} cores, Python {where['python']} |",
        f"| packages | {', '.join(f'{name} {release}' for name, release in where['packages'].items())} |",
        f"| made | {receipt['made']} |",
    ]
    return "\n".join(lines) + "\n"


def code_identity() -> dict[str, Any]:
    """Version, hash of the sources, and the commit where there is a repository."""
    total = hashlib.sha256()
    for package in SOURCES:
        for path in sorted((ROOT / package).rglob("*.py")):
            total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return {
        "version": VERSION,
        "sha256": total.hexdigest(),
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def environment() -> dict[str, Any]:
    """The machine and the packages."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": device,
        "gpus": torch.cuda.device_count(),
        "cores": usable_cores(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": packages,
        "executable": Path(sys.executable).name,
    }


def _weights(path: str | None) -> dict[str, Any] | None:
    """The file that the run starts from, with its hash."""
    if path is None:
        return None
    file = find_weights(Path(path).expanduser())
    with file.open("rb") as stream:
        return {"path": path, "sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "bytes": file.stat().st_size}


def _data(config: Any) -> dict[str, str]:
    """Digests of the training data and of the data that are measured on, by key, as far as they are here."""
    found: dict[str, str] = {}
    for section in ("data", "evaluation"):
        part = getattr(config, section)
        try:
            found |= {} if part is None else data_identity(part, section)
        except (UserError, OSError):
            continue
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git(*arguments: str) -> str:
    """What git prints; "" without git or a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
