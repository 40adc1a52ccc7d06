"""Helpers that depend on no model, data set or task: configuration, errors, batches, ranks, files, logs."""
