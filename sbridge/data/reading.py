"""Reads the rows of a source as one array, in the floating-point type that their digits need."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from sbridge.data.sources import ArrayRows, RowSource
from sbridge.errors import ReadingWarning, shown
from sbridge.laws.arrays import FINE_STEPS, coarse_column

_COUNTED_ROWS = 10  # as many rows in step with a column are no accident


def gathered(sources: Sequence[RowSource]) -> list[np.ndarray]:
    """Reads all rows of each source. Sources without a fixed dtype get one dtype together.

    It is float32 if every column of them varies by ``FINE_STEPS`` steps of float32 or more and no other source is
    float64, else float64, with a warning that names the first column for which float32 is too coarse.
    """
    arrays = [_array(source) for source in sources]
    is_open = [source.dtype is None for source in sources]
    reasons = [
        f"{source.name}: {_column(source, found[0])} has {found[1]}"
        for source, array, one in zip(sources, arrays, is_open, strict=True)
        if one and (found := coarse_column([array], np.float32, FINE_STEPS))
    ]
    if reasons:
        warnings.warn(
            f"{reasons[0]}. Text and integers are therefore read as float64; --dtype float32 overrides this.",
            ReadingWarning,
            stacklevel=2,
        )
    wide = bool(reasons) or any(source.dtype == np.float64 for source in sources)
    dtype = np.float64 if wide else np.float32
    return [array.astype(dtype, copy=False) if one else array for array, one in zip(arrays, is_open, strict=True)]


def warn_of_row_numbers(source: RowSource, rows: np.ndarray) -> None:
    """Warns of a column that rises by one from row to row: such a column numbers the rows."""
    if len(rows) < _COUNTED_ROWS:
        return
    for index in range(rows.shape[1]):
        first = float(rows[0, index])
        if np.array_equal(rows[:, index], first + np.arange(len(rows))):
            warnings.warn(
                f"{source.name}: {_column(source, index)} counts the rows, {first:g} … {float(rows[-1, index]):g}, and "
                "is used as a coordinate. If it is an index, omit it: use --columns, or save the table without it.",
                ReadingWarning,
                stacklevel=2,
            )


def _array(source: RowSource) -> np.ndarray:
    if not isinstance(source, ArrayRows):
        return np.concatenate(list(source.blocks()))
    rows = np.empty((len(source), source.dim), dtype=source.dtype or np.float64)
    start = 0
    for block in source.blocks():  # filled in place: the blocks and their concatenation would take twice the memory
        rows[start : start + len(block)] = block
        start += len(block)
    return rows


def _column(source: RowSource, index: int) -> str:
    return f"column {shown(source.columns[index])}" if source.columns else f"column {index} (counted from 0)"
