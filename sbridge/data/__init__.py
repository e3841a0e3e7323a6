"""Readers of numerical tables from files and built-in data sets: ``.npy .npz .csv .tsv .h5ad``, never pickle.

Nothing is imported here, so that :mod:`sbridge.data.specs` can check names and files before torch is loaded.
"""
