"""``run.py migrate``: converts a YAML config of the authors' code and the lists that it names, and reports what happened to each
key.

:mod:`tools.migrate.keys` contains the table of all keys, :mod:`tools.migrate.lists` converts the files that the config names, and
:mod:`tools.migrate.migration` performs the whole conversion.
"""
