"""``run.py migrate``: turns a YAML config of the authors' code into ours, with records and a table of what became of each key.

:mod:`tools.migrate.keys` has the table of all keys, :mod:`tools.migrate.lists` converts the files that the config names, and
:mod:`tools.migrate.migration` puts both together.
"""
