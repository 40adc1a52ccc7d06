"""Strict loading of weights, with a report, from published checkpoints, BEiT-2 and BERT files, and our own files."""

from models.checkpoints.initialise import InitConfig, initialise
from models.checkpoints.loading import load_published, load_weights
from models.checkpoints.report import LoadReport

__all__ = ["InitConfig", "LoadReport", "initialise", "load_published", "load_weights"]
