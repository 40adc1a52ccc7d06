"""The public pre-training data sets, with one module for each format of official files."""
