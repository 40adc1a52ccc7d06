"""Readers of the official files of data sets. They return rows with their location: file and line, or file and index."""
