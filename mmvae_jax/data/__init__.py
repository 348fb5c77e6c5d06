"""Data sets in memory.

dataset   `Dataset` and its `Split`s; the kinds of modalities
prepared  data sets that `datasets/` has prepared, read from their folder
arrays    your own data, read from a .npz file
reduce    fewer modalities, and modalities that are missing at random
faults    what is refused, or said, of a data set before training
batches   the order of examples
"""
