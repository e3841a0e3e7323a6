"""Reads whole tables into memory, or opens large ones; checked, with the digest of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbridge.data.annotated import Annotated, AnnotatedCells, annotated, read_annotated
from sbridge.data.reading import gathered, warn_of_row_numbers
from sbridge.data.snapshots import Times, as_times
from sbridge.data.sources import ArrayRows, ReadOptions, RowSource, array_rows, cells_at, open_rows
from sbridge.data.specs import existing_file
from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, listed, shown
from sbridge.laws import StoredRows
from sbridge.random import derive, generator
from sbridge.time import same_times, snapped

TableRows = Tensor | StoredRows


@dataclass(frozen=True, eq=False)
class Table:
    """Rows read into memory, or left on disk.

    Attributes:
        name: what the user called it.
        rows: ``(n, dim)``, float32 or float64, on the CPU.
        columns: their names; empty if they have none.
        sha256: checksum of the file, or of the numbers of a built-in set.
        time: time of the rows, if the file contains it.
    """

    name: str
    rows: TableRows
    columns: tuple[str, ...]
    sha256: str
    time: float | None = None

    __repr__ = short_repr

    @property
    def dim(self) -> int:
        """The number of columns."""
        return self.rows.dim if isinstance(self.rows, StoredRows) else self.rows.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the rows."""
        return (self.rows.like if isinstance(self.rows, StoredRows) else self.rows).dtype


@dataclass(frozen=True, eq=False)
class Inputs:
    """Two or more snapshots in one space, and their times if the user gave any."""

    tables: tuple[Table, ...]
    times: tuple[float, ...] | None


def read_table(spec: str, options: ReadOptions = ReadOptions()) -> Table:
    """Reads all rows of what ``spec`` names (see :func:`~sbridge.data.sources.open_rows`); at least two.

    Integers and text are float32 if every column varies by 1024 steps of float32 or more, else float64, with a warning.
    """
    return _tables_of([spec], [options])[0]


def read_inputs(specs: Sequence[str], times: Sequence[float], options: ReadOptions = ReadOptions()) -> Inputs:
    """Reads snapshots and their times.

    Several ``specs`` are one snapshot each, with ``times`` for each; without, times are those that the files say, or
    none for two. A single ``.h5ad`` file with a ``time_key`` holds all snapshots; ``times`` then selects some.

    Raises:
        InvalidInputError: if numbers of files and times do not fit, or columns differ between snapshots; and as
            :func:`~sbridge.data.sources.open_rows`.
    """
    if options.time_key is not None and len(specs) == 1:
        tables, found = _snapshots(specs, times, options)
    else:
        _check_counts(specs, times)
        # A built-in set named twice is drawn twice.
        own = [replace(options, seed=derive(options.seed, "data set", place)) for place in range(len(specs))]
        tables = _tables_of(specs, own)
        said = [table.time for table in tables if table.time is not None]
        found = tuple(float(t) for t in times or (said if len(said) == len(tables) else ())) or None
        if found is None and len(specs) > 2:
            raise InvalidInputError(f"{len(specs)} data sets need --times: one time for each, increasing.")
    _check_increasing(found or ())
    _check_alike(tables)
    return Inputs(tuple(tables), found)


def split(rows: TableRows, fraction: float, seed: int, name: str) -> tuple[TableRows, TableRows]:
    """Splits ``rows`` at random into those to fit and those held out, each in their old order.

    Raises:
        InvalidInputError: if ``fraction`` is not in ``[0, 1)``, or leaves fewer than two rows in a part that is used.
    """
    if not 0.0 <= fraction < 1.0:
        raise InvalidInputError(f"the held-out fraction must lie in [0, 1), got {fraction:g}.")
    count = round(fraction * len(rows))
    if fraction > 0 and (count < 2 or len(rows) - count < 2):
        raise InvalidInputError(
            f"holding out {fraction:g} of the {len(rows)} rows of {name} leaves {count} to score and "
            f"{len(rows) - count} to fit; each needs at least 2. Choose another fraction, or 0 to score nothing."
        )
    order = torch.randperm(len(rows), generator=generator(derive(seed, "held out")), device="cpu")
    kept, held = order[count:].sort().values, order[:count].sort().values
    if isinstance(rows, StoredRows):
        return (rows.selected(kept), rows.selected(held)) if count else (rows, rows.take(held))
    return rows[kept], rows[held]


