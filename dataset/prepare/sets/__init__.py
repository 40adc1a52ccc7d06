"""The public data sets of pre-training, one module for each kind of official files."""
