"""The one train loop, its precision, checkpoints and run folder. Knows nothing of any task."""
