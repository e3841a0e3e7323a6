"""Sources of rows behind one protocol: arrays, tables of text, annotated data, built-in data sets.

A source knows its shape and dtype before large data are read, and yields rows in blocks, so that files may be larger
than memory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sbridge.data import datasets
from sbridge.data.annotated import Annotated, read_annotated
from sbridge.data.specs import BUILT_IN, ENDINGS, existing_file, file_and_key, is_stream, unknown_set
from sbridge.data.streams import spooled
from sbridge.data.text import BLOCK_ROWS, TextRows, finite
from sbridge.errors import FileFormatError, InvalidInputError, listed, number, shown, unknown_name
from sbridge.time import same_times, snapped

_UNPACKED, _UNPACKED_RATIO = 2**26, 100  # bytes that an archive may always unpack to; and how many to one else


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading files.

    Args:
        representation: which array of an ``.h5ad`` file: a name in ``obsm``, or ``X``.
        time_key: the column of ``obs`` in an ``.h5ad`` file that holds times.
        columns: names of the columns of a text table to use; all if empty.
        rows: number of rows drawn from a built-in set.
        seed: of that draw.
        dtype: ``"float32"``, ``"float64"``, or ``"keep"``: that of the file, and ``inexact`` for integers and text.
        inexact: of integers and text: ``"float32"``, ``"float64"``, or ``"auto"``: float64 if some column varies by too
            few steps of float32, else float32.
        header: whether the first line of a text table names the columns: ``"yes"``, ``"no"``, or ``"auto"``.
        on_disk: whether rows stay in a ``.npy`` file and are read as they are drawn.
    """

    representation: str = "X_pca"
    time_key: str | None = None
    columns: tuple[str, ...] = ()
    rows: int = 10_000
    seed: int = 0
    dtype: str = "keep"
    inexact: str = "auto"
    header: str = "auto"
    on_disk: bool = False

    def of_inexact(self) -> np.dtype | None:
        """The dtype for integers and text; ``None`` if it depends on the numbers."""
        wanted = self.inexact if self.dtype == "keep" else self.dtype
        return None if wanted == "auto" else np.dtype(wanted)


@runtime_checkable
class RowSource(Protocol):
    """A source of rows of numbers, read in blocks."""

    @property
    def name(self) -> str:
        """The user's name for it."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns; empty if they have none."""
        ...

    @property
    def time(self) -> float | None:
        """The time of the rows, if the file gives it."""
        ...

    @property
    def dim(self) -> int:
        """The number of columns."""
        ...

    @property
    def dtype(self) -> np.dtype | None:
        """The dtype to use; ``None``: float32 if its digits are enough for integers or text, else float64."""
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields all rows in order as checked finite arrays of at most ``BLOCK_ROWS`` rows; float64 for no dtype."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """Rows of an array in memory or mapped from a file, or of a sparse matrix, made dense in blocks.

    ``labels`` are the names of the rows, if they have any; ``obs`` is the data frame of their annotations; ``places``
    are their row numbers in the file, if they are a part of it.
    """

    name: str
    array: Any
    dtype: np.dtype | None
    columns: tuple[str, ...] = ()
    time: float | None = None
    labels: np.ndarray | None = None
    obs: Any = None
    places: np.ndarray | None = None

    @property
    def dim(self) -> int:
        """The number of columns."""
        return self.array.shape[1]

    def __len__(self) -> int:
        return self.array.shape[0]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields slices, checked and converted."""
        for start in range(0, len(self), BLOCK_ROWS):
            block = self.array[start : start + BLOCK_ROWS]
            yield finite(
                block.toarray() if hasattr(block, "toarray") else block,
                self.dtype or np.dtype(np.float64),
                lambda i, j, start=start: f"{self.name}: {self._row(start + i)}, column {j} (counted from 0)",
            )

    def _row(self, index: int) -> str:
        return f"row {index}" if self.labels is None else f"row {index} ({self.labels[index]})"


