"""Where rows come from: arrays, tables of text, annotated data, built-in sets, behind one small protocol.

A source knows its shape and dtype before anything large is read, and hands its rows out in blocks, so that files
larger than memory can be worked through.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from sbridge import datasets
from sbridge.errors import FileFormatError, InvalidInputError, listed, number, unknown_name
from sbridge.inputs.annotated import Annotated, read_annotated
from sbridge.inputs.text import BLOCK_ROWS, TextRows, finite
from sbridge.specs import BUILT_IN, ENDINGS, existing_file, file_and_key, unknown_set
from sbridge.time import same_times, snapped

_UNREADABLE = (ValueError, OSError, EOFError, OverflowError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ReadOptions:
    """How files are read.

    Args:
        representation: which array of an ``.h5ad`` file: a name in ``obsm``, or ``X``.
        time_key: the column of ``obs`` in an ``.h5ad`` file that holds times.
        columns: columns of a text table to use, by name; none: all of them.
        rows: number of rows drawn from a built-in set.
        seed: of that draw.
        dtype: ``"float32"``, ``"float64"``, or ``"keep"``: that of the file, with integers and text as float32.
    """

    representation: str = "X_pca"
    time_key: str | None = None
    columns: tuple[str, ...] = ()
    rows: int = 10_000
    seed: int = 0
    dtype: str = "keep"


@runtime_checkable
class RowSource(Protocol):
    """Rows of numbers that can be walked through."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns; empty if they have none."""
        ...

    @property
    def time(self) -> float | None:
        """The time of the rows, if the file says it."""
        ...

    @property
    def dim(self) -> int:
        """The number of columns."""
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order, at most ``BLOCK_ROWS`` at a time, as checked finite float32 or float64 arrays."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """Rows of an array in memory or mapped from a file."""

    name: str
    array: np.ndarray
    dtype: np.dtype
    columns: tuple[str, ...] = ()
    time: float | None = None

    @property
    def dim(self) -> int:
        """The number of columns."""
        return self.array.shape[1]

    def blocks(self) -> Iterator[np.ndarray]:
        """Slices, checked and converted."""
        for start in range(0, len(self.array), BLOCK_ROWS):
            yield finite(
                self.array[start : start + BLOCK_ROWS],
                self.dtype,
                lambda i, j, start=start: f"{self.name}: row {start + i}, column {j} (counted from 0)",
            )


def open_rows(spec: str, options: ReadOptions = ReadOptions()) -> RowSource:
    """The source that ``spec`` names: a file, or a built-in set.

    ``file.npz:key`` is one of several arrays; ``file.h5ad:3`` the cells whose ``time_key`` is 3. With a time key, an
    ``.h5ad`` file of one time needs no ``:3``; one of several times does.

    Raises:
        FileFormatError: if the file does not exist or is unreadable, truncated, empty, pickled or of another kind.
        InvalidInputError: if it does not hold a table of numbers.
        UnknownNameError: for a data set, key or column that does not exist, with the nearest that does.
    """
    path, key = file_and_key(spec)
    if path is None:
        return _built_in(spec, options)
    return _READERS[path.suffix.lower()](spec, existing_file(path), key, options)


def as_floating(dtype: np.dtype, name: str, wanted: str) -> np.dtype:
    """The dtype that values of ``dtype`` are used in; an error that says why if they are no real numbers."""
    if dtype.hasobject:
        raise _pickled(name)
    if dtype.fields:
        raise InvalidInputError(
            f"{name} is a structured array with fields {listed(dtype.fields)}. Stack the numeric ones into the "
            "columns of one plain array: numpy.lib.recfunctions.structured_to_unstructured."
        )
    if dtype.kind not in "iuf":
        raise InvalidInputError(f"{name} holds values of type {dtype}, not real numbers. {_SAVE_NUMBERS}")
    if wanted != "keep":
        return np.dtype(wanted)
    return np.dtype(np.float64 if dtype.kind == "f" and dtype.itemsize >= 8 else np.float32)


def _built_in(name: str, options: ReadOptions) -> RowSource:
    if options.rows < 1:
        raise InvalidInputError(f"the number of rows to draw from {name} must be positive, got {options.rows}.")
    if name not in BUILT_IN:
        raise unknown_set(name)
    return array_rows(name, datasets.make(name, options.rows, options.seed).numpy(), options)


def _npy(spec: str, path: Path, key: str | None, options: ReadOptions) -> RowSource:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except _UNREADABLE as error:
        if "objects" in str(error):
            raise _pickled(spec) from error
        raise FileFormatError(
            f"{path} is not a readable .npy file ({error}). Is it truncated? Save it again."
        ) from error
    return array_rows(spec, array, options)


def _npz(spec: str, path: Path, key: str | None, options: ReadOptions) -> RowSource:
    if not zipfile.is_zipfile(path):
        raise FileFormatError(f"{path} is not a readable .npz archive. Is it truncated? Save it again.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            known = list(archive.files)
            if key is None and len(known) != 1:
                choices = listed([f"{path}:{name}" for name in known])
                raise InvalidInputError(f"{path} holds {len(known)} arrays. Say which: {choices or 'it has none'}.")
            if key is not None and key not in known:
                raise unknown_name(f"array in {path}", key, known)
            return array_rows(spec, archive[key or known[0]], options)
    except InvalidInputError:
        raise
    except _UNREADABLE as error:
        if "allow_pickle" in str(error):
            raise _pickled(spec) from error
        raise FileFormatError(f"{path} is not a readable .npz archive ({error}). Save it again.") from error


def _text(spec: str, path: Path, key: str | None, options: ReadOptions) -> RowSource:
    dtype = np.dtype(np.float32 if options.dtype == "keep" else options.dtype)
    return TextRows.open(path, options.columns, dtype)


def _annotated(spec: str, path: Path, key: str | None, options: ReadOptions) -> RowSource:
    if options.time_key is None:
        if key is not None:
            raise InvalidInputError(
                f"{spec} asks for the cells at {key}; say which column of obs holds times (--time-key)."
            )
        return array_rows(spec, read_annotated(path, options.representation, None).array, options)
    data, column = read_annotated(path, options.representation, options.time_key), f"obs[{options.time_key!r}]"
    known, _ = same_times(np.asarray(data.times))
    if key is None and len(known) > 1:
        raise InvalidInputError(
            f"{path} holds cells of {len(known)} times: {column} is {listed(known.tolist())}. Say which cells are "
            f"meant: {path}:{known[0]:g}."
        )
    time = float(known[0]) if key is None else data.time_of(key)
    if time is None:
        raise InvalidInputError(f"{spec}: {key!r} is no time; {column} is {listed(known.tolist())}.")
    source = array_rows(spec, cells_at(data, time, f"{path}: {column}"), options)
    return replace(source, time=snapped(time, known.tolist()))


def cells_at(data: Annotated, time: float, name: str) -> np.ndarray:
    """The rows of one snapshot; InvalidInputError if there are none."""
    known, which = same_times(np.asarray(data.times))
    places = np.flatnonzero(known == snapped(time, known.tolist()))
    if not len(places):
        raise InvalidInputError(f"{name} has times {listed(known.tolist(), 20)}; no cells at {number(time)}.")
    return data.array[which == places[0]]


def array_rows(name: str, array: np.ndarray, options: ReadOptions) -> ArrayRows:
    """``array`` as a source; an error unless it is a table of real numbers with a row."""
    if options.columns:
        raise InvalidInputError(f"{name} has no column names, so columns {listed(options.columns)} cannot be chosen.")
    dtype = as_floating(array.dtype, name, options.dtype)
    if array.ndim == 1 and len(array):
        raise InvalidInputError(f"{name} has shape {array.shape}; for one column save array[:, None].")
    if array.ndim != 2 or array.shape[1] < 1:
        raise InvalidInputError(f"{name} has shape {array.shape}; an array (rows, columns) is needed.")
    if not len(array):
        raise InvalidInputError(f"{name} has no rows.")
    return ArrayRows(name, array, dtype)


def _pickled(name: str) -> FileFormatError:
    return FileFormatError(f"{name} holds pickled Python objects, which are not read. {_SAVE_NUMBERS}")


_SAVE_NUMBERS = "Save a plain array of numbers: numpy.save(path, array.astype(numpy.float32))."
_Reader = Callable[[str, Path, "str | None", ReadOptions], RowSource]
_READERS: dict[str, _Reader] = dict(zip(ENDINGS, (_npy, _npz, _text, _text, _annotated), strict=True))
