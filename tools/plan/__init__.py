"""``run.py plan``: what fits on a GPU, how often to accumulate for the global batch, and how long a run takes."""
