"""The train loop, its precision, checkpoints and run folder. It does not depend on any task."""
