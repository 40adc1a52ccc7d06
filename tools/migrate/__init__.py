"""``run.py migrate``: converts a YAML config of the authors' code and its lists, and reports what happened to each key.

:mod:`tools.migrate.keys` has the table of all keys, :mod:`tools.migrate.lists` converts the files that the config names, and
:mod:`tools.migrate.migration` performs the whole conversion.
"""
