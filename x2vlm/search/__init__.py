"""Finds the images that a sentence describes, and where in each image the sentence applies."""

CACHE_GB = 2.0
"""Default limit of the disk cache, in GB, for the vision encoder's output on re-ranked images."""
