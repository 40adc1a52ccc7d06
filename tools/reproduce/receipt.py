"""The receipt of a cell: what was run, with which inputs, on which machine, and the results; as JSON and as Markdown."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.reproduce.cells import ReadyCell
from tools.reproduce.identity import code_identity, machine_and_packages, source_remarks, sources_text, weights_identity
from tools.reproduce.measured import Number, table_of
from utils.config import dump_config
from utils.errors import UserError
from utils.files import write_text


def receipt_of(
    ready: ReadyCell, runs: Mapping[int, Mapping[str, Any]], numbers: Sequence[Number], remarks: Sequence[str]
) -> dict[str, Any]:
    """Returns the receipt as JSON values.

    Args:
        ready: the cell, as it was run.
        runs: the record of each run, by seed: the command, the folder, the duration in seconds, and the source code.
        numbers: the cell's numbers.
        remarks: texts that a reader of the numbers needs to know.
    """
    cell, code = ready.cell, code_identity()
    return {
        "cell": cell.name,
        "protocol": cell.protocol.strip(),
        "measured_by": cell.server or "the run",
        "remarks": [*remarks, *source_remarks(runs, code)],
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "numbers": [number.as_json() for number in numbers],
        "runs": {str(seed): dict(run) for seed, run in runs.items()},
        "config": {
            "file": cell.config,
            "overrides": list(ready.overrides),
            "sha256": _digest(dump_config(ready.config).encode()),
        },
        "weights": None if ready.weights is None else weights_identity(ready.weights),
        "data": _data(ready.config),
        "code": code,
        "environment": machine_and_packages(),
    }


def write_receipt(folder: Path, receipt: Mapping[str, Any], numbers: Sequence[Number]) -> Path:
    """Writes ``receipt.json`` and ``receipt.md``, and returns the path of ``receipt.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "receipt.json", json.dumps(receipt, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "receipt.md", as_markdown(receipt, numbers))
    return folder / "receipt.md"


def as_markdown(receipt: Mapping[str, Any], numbers: Sequence[Number]) -> str:
    """Returns the receipt as Markdown."""
    weights, code, where = receipt["weights"], receipt["code"], receipt["environment"]
    started = "random weights" if weights is None else f"{weights['path']} (SHA-256 {weights['sha256'][:16]})"
    state = (
        f"{code['commit'][:12]}{', changed since' if code['changed'] else ''}" if code["commit"] else "no repository"
    )
    lines = [f"# {receipt['cell']}", "", receipt["protocol"], "", "```", table_of(numbers, "published"), "```", ""]
    lines += [f"- {remark}" for remark in receipt["remarks"]] + [""]
    lines += ["| | |", "|---|---|"]
    for seed, run in receipt["runs"].items():
        sources = sources_text([code["sha256"] for code in run.get("code") or []])
        lines.append(f"| seed {seed} | {run['seconds']:.0f} s, `{run['folder']}`, sources {sources} |")
    lines += [
        f"| config | `{' '.join([receipt['config']['file'], *receipt['config']['overrides']])}` |",
        f"| weights | {started} |",
        f"| data | {', '.join(f'{key} {digest[:12]}' for key, digest in receipt['data'].items()) or 'not read'} |",
        f"| code, when this was written | version {code['version']}, {state}, sources {code['sha256'][:12]} |",
        f"| machine | {where['device']}, {where['cores']} cores, Python {where['python']} |",
        f"| packages | {', '.join(f'{name} {release}' for name, release in where['packages'].items())} |",
        f"| made | {receipt['made']} |",
    ]
    return "\n".join(lines) + "\n"


def _data(config: Any) -> dict[str, str]:
    """Returns digests of the training data and of the evaluation data, by config key, as far as the data are available."""
    from tasks.data_identity import data_identity  # imports torch

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
