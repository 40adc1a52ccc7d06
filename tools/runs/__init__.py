"""The reading of runs' folders, which commands share."""
