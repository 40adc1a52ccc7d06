"""``run.py report``: writes an HTML page about a run, or about several runs side by side."""
