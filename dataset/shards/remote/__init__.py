"""Shards on a server. They are read in blocks of 1 MiB, which are cached on the local disk."""
