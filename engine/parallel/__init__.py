"""Strategies for distributing a model over the ranks of a run.

:class:`~engine.parallel.strategy.Parallel` is the interface. With DDP (:mod:`engine.parallel.ddp`), every rank holds the full
model; with FSDP2 (:mod:`engine.parallel.fsdp`), every rank holds a shard of it. :mod:`engine.parallel.choice` selects the
strategy.
"""
