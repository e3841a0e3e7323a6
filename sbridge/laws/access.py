"""Access by number to rows in a file or in a data set, without reading all of them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from sbridge.errors import FileFormatError, InvalidInputError, listed, shown

BLOCK_ROWS = 2**16
"""Number of rows that are read at once where all are."""
_MARKED = 32
_KINDS = ".npy, .zarr, .h5ad or .h5"


@runtime_checkable
class RowAccess(Protocol):
    """Rows that can be counted and read by their number: an array on disk, or a map-style ``torch`` data set."""

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def __getitem__(self, index: Any, /) -> Any:  # noqa: ANN401
        """One row of a data set; a selection of an array."""
        ...


@dataclass(frozen=True, eq=False)
class Access:
    """Rows of an array or of a data set.

    Args:
        array: where they are read.
        shape: of all rows.
        dtype: of the rows that are read.
        ways: ``"items"`` for a data set, ``"oindex"`` for zarr, else ``"index"``.
        path: of the file, if the rows are in one.
        stamp: size and time of that file when it was opened.
    """

    array: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    ways: str
    path: str | None = None
    stamp: tuple[int, int] | None = None

    @classmethod
    def of(cls, array: Any, name: str, dtype: str) -> Access:  # noqa: ANN401
        """Checks shape and dtype of the rows in ``array``."""
        if hasattr(array, "shape") and hasattr(array, "dtype"):
            shape, kept, ways = tuple(array.shape), np.dtype(array.dtype), "oindex" if hasattr(array, "oindex") else ""
        elif isinstance(array, RowAccess):
            first = _row_of(array[0])
            shape, kept, ways = (len(array), *first.shape), first.dtype, "items"
        else:
            raise InvalidInputError(
                f"{name} has no rows that can be read by their number: an array or a map-style Dataset is needed. "
                "sbridge.data.outputs.write_rows(blocks, 'rows.npy') makes a file of any iterable."
            )
        if len(shape) < 2 or math.prod(shape[1:]) < 1:
            raise InvalidInputError(f"{name} has shape {shape}; (rows, columns) or (samples, …) is needed.")
        if dtype == "keep" and kept not in (np.float32, np.float64):
            raise InvalidInputError(f"{name} has dtype {kept}; choose dtype='float32' or 'float64'.")
        if kept.kind not in "iuf":
            raise InvalidInputError(f"{name} holds values of type {kept}, and no real numbers.")
        path = name if os.path.isfile(name) else None
        kind = kept if dtype == "keep" else np.dtype(dtype)
        return cls(array, shape, kind, ways or "index", path, None if path is None else _stamp(path))

    def mark(self) -> str:
        """Returns a checksum of the first and last rows."""
        first = np.arange(min(_MARKED, self.shape[0]))
        block = np.ascontiguousarray(self.take(np.unique([*first, *(self.shape[0] - 1 - first)])))
        return hashlib.sha256(f"{block.dtype}".encode() + block.tobytes()).hexdigest()[:16]

    def take(self, places: np.ndarray) -> np.ndarray:
        """Reads the rows at ``places``, which rise; raises InvalidInputError if the file has been written since."""
        if self.path is not None and _stamp(self.path) != self.stamp:
            raise InvalidInputError(f"{self.path} has changed since it was opened. Make a new StoredRows of it.")
        if self.ways == "items":
            return np.stack([_row_of(self.array[int(place)]) for place in places])
        return _dense((self.array.oindex if self.ways == "oindex" else self.array)[places])

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields all rows of an array with their numbers; none of a data set, whose rows may take long to make."""
        for first in range(0, 0 if self.ways == "items" else self.shape[0], BLOCK_ROWS):
            block = _dense(self.array[first : first + BLOCK_ROWS])
            yield np.arange(first, first + len(block)), block


def _dense(block: Any) -> np.ndarray:  # noqa: ANN401
    return block.toarray() if hasattr(block, "toarray") else np.asarray(block)


def _stamp(path: str) -> tuple[int, int] | None:
    """Returns size and time of a file; ``None`` if it is gone, which a mapping survives."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _row_of(item: Any) -> np.ndarray:  # noqa: ANN401
    """Returns the row of an item of a data set: the item, or the first part of a tuple."""
    row = item[0] if isinstance(item, (tuple, list)) else item
    return row.detach().cpu().numpy() if isinstance(row, Tensor) else np.asarray(row)


def opened(path: str, key: str | None) -> Any:  # noqa: ANN401
    """Opens the array at ``path``; nothing of it is read."""
    if not Path(path).exists():
        raise FileFormatError(f"{path} does not exist. Rows are read from it when they are drawn: put it back.")
    ending = Path(path).suffix.lower()
    found: Any
    with _reading(path, key):
        if ending == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if ending == ".zarr":
            import zarr  # pyright: ignore[reportMissingImports]

            found = zarr.open(path, mode="r")
        elif ending in (".h5ad", ".h5", ".hdf5"):
            import h5py  # pyright: ignore[reportMissingImports]

            found = h5py.File(path, "r")
        else:
            raise InvalidInputError(
                f"{path} is no {_KINDS} file. sbridge.data.outputs.write_rows(blocks, 'rows.npy') makes one."
            )
        found = found if key is None else found[key]
        if dict(found.attrs).get("encoding-type") == "csr_matrix":
            from anndata.io import sparse_dataset  # pyright: ignore[reportMissingImports]

            return sparse_dataset(found)
    if not hasattr(found, "shape"):
        place = "" if key is None else f" at {shown(key)}"
        raise InvalidInputError(f"{path}{place} is no array. It holds {listed(sorted(found))}: choose one with key=.")
    return found


@contextmanager
def _reading(path: str, key: str | None) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InvalidInputError(
            f"{path} needs the package {error.name}: pip install -c constraints.txt '.[bio]'."
        ) from error
    except KeyError as error:
        raise InvalidInputError(f"{path} holds nothing at {shown(key)}.") from error
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise FileFormatError(f"{path} is not readable ({error}). Is it truncated?") from error
