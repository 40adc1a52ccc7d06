"""Readers for data sets' official files. They return rows with their locations: file and line, or file and index."""
