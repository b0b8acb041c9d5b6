"""Decoder-only transformers in flax.nnx. They name logical axes and do not know meshes.

The suffix of an array's name lists its axes, one letter each, and a letter has one meaning in the whole package:

    A  microbatches of a step
    B  rows of a batch
    C  columns of a chunk or block of a row
    D  model width (d_model)
    E  segments of an example, which may share a prompt
    F  feed-forward width (d_ff)
    G  query heads per key-value head
    H  head dimension (h is half of it)
    J  keys: columns of a row, or slots of its cache
    K  key-value heads
    L  columns of a row (tokens)
    M  columns of the rows, or parts of rows, of one token shard
    N  query heads (N = K * G)
    P  examples of a row
    Q  queries of a block under one key-value head (Q = G * C)
    R  token shards: parts of a batch on different devices
    S  segments of a row
    T  decode steps
    U  columns of an un-shared row
    V  vocabulary
    W  groups of devices that work on one logits chunk together
    X  columns of a group's logits chunk
    Y  layers
    Z  chunks or blocks of a row

A digit is an axis of that size. `tests/model/test_axis_letters.py` reads this table.
"""
