"""Reads run folders; shared by several commands."""
