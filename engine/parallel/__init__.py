"""Strategies for distributing a model over the ranks of a run.

:class:`~engine.parallel.strategy.Parallel` is their interface. With DDP (:mod:`engine.parallel.ddp`), every rank holds the full
model. With FSDP2 (:mod:`engine.parallel.fsdp`), every rank holds a shard of the model. :mod:`engine.parallel.choice` selects the
strategy.
"""
