"""``run.py config``: prints the keys of a task's config, or the values in a config file and where they come from."""
