"""Reading rows of numbers from files and built-in data sets: ``.npy .npz .csv .tsv .h5ad``, never pickle."""

from sbridge.inputs.sources import ReadOptions, RowSource, open_rows
from sbridge.inputs.tables import Inputs, Table, read_inputs, read_table, split
from sbridge.inputs.text import BLOCK_ROWS

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
