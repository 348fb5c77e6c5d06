"""Data sets in memory.

dataset   `Dataset` and its `Split`s; the kinds of modalities
prepared  reads data sets prepared by `datasets/`
arrays    reads your own data from a .npz file
reduce    fewer modalities, and modalities that are missing at random
faults    checks of a data set before training
batches   the order of examples
"""
