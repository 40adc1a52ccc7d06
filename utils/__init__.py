"""Helpers that are independent of models, data sets and tasks: configuration, errors, batches, ranks, files and logs."""
