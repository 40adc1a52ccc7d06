"""How the ranks of a run share the model of a step.

:class:`~engine.parallel.strategy.Parallel` is the interface. With DDP (:mod:`engine.parallel.ddp`), every rank holds the whole
model; with FSDP2 (:mod:`engine.parallel.fsdp`), a share of it. :mod:`engine.parallel.choice` chooses.
"""
