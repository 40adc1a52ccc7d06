"""``run.py status``: how runs are doing, in the terminal or for scripts."""
