"""Data loading.

``records`` and ``shards`` read the data on disk, ``formats`` reads the files of published data sets, ``media`` and ``text``
process images, videos and texts, and ``tasks`` makes the batches of each task, which ``loaders`` reads with worker processes.
``prepare`` converts public data sets to records before training. ``files`` limits the size of files, ``columns`` stores millions
of texts, and ``leaks`` finds images that splits share.
"""
