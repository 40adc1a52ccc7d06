"""The streams of pre-training: what each is configured by, and how its records become its part of a batch."""
