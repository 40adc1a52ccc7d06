"""The data of each task: the config, the splits, and the conversion of examples to batches."""
