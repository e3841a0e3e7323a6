"""Readers of numerical tables from files and built-in data sets: ``.npy .npz .csv .tsv .h5ad``, never pickle."""

from sbridge.data.sources import ReadOptions, RowSource, open_rows
from sbridge.data.tables import Inputs, Table, read_inputs, read_table, split
from sbridge.data.text import BLOCK_ROWS

__all__ = [
    "BLOCK_ROWS",
    "Inputs",
    "ReadOptions",
    "RowSource",
    "Table",
    "open_rows",
    "read_inputs",
    "read_table",
    "split",
]
