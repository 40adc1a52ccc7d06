"""The streams of pre-training: the config of each stream, and the conversion of its records to its part of a batch."""
