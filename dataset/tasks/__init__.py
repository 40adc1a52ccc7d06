"""The data of each task: its config, its splits, and the conversion of examples to batches."""
