"""``run.py plan``: computes the largest micro-batch that fits on a GPU, the accumulation for the global batch, and the duration
of a run."""
