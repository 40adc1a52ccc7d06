"""``run.py doctor``: what would stop a run, or spoil it, told before it starts and all at once."""
