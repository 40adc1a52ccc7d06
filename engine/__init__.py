"""The training loop, mixed precision, checkpoints and the run folder. Nothing here depends on a particular task."""
