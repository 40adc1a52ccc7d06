"""Loading of weights from published checkpoints, BEiT-2 and BERT files, and our own files. Every tensor is reported."""

from models.checkpoints.initialise import initialise
from models.checkpoints.loading import load_published, load_weights
from models.checkpoints.report import LoadReport

__all__ = ["LoadReport", "initialise", "load_published", "load_weights"]
