"""Names of the files in a run folder. docs/runs.md describes their contents."""

from __future__ import annotations

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
VALIDATION_PREDICTIONS_FILE = "validation_predictions.jsonl"
EVALUATION_FILE = "evaluation.json"
BEST_FILE = "best.safetensors"
LOG_FILE = "log.txt"
EVENTS_FILE = "events.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
REPORT_FILE = "report.html"
"""Written by ``run.py report``."""
MADE_BY_FILE = "made_by.json"
"""Written by ``run.py reproduce``, with the run's command, the identity of the source code, and the duration."""
