"""``run.py doctor``: checks a run before it starts, and reports everything that would stop it or spoil its results."""
