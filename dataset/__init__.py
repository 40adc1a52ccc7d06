"""Data on their way to the model.

``records`` and ``shards`` hold what is on disk, ``formats`` the files of published data sets, ``media`` and ``text`` what an
example consists of, ``tasks`` the batches of each task, ``loaders`` their reading by worker processes. ``prepare`` makes records
of public data sets beforehand. ``files`` bounds what is read, ``columns`` holds millions of texts, and ``leaks`` finds images
that splits share.
"""
