"""Shards on disk, with random access to records by index, and the order in which a run reads them."""
