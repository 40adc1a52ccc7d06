"""``run.py config``: the keys of a task's config, or the values of a file and where they come from."""
