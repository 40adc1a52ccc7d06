"""Shards on disk: any record by its number, and the order in which a run reads them."""
