"""``run.py status``: reports how runs are doing, in the terminal or for scripts."""
