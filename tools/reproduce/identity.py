"""Identifies the source code, the machine and the packages that produced a number."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoint import digest_of, find_weights
from tasks import ROOT
from utils.cores import usable_cores
from utils.version import VERSION

PACKAGES = ("torch", "torchvision", "transformers", "timm", "tokenizers", "numpy", "scipy")
"""Packages whose version may change a number."""

SOURCES = ("batches", "models", "dataset", "tasks", "engine", "optim", "scheduler", "metrics", "utils")


def code_identity() -> dict[str, Any]:
    """Returns the version, the hash of the source code and, in a repository, the commit."""
    return {
        "version": VERSION,
        "sha256": source_digest("*.py", *SOURCES),
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def source_digest(pattern: str, *folders: str) -> str:
    """Returns a hash of the names and contents of the files in some folders of the checkout whose name matches ``pattern``."""
    total = hashlib.sha256()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob(pattern)):
            total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return total.hexdigest()


def weights_identity(path: str) -> dict[str, Any]:
    """Returns the file that a run starts from, with its hash."""
    file = find_weights(Path(path).expanduser())
    return {"path": path, "sha256": digest_of(file), "bytes": file.stat().st_size}


def machine_and_packages() -> dict[str, Any]:
    """Describes the machine and the packages."""
    import torch  # imported here because it takes seconds, and errors on the command line should be reported first

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


def source_remarks(runs: Mapping[int, Mapping[str, Any]], now: Mapping[str, Any]) -> list[str]:
    """Returns remarks if a cell's runs were made with different source code, or the source code has changed since.

    Args:
        runs: the record of each run, by seed. Its entry ``code`` contains the identities of all versions of the source code that
            worked on the run, as far as known.
        now: the current :func:`code_identity`.
    """
    made = {f"seed {seed}": [code["sha256"] for code in run.get("code") or []] for seed, run in runs.items()}
    remarks = [f"{name} was made by unrecorded sources" for name, hashes in made.items() if not hashes]
    known = {name: hashes for name, hashes in made.items() if hashes}
    if len({digest for hashes in known.values() for digest in hashes}) > 1:
        listed = "; ".join(f"{name} by {sources_text(hashes)}" for name, hashes in known.items())
        remarks.append(f"made by different sources: {listed}")
    if changed := [name for name, hashes in known.items() if hashes[-1] != now["sha256"]]:
        remarks.append(
            f"the sources have changed since {', '.join(changed)} {'was' if len(changed) == 1 else 'were'} made"
        )
    return remarks


def sources_text(hashes: Sequence[str]) -> str:
    """Formats the hashes of the source code that worked on a run, in order."""
    return ", then ".join(digest[:12] for digest in hashes) or "not noted"


def _git(*arguments: str) -> str:
    """Returns the output of git, or "" without git or outside a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
