"""Starts runs of `Pretrain.py` as a user does, and compares them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from engine.watch import RANKS

ROOT = Path(__file__).parent.parent.parent
CLOCK_VALUES = (
    *("samples_per_s", "images_per_s", "tokens_per_s", "tflops_per_s", "utilisation", "data_wait", "elapsed_s"),
    *RANKS,
)


def command(output: Path, overrides: list[str], resume: bool = False) -> list[str]:
    flags = ["--config", "configs/demo/pretrain.yaml", "--output", str(output)]
    return [sys.executable, "Pretrain.py", *flags, *(["--resume"] if resume else []), *overrides]


def start(output: Path, overrides: list[str], resume: bool = False, device: str = "cpu") -> subprocess.Popen[str]:
    """Starts a run on the CPU or on CUDA. A run uses a GPU if one is visible."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    return subprocess.Popen(command(output, overrides, resume), cwd=ROOT, env=environment, **pipes)


def finish(output: Path, overrides: list[str], resume: bool = False, device: str = "cpu") -> str:
    process = start(output, overrides, resume, device)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return out


def curve(output: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl` without values that depend on the clock."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK_VALUES} for line in lines]


def final_weights(output: Path) -> bytes:
    return sorted((output / "checkpoints").iterdir())[-1].joinpath("model.safetensors").read_bytes()
