"""Reads run folders, for several commands."""
