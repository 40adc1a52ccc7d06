"""Files as data sets publish them, read as rows with their location: file and line, or file and index."""
