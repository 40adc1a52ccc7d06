"""The X²-VLM model: encoders, fusion, heads, losses, and the loading of checkpoints.

Read in this order:

1. :mod:`models.reference`: all losses of pre-training on one page, padded, one call per pass. The rest computes the same, faster.
2. :mod:`models.vision`, :mod:`models.text`, :mod:`models.fusion`: the encoders; :mod:`models.blocks`: the block of the last two.
3. :mod:`models.packing`, :mod:`models.memory`: texts without padding; keys and values that are projected once.
4. :mod:`models.xvlm`, :mod:`models.align`, :mod:`models.multigrained`: the model, with more heads from each to the next.
5. :mod:`models.streams`, :mod:`models.pretrain`: what each stream asks of the model, and the step over all streams.

Axes of tensors have these letters: N texts or examples, L tokens of a padded text, T packed tokens, Q query positions (W of each
text, padded), I images, R regions or rows of a memory, P patches, K keys, D width, E width of contrastive embeddings, V words.

"Released" is what the authors' code does, "published" what the paper or the checkpoints of its authors say.
"""
