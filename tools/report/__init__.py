"""``run.py report``: one HTML page of a run, or of several runs side by side."""
