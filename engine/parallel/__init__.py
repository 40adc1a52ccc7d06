"""How the ranks of a run share the model of a step.

:class:`~engine.parallel.strategy.Parallel` is the interface. With DDP (:mod:`engine.parallel.ddp`), every rank holds the whole
model; with FSDP2 (:mod:`engine.parallel.fsdp`), every rank holds a shard of it. :mod:`engine.parallel.choice` selects the
strategy.
"""
