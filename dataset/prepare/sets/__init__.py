"""The public data sets for pre-training, with one module for each format of official files."""
