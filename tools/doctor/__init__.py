"""``run.py doctor``: finds everything that would stop or spoil a run before it starts, and reports it all at once."""
