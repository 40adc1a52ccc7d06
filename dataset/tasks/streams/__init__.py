"""The data streams of pre-training: their configs, and the conversion of their records to parts of a batch."""