def open_rows(spec: str, options: ReadOptions = ReadOptions()) -> RowSource:
    """Opens the source that ``spec`` names: a file, or a built-in data set.

    Streams (named pipes, ``/dev/stdin``) are copied to a temporary file first, and their content determines their kind.
    ``file.npz:key`` is one of several arrays; ``file.h5ad:3`` the cells whose ``time_key`` is 3. With a time key, an
    ``.h5ad`` file of one time needs no ``:3``; one of several times does.

    Raises:
        FileFormatError: if the file does not exist or is unreadable, truncated, empty, pickled or of another kind.
        InvalidInputError: if it does not hold a table of numbers.
        UnknownNameError: for a data set, key or column that does not exist, with the nearest that does.
    """
    if is_stream(Path(spec)):
        path = spooled(Path(spec))
        return _READERS[path.suffix](spec, path, None, options)
    path, key = file_and_key(spec)
    if path is None:
        return _built_in(spec, options)
    return _READERS[path.suffix.lower()](spec, existing_file(path), key, options)


def as_floating(dtype: np.dtype, name: str, options: ReadOptions) -> np.dtype | None:
    """Returns the dtype for values of ``dtype``, ``None`` if it depends on them; raises if they are not real."""
    if dtype.hasobject:
        raise _pickled(name)
    if dtype.fields:
        raise InvalidInputError(
            f"{name} is a structured array with fields {listed(dtype.fields)}. Stack the numeric ones into the "
            "columns of one plain array: numpy.lib.recfunctions.structured_to_unstructured."
        )
    if dtype.kind not in "iuf":
        raise InvalidInputError(f"{name} holds values of type {dtype}, not real numbers. {_SAVE_NUMBERS}")
    if options.dtype != "keep" or dtype.kind != "f":
        return options.of_inexact()
    return np.dtype(np.float64 if dtype.itemsize >= 8 else np.float32)


def _built_in(name: str, options: ReadOptions) -> RowSource:
    if options.rows < 1:
        raise InvalidInputError(f"the number of rows to draw from {name} must be positive, got {options.rows}.")
    if name not in BUILT_IN:
        raise unknown_set(name)
    return array_rows(name, datasets.make(name, options.rows, options.seed).numpy(), options)


def _npy(spec: str, path: Path, key: str | None, options: ReadOptions) -> RowSource:
    with _reading(spec, path, ".npy file"):
        array = np.lib.format.open_memmap(path, mode="r")
    return array_rows(spec, array, options)


def _npz(spec: str, path: Path, key: str | None, options: ReadOptions) -> RowSource:
    if not zipfile.is_zipfile(path):
        raise FileFormatError(f"{path} is not a readable .npz archive. Is it truncated? Save it again.")
    with _reading(spec, path, ".npz archive"), np.load(path, allow_pickle=False) as archive:
        known = list(archive.files)
        if {"format", "shape", "data"} <= set(known):
            raise FileFormatError(
                f"{path} holds a scipy sparse matrix. Save a dense array: numpy.save(path, "
                "scipy.sparse.load_npz(file).toarray())."
            )
        if key is None and len(known) != 1:
            choices = listed([f"{path}:{name}" for name in known])
            raise InvalidInputError(f"{path} holds {len(known)} arrays. Name one: {choices or 'it has none'}.")
        if key is not None and key not in known:
            raise unknown_name(f"array in {path}", key, known)
        _check_member(path, key or known[0])
        array = archive[key or known[0]]
    return array_rows(spec, array, options)


@contextmanager
def _reading(spec: str, path: Path, kind: str) -> Iterator[None]:
    """Turns the errors of damaged files, which may be any error of the zip, header and array readers."""
    try:
        yield
    except (InvalidInputError, PermissionError):
        raise
    except Exception as error:
        if "objects" in str(error) or "allow_pickle" in str(error):
            raise _pickled(spec) from error
        reason = str(error) or type(error).__name__
        raise FileFormatError(f"{path} is not a readable {kind} ({reason}). Is it truncated? Save it again.") from error


