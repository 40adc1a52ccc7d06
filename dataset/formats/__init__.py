"""Files as data sets publish them, read as rows with their place: file and line, or file and index."""
