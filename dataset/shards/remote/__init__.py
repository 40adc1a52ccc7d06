"""Shards that are read from a server, by blocks that are kept on the local disk."""
