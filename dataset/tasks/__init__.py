"""The data of each task: its config, its splits, and how its examples become batches."""
