"""The batches that data loading makes and models take, and the losses that models return, one module for each task.

``models`` and ``dataset`` never import each other; both import these types. Axes: N examples, L tokens, I images, R regions,
F frames, A answers, P patches, H and W pixels. Masks are boolean: True = attend, or True = counts. A batch holds tensors, and
``records`` with the origin of each example.
"""
