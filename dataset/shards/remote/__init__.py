"""Shards on a server. They are read in blocks, which are cached on the local disk."""