def _check_member(path: Path, name: str) -> None:
    """Checks that a member of an archive is an array of a plausible size; raises FileFormatError otherwise."""
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise FileFormatError(f"{path}:{name} is not an array. {_SAVE_NUMBERS}")
        member = archive.getinfo(f"{name}.npy")
    if member.file_size > _UNPACKED and member.file_size > _UNPACKED_RATIO * member.compress_size:
        raise FileFormatError(
            f"{path}:{name} would unpack from {member.compress_size / 1e6:.3g} MB to {member.file_size / 1e6:.3g} MB, "
            f"more than {_UNPACKED_RATIO} times its size, so it is not read. If the size is right, save it as .npy: "
            f"numpy.save(path, numpy.load(file)[{name!r}])."
        )


def _text(spec: str, path: Path, key: str | None, options: ReadOptions) -> RowSource:
    return replace(TextRows.open(path, options.columns, options.of_inexact(), options.header), called=spec)


def _annotated(spec: str, path: Path, key: str | None, options: ReadOptions) -> RowSource:
    if options.time_key is None:
        if key is not None:
            raise InvalidInputError(
                f"{spec} selects the cells at {key}; name the column of obs that holds times (--time-key)."
            )
        data = read_annotated(path, options.representation, None)
        return replace(array_rows(spec, data.array, options), labels=data.names, obs=data.obs)
    data, column = read_annotated(path, options.representation, options.time_key), f"obs[{shown(options.time_key)}]"
    known, _ = same_times(np.asarray(data.times))
    if key is None and len(known) > 1:
        raise InvalidInputError(
            f"{path} holds cells of {len(known)} times: {column} is {listed(known.tolist())}. Select the cells of one "
            f"time: {path}:{known[0]:g}."
        )
    time = float(known[0]) if key is None else data.time_of(key)
    if time is None:
        raise InvalidInputError(f"{spec}: {shown(key)} is not a time; {column} is {listed(known.tolist())}.")
    cells = cells_at(data, time, f"{path}: {column}")
    source = array_rows(spec, data.array[cells], options)
    found = {"labels": data.names[cells], "obs": data.obs.iloc[cells], "places": np.flatnonzero(cells)}
    return replace(source, time=snapped(time, known.tolist()), **found)


def cells_at(data: Annotated, time: float, name: str) -> np.ndarray:
    """Returns a mask of the cells of one snapshot; raises InvalidInputError if there are none."""
    known, which = same_times(np.asarray(data.times))
    places = np.flatnonzero(known == snapped(time, known.tolist()))
    if not len(places):
        raise InvalidInputError(f"{name} has times {listed(known.tolist(), 20)}, but no cells at {number(time)}.")
    return which == places[0]


def array_rows(name: str, array: Any, options: ReadOptions) -> ArrayRows:  # noqa: ANN401  (an array or sparse matrix)
    """Makes ``array`` a source; raises an error unless it is a table of real numbers with at least one row."""
    if options.columns:
        raise InvalidInputError(f"{name} has no column names, so columns {listed(options.columns)} cannot be chosen.")
    dtype = as_floating(array.dtype, name, options)
    if array.ndim == 1 and len(array):
        raise InvalidInputError(f"{name} has shape {array.shape}; for one column save array[:, None].")
    if array.ndim != 2 or array.shape[1] < 1:
        raise InvalidInputError(f"{name} has shape {array.shape}; an array (rows, columns) is needed.")
    if not array.shape[0]:
        raise InvalidInputError(f"{name} has no rows.")
    return ArrayRows(name, array, dtype)


def _pickled(name: str) -> FileFormatError:
    return FileFormatError(f"{name} holds pickled Python objects, which are not read. {_SAVE_NUMBERS}")


_SAVE_NUMBERS = "Save a plain array of numbers: numpy.save(path, array.astype(numpy.float32))."
_Reader = Callable[[str, Path, "str | None", ReadOptions], RowSource]
_READERS: dict[str, _Reader] = dict(zip(ENDINGS, (_npy, _npz, _text, _text, _annotated), strict=True))
