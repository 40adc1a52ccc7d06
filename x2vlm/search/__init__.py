"""Finds the images that a sentence describes, and the part of each image that it describes."""

CACHE_GB = 2.0
"""Default size limit, in GB, of the disk cache for the vision encoder's output on re-ranked images."""