def _tables_of(specs: Sequence[str], options: Sequence[ReadOptions]) -> list[Table]:
    """Reads one table for each spec, or opens it."""
    digests = [_digest(spec) for spec in specs]
    if options[0].on_disk:
        return [_opened(*one) for one in zip(specs, options, digests, strict=True)]
    return _tables([open_rows(spec, mine) for spec, mine in zip(specs, options, strict=True)], digests)


def _opened(spec: str, options: ReadOptions, digest: str | None) -> Table:
    """Opens a table that stays on disk; raises InvalidInputError unless it is a ``.npy`` file."""
    path = Path(spec)
    if path.suffix.lower() != ".npy" or digest is None:
        raise InvalidInputError(
            f"rows are read from .npy files as they are drawn, got {spec}: leave out --on-disk, or make such a file, "
            "numpy.save(path, rows). In Python, StoredRows reads .h5ad and .zarr files too."
        )
    return Table(spec, StoredRows(existing_file(path), dtype=options.dtype), (), digest)


def _tables(sources: Sequence[RowSource], digests: Sequence[str | None]) -> list[Table]:
    tables = []
    for source, digest, rows in zip(sources, digests, _arrays(sources), strict=True):
        digest = digest or hashlib.sha256(rows.tobytes()).hexdigest()
        tables.append(Table(source.name, torch.from_numpy(rows), source.columns, digest, source.time))
    return tables


def _arrays(sources: Sequence[RowSource]) -> list[np.ndarray]:
    """Reads all rows of all sources; at least two of each."""
    arrays = gathered(sources)
    for source, rows in zip(sources, arrays, strict=True):
        if len(rows) < 2:
            raise InvalidInputError(f"{source.name} has {len(rows)} row; at least 2 are needed.")
        warn_of_row_numbers(source, rows)
    return arrays


def _digest(spec: str) -> str | None:
    """Returns the SHA-256 of the file that ``spec`` names, ``None`` if it is not a file."""
    path = next((p for p in (Path(spec), Path(spec.rpartition(":")[0] or spec)) if p.is_file()), None)
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def snapshots_of(
    data: AnnotatedCells, *, time_key: str | None = None, rep: str = "X_pca", times: Times = ()
) -> tuple[list[Tensor], tuple[float, ...]]:
    """Splits the cells of an ``AnnData`` by their times.

    Args:
        data: the cells.
        time_key: the column of ``obs`` with their times: numbers, or labels such as ``"day2"``.
        rep: which numbers: a name in ``obsm``, or ``"X"``, which may be sparse.
        times: those to use, as numbers or labels; all if empty.

    Returns:
        The rows of each time, and the times, increasing.

    Raises:
        UnknownNameError: for a key that is not there, with those that are.
        InvalidInputError: without a time key, for cells without a time, a time without cells, a time with one cell,
            NaN, or numbers that are not real.
    """
    wanted = as_times(times, "times").tolist() if np.size(times) else ()
    parts, found = _at_times("adata", _cells(data, time_key, rep), wanted, ReadOptions(rep, time_key))
    _check_increasing(found)
    return [torch.from_numpy(rows) for rows in _arrays(parts)], found


