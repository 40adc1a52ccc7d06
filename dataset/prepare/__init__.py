"""``run.py prepare``: builds records from the official files of public data sets.

The way of the data, with the modules on it:

1. What a data set is: ``catalogue`` lists the modules in ``sets``, which declare data sets in the terms of ``declarations``.
   ``document`` writes the table in docs/pretraining_data.md.
2. Official files: ``raw_folder`` finds them, ``json_pieces`` and ``parquet_rows`` read them item by item, and ``rows`` and
   ``coco_format`` collect the items of an image.
3. Images that may be used: ``finders`` finds the files, ``held_out`` knows the images of downstream splits, ``verify`` decodes
   images, and ``missing`` compares with other groups.
4. Records: ``cleaning``, ``phrases``, ``region_records`` and ``video_clips`` convert an image or a video.
5. What is built: ``prepare`` calls ``media_records`` for images and videos, ``url_sets`` for lists of URLs (``url_lists``, then
   img2dataset, then ``url_shards``), and ``split_files`` for evaluation splits. ``preparation`` is what they have in common.
6. Output: ``line_shards`` and ``file_jobs`` write files with several processes (``processes``, ``ray_jobs``), ``output_folder``
   locks and resumes a folder, ``whole_folder`` puts it in place once it is complete, with its ``manifest`` and ``counts``.

``own``, ``to_odvg``, ``multilingual``, ``frames``, ``parquet`` and ``tokenizer`` are separate commands.
"""
