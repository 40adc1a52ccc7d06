"""The training loop, mixed precision, checkpoints and the run folder. Nothing in this package depends on a particular task."""