def timed_rows(data: AnnotatedCells, *, time_key: str, rep: str = "X_pca") -> tuple[Tensor, np.ndarray]:
    """Returns the rows of all cells of an ``AnnData`` in their order, and their times; see :func:`snapshots_of`."""
    found, options = _cells(data, time_key, rep), ReadOptions(rep, time_key)
    source = replace(array_rows("adata", found.array, options), labels=found.names)
    return torch.from_numpy(gathered([source])[0]), np.asarray(found.times)


def _cells(data: AnnotatedCells, time_key: object, rep: object) -> Annotated:
    """Takes representation and times from an ``AnnData``; raises InvalidInputError unless the keys are names."""
    if not isinstance(time_key, str):
        raise InvalidInputError(
            "an AnnData needs time_key, the name of the column of obs with the times of the cells; got "
            f"{shown(time_key)}. It has {listed(data.obs)}."
        )
    if not isinstance(rep, str):
        raise InvalidInputError(f"rep must be 'X' or a name in obsm, which has {listed(data.obsm)}; got {shown(rep)}.")
    return annotated(data, "adata", rep, time_key)


def _snapshots(
    specs: Sequence[str], times: Sequence[float], options: ReadOptions
) -> tuple[list[Table], tuple[float, ...]]:
    """Reads the snapshots in one annotated file."""
    (spec,) = specs
    if Path(spec).suffix.lower() != ".h5ad":
        raise InvalidInputError(f"a time key selects the snapshots in an .h5ad file, got {spec}.")
    data = read_annotated(existing_file(Path(spec)), options.representation, options.time_key)
    parts, found = _at_times(spec, data, times, options)
    digest = _digest(spec)
    return _tables(parts, [digest] * len(parts)), found


def _at_times(
    name: str, data: Annotated, times: Sequence[float], options: ReadOptions
) -> tuple[list[ArrayRows], tuple[float, ...]]:
    """Returns the cells of each of the wanted times, of all if there are none."""
    dtype, column = array_rows(name, data.array, options).dtype, f"{name}: obs[{shown(options.time_key)}]"
    known = same_times(np.asarray(data.times))[0].tolist()
    wanted = [snapped(float(t), known) for t in (times if len(times) else known)]
    if len(wanted) < 2:
        raise InvalidInputError(f"{column} has only one time, {wanted[0]:g}; a bridge needs two.")
    parts = []
    for t in wanted:
        cells = cells_at(data, t, column)
        parts.append(ArrayRows(f"{name} at {t:g}", data.array[cells], dtype, time=t, labels=data.names[cells]))
    return parts, tuple(wanted)


def _check_increasing(times: Sequence[float]) -> None:
    if not all(a < b for a, b in pairwise(times)):
        raise InvalidInputError(f"times must increase, got {listed(times)}; put the data sets in that order.")


def _check_counts(specs: Sequence[str], times: Sequence[float]) -> None:
    if len(specs) < 2:
        raise InvalidInputError(
            f"{len(specs)} data set(s) given; a bridge needs two, a source and a target, or one .h5ad file with a time "
            "key."
        )
    if times and len(times) != len(specs):
        raise InvalidInputError(f"{len(specs)} data sets and {len(times)} times given; each data set needs one time.")


def _check_alike(tables: Sequence[Table]) -> None:
    first = tables[0]
    for other in tables[1:]:
        if other.dim != first.dim:
            raise InvalidInputError(
                f"{first.name} has {first.dim} columns, {other.name} has {other.dim}. A bridge needs both in the same "
                "space: project them on common coordinates."
            )
        for left, right in zip(first.columns, other.columns, strict=False):
            if left != right:
                raise InvalidInputError(
                    f"columns differ: {shown(left)} in {first.name}, {shown(right)} in {other.name} at the same "
                    "position. Put them in the same order, or choose them by name (--columns)."
                )
        if other.dtype != first.dtype:
            raise InvalidInputError(
                f"{first.name} is {str(first.dtype)[6:]}, {other.name} {str(other.dtype)[6:]}. "
                "Bring them to one type (--dtype float32)."
            )
