"""Records, readers and batches; the scenes the project draws itself; preparation of public data sets."""
