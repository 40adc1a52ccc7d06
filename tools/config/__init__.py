"""``run.py config``: the keys of a task's config, or the values in a file and where they come from."""
