"""Typed records: the schema of a line of a shard, described boxes, and clips of videos."""
