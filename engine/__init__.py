"""The train loop, its precision, checkpoints and run folder. It depends on no task."""
