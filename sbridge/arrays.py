"""Arrays of a user as tensors: what is accepted, and why the rest is not."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.modes import owned

Array = Tensor | np.ndarray
_FLOATING = (torch.float32, torch.float64)


def as_numbers(value: object, name: str, *, copy: bool = False) -> Tensor:
    """A numpy array or a tensor of float32 or float64 numbers as a dense tensor of that dtype.

    Args:
        value: the array. Its shape and values are not checked.
        name: what messages call it.
        copy: whether the result must have memory of its own. Without it, memory is shared where torch can write to it;
            read-only arrays are copied.

    Raises:
        InvalidInputError: for another class or dtype, a masked array that hides entries, complex numbers, or a sparse
            matrix or tensor.
    """
    if isinstance(value, Tensor):
        _check_kind(value, name)
        return owned(value) if copy else value
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


def _from_numpy(array: np.ndarray, name: str, *, copy: bool) -> Tensor:
    _check_mask(array, name)
    native = array.dtype.newbyteorder("=")
    if native not in (np.float32, np.float64):
        raise InvalidInputError(f"{name} has dtype {array.dtype}; {_numpy_cure(native, name)}")
    if copy or not array.flags.writeable:
        return torch.from_numpy(np.array(array, dtype=native, order="C", ndmin=array.ndim, subok=False))
    return torch.from_numpy(np.asarray(array, dtype=native, order="C"))


def _check_mask(array: np.ndarray, name: str) -> None:
    """InvalidInputError for a masked array that hides entries: its data hold what was meant to be hidden."""
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
        f"real numbers are needed: put the real and imaginary parts of {name} side by side as columns, or use "
        f"{name}.real if the imaginary parts are zero."
    )


def _check_kind(value: Tensor, name: str) -> None:
    """InvalidInputError unless a tensor is dense, with numbers, in float32 or float64."""
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
