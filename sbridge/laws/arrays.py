"""Conversion of user arrays to tensors, with errors for what is not accepted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, PrecisionWarning
from sbridge.laws.frames import frame_numbers, is_frame
from sbridge.modes import owned

Array = Tensor | np.ndarray
FINE_STEPS = 1024.0
"""Fewest steps of a floating-point type in one standard deviation of a column for which rounding is negligible."""
_FEWEST_STEPS, _NARROW = 4.0, 1e-3
_BLOCK_ROWS = 2**16
_FLOATING = (torch.float32, torch.float64)


def as_numbers(value: object, name: str, *, copy: bool = False) -> Tensor:
    """Converts an array, tensor or data frame of float32 or float64 numbers to a dense tensor of that dtype.

    Args:
        value: the array. Its shape and values are not checked.
        name: its name in messages.
        copy: whether the result must have memory of its own. Without it, memory is shared where torch can write to it;
            read-only arrays are copied.

    Raises:
        InvalidInputError: for another class or dtype, a masked array that hides entries, complex numbers, or a sparse
            matrix or tensor.
    """
    if isinstance(value, Tensor):
        _check_kind(value, name)
        return owned(value) if copy else value
    if is_frame(value):
        return _from_numpy(frame_numbers(value, name), name, copy=copy)
    if isinstance(value, np.ndarray):
        return _from_numpy(value, name, copy=copy)
    if hasattr(value, "toarray"):
        raise InvalidInputError(
            f"{name} is sparse (a {_class_name(value)}); a dense array is needed: {name}.toarray()."
        )
    cure = f"use {name}.to_numpy()" if hasattr(value, "to_numpy") else "use numpy.asarray"
    raise InvalidInputError(f"{name} must be a numpy array or a tensor, got a {_class_name(value)}; {cure}.")


def check_rows(rows: Tensor, name: str, *, least: int = 2) -> None:
    """Raises InvalidInputError unless ``rows`` is a finite float32/float64 tensor ``(n ≥ least, dim ≥ 1)``."""
    if not isinstance(rows, Tensor):
        raise InvalidInputError(f"{name} must be a tensor, got {type(rows).__name__}; use torch.from_numpy for arrays.")
    _check_kind(rows, name)
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise InvalidInputError(f"{name} must have shape (rows, columns), got {tuple(rows.shape)}.")
    if len(rows) < least:
        raise InvalidInputError(f"{name} has {len(rows)} row(s); at least {least} are needed.")
    bad = torch.nonzero(~torch.isfinite(rows).all(1)).flatten()
    if len(bad):
        raise InvalidInputError(
            f"{name} has {len(bad)} row(s) with NaN or infinite entries (first: row {int(bad[0])}); "
            "remove or impute them."
        )


def check_precision(x0: Tensor, x1: Tensor) -> None:
    """Checks that the floating-point rounding of two ends is small compared with the variation of their columns.

    Warns:
        PrecisionWarning: for a column that varies by fewer than ``FINE_STEPS`` steps of the type.

    Raises:
        InvalidInputError: for fewer than ``_FEWEST_STEPS`` steps, because rounding has then left only a few different
            values. Columns that are much narrower than the others are ignored, since they are constant up to rounding.
    """
    ends = [end.detach().cpu().numpy() for end in (x0, x1)]
    dtype = ends[0].dtype.type
    for steps in (_FEWEST_STEPS, FINE_STEPS):
        found = coarse_column(ends, dtype, steps, least=_NARROW)
        if found is None:
            continue
        cure = " Give float64 rows, or subtract a constant before converting to float32." * (dtype is np.float32)
        said = f"x0 and x1: column {found[0]} has {found[1]}.{cure}"
        if steps == _FEWEST_STEPS:
            raise InvalidInputError(f"{said} Too few digits of the data remain to fit a bridge.")
        warnings.warn(said, PrecisionWarning, stacklevel=2)
        return


def coarse_column(
    parts: Sequence[np.ndarray], dtype: type[np.floating], steps: float, *, least: float = 0.0
) -> tuple[int, str] | None:
    """Finds the first column that varies by fewer than ``steps`` steps of ``dtype``, with its numbers in words.

    A step is the distance of two neighbouring numbers of ``dtype`` at the largest magnitude of the column; the column
    varies by its standard deviation. Constant columns do not count. ``None`` if there is no such column.

    Args:
        parts: rows, in one array or several with the same columns.
        dtype: the floating-point type.
        steps: the number of steps that suffices.
        least: a column of less than ``least`` times the mean standard deviation does not count.
    """
    # Block by block, as the float64 copy of a large table would not fit.
    parts = [part[first : first + _BLOCK_ROWS] for part in parts for first in range(0, len(part), _BLOCK_ROWS)]
    low, high = np.min([part.min(0) for part in parts], 0), np.max([part.max(0) for part in parts], 0)
    shares = np.array([len(part) for part in parts])[:, None] / sum(map(len, parts))
    with np.errstate(over="ignore", invalid="ignore"):
        means = np.array([part.mean(0, dtype=np.float64) for part in parts])
        within = np.array([part.var(0, dtype=np.float64) for part in parts])
        between = np.square(means - (shares * means).sum(0))
        deviation = np.sqrt((shares * (within + between)).sum(0))
        largest = np.maximum(np.abs(low), np.abs(high)).astype(np.float64)
        step = np.spacing(largest.astype(dtype)).astype(np.float64)
        fine = step * steps <= deviation  # false for a step that is not finite
        coarse = (high > low) & ~fine & ~(deviation < least * np.mean(deviation))
    if not coarse.any():
        return None
    first = int(np.argmax(coarse))
    return first, (
        f"magnitude {largest[first]:.4g} and standard deviation {deviation[first]:.3g}, and numbers of that size "
        f"are {step[first]:.3g} apart in {np.dtype(dtype)}"
    )


def _from_numpy(array: np.ndarray, name: str, *, copy: bool) -> Tensor:
    _check_mask(array, name)
    native = array.dtype.newbyteorder("=")
    if native not in (np.float32, np.float64):
        raise InvalidInputError(f"{name} has dtype {array.dtype}; {_numpy_cure(native, name)}")
    if copy or not array.flags.writeable:
        return torch.from_numpy(np.array(array, dtype=native, order="C", ndmin=array.ndim, subok=False))
    return torch.from_numpy(np.asarray(array, dtype=native, order="C"))


def _check_mask(array: np.ndarray, name: str) -> None:
    """Raises InvalidInputError for a masked array that hides entries: its data still contain the hidden values."""
    if not isinstance(array, np.ma.MaskedArray) or not (hidden := np.ma.getmaskarray(array)).any():
        return
    row = int(np.argwhere(hidden)[0][0]) if array.ndim else 0
    raise InvalidInputError(
        f"{name} is a masked array that hides {int(hidden.sum())} of {hidden.size} entries (first: row {row}). Drop "
        f"such rows, numpy.ma.compress_rows({name}), or impute the entries, {name}.filled(value)."
    )


def _numpy_cure(dtype: np.dtype, name: str) -> str:
    if dtype.kind == "c":
        return _complex_cure(name)
    if dtype.kind in "biu":
        return (
            f"floating point is needed: use {name}.astype(numpy.float64), or numpy.float32 if its 7 digits are enough."
        )
    if dtype.kind == "f":
        kept = "float32" if dtype.itemsize < 4 else "float64"
        return f"float32 or float64 is needed: use {name}.astype(numpy.{kept})."
    return "numbers in float32 or float64 are needed."


def _complex_cure(name: str) -> str:
    return (
        f"real numbers are needed: put the real and imaginary parts of {name} into separate columns, or use "
        f"{name}.real if the imaginary parts are zero."
    )


def _check_kind(value: Tensor, name: str) -> None:
    """Raises InvalidInputError unless a tensor is dense, holds numbers, and is float32 or float64."""
    if value.layout != torch.strided:
        raise InvalidInputError(
            f"{name} is a sparse tensor ({value.layout}); a dense tensor is needed: {name}.to_dense()."
        )
    if value.is_complex():
        raise InvalidInputError(f"{name} has dtype {value.dtype}; {_complex_cure(name)}")
    if value.dtype not in _FLOATING:
        raise InvalidInputError(f"{name} has dtype {value.dtype}; use {name}.float() or {name}.double().")
    if value.is_meta:
        raise InvalidInputError(f"{name} is on the device 'meta', which stores no numbers; use a tensor with values.")


def _class_name(value: object) -> str:
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}".removeprefix("builtins.")
