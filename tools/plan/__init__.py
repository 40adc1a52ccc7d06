"""``run.py plan``: the largest micro-batch on a GPU, the accumulation for the global batch, and the time of a run."""
