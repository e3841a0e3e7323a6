"""Writers of rows, block by block, to a file that appears only when it is complete."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np

from sbridge.data.annotated import anndata_for
from sbridge.data.sources import ArrayRows, RowSource
from sbridge.data.specs import WRITTEN
from sbridge.errors import FileFormatError, InvalidInputError
from sbridge.laws import as_rows
from sbridge.laws.arrays import Array
from sbridge.storage import documents


@runtime_checkable
class RowWriter(Protocol):
    """A writer of rows."""

    def write(self, rows: np.ndarray) -> None:
        """Appends ``rows`` of shape ``(n, dim)``."""
        ...


@dataclass(frozen=True, eq=False)
class Origin:
    """Where rows come from, for a file that holds annotations.

    Attributes:
        start, time: of the rows that they come from, and of the rows.
        representation: which array of an ``.h5ad`` file they are.
        source: the rows that they come from; ``None`` for draws.
    """

    start: float
    time: float
    representation: str
    source: RowSource | None


Opener = Callable[[Sequence[str], Origin], AbstractContextManager[RowWriter]]


def writer_for(path: Path, *, overwrite: bool) -> Opener:
    """Opens ``path`` for rows when called with the names and the origin of the columns, in a ``with`` statement.

    Raises:
        FileFormatError: for an ending other than ``.npy``, ``.csv`` and ``.h5ad``.
        InvalidInputError: if the file exists and is not to be replaced, its folder does not exist, or anndata is not
            installed.
    """
    kinds: dict[str, type] = dict(zip(WRITTEN, (_NpyWriter, _CsvWriter, _H5adWriter), strict=True))
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise FileFormatError(f"{path} has the ending {path.suffix!r}; samples are written as .npy, .csv or .h5ad.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise InvalidInputError(f"{path} exists. Choose another --out, or add --overwrite.")
    if not path.parent.is_dir():
        raise InvalidInputError(f"the folder {path.parent} does not exist. Create it first.")

    if kind is _H5adWriter:
        anndata_for(path)  # before any work

    @contextmanager
    def opened(columns: Sequence[str], origin: Origin) -> Iterator[RowWriter]:
        with documents.replacing(path) as file:
            writer = kind(file, columns, origin)
            yield writer
            writer.finish()

    return opened


def write_rows(blocks: Iterable[Array], path: str | Path, *, overwrite: bool = False) -> Path:
    """Writes rows to a ``.npy`` file, block by block; the file appears when it is complete.

    Use it to make a file for :class:`~sbridge.StoredRows` of rows that come one after another, for example from an
    iterable data set.

    Args:
        blocks: arrays or tensors ``(n, dim)`` of one dtype; each may have any number of rows.
        path: of the file, ending in ``.npy``.
        overwrite: whether to replace a file that exists.

    Returns:
        The path.

    Raises:
        InvalidInputError: if there are no rows, or blocks differ in their columns or dtype, or have NaN.
        FileFormatError: for another ending.
    """
    path, rest = Path(path), iter(blocks)
    if path.suffix.lower() != ".npy":
        raise FileFormatError(f"{path} must end in .npy.")
    first = next(rest, None)
    if first is None:
        raise InvalidInputError(f"there are no rows to write to {path}: the iterable gave no block.")
    kind = as_rows(first, "block 0", least=1)
    columns = tuple(str(j) for j in range(kind.shape[1]))
    with writer_for(path, overwrite=overwrite)(columns, Origin(0.0, 0.0, "", None)) as writer:
        for number, block in enumerate(chain([first], rest)):
            rows = as_rows(block, f"block {number}", least=1)
            if rows.shape[1] != kind.shape[1] or rows.dtype != kind.dtype:
                raise InvalidInputError(
                    f"block {number} has {rows.shape[1]} columns of {rows.dtype}, block 0 has {kind.shape[1]} of "
                    f"{kind.dtype}."
                )
            writer.write(rows.cpu().numpy())
    return path


class _NpyWriter:
    """Writer of .npy files. The header is written last, when the number of rows is known; numpy leaves room for it."""

    def __init__(self, file: BinaryIO, columns: Sequence[str], origin: Origin) -> None:
        self.file, self.shape = file, (0, len(columns))
        self.dtype = np.dtype(np.float32)

    def write(self, rows: np.ndarray) -> None:
        if self.shape[0] == 0:
            self.dtype = rows.dtype
            self.file.write(self._header())
        self.file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        self.shape = (self.shape[0] + len(rows), self.shape[1])

    def finish(self) -> None:
        self.file.seek(0)
        self.file.write(self._header())

    def _header(self) -> bytes:
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        buffer = BytesIO()
        np.lib.format.write_array_header_1_0(buffer, described)
        return buffer.getvalue()


class _CsvWriter:
    """Writer of .csv files: a header line, then as many digits as the numbers have."""

    def __init__(self, file: BinaryIO, columns: Sequence[str], origin: Origin) -> None:
        self.file = file
        header = StringIO()
        csv.writer(header, lineterminator="\n").writerow(columns)
        self.file.write(header.getvalue().encode())

    def write(self, rows: np.ndarray) -> None:
        digits = 9 if rows.dtype == np.float32 else 17
        np.savetxt(self.file, rows, fmt=f"%.{digits}g", delimiter=",")

    def finish(self) -> None:
        """Does nothing: the file is complete."""


class _H5adWriter:
    """Writer of .h5ad files: the rows as a representation of the cells that they come from, whose names they keep."""

    def __init__(self, file: BinaryIO, columns: Sequence[str], origin: Origin) -> None:
        self.file, self.origin, self.blocks = file, origin, list[np.ndarray]()

    def write(self, rows: np.ndarray) -> None:
        self.blocks.append(rows)

    def finish(self) -> None:
        import anndata  # pyright: ignore[reportMissingImports]

        origin, rows = self.origin, np.concatenate(self.blocks)
        source = origin.source if isinstance(origin.source, ArrayRows) else None
        obs = None if source is None or source.obs is None else source.obs.copy()
        made = anndata.AnnData(obs=obs, shape=(len(rows), 0))
        made.obs["sbridge_start"], made.obs["sbridge_time"] = origin.start, origin.time
        if origin.source is not None:
            places = None if source is None else source.places
            made.obs["sbridge_row"] = np.arange(len(rows)) if places is None else places
        made.obsm["X_sbridge" if origin.representation == "X" else origin.representation] = rows
        with TemporaryDirectory() as folder:
            made.write_h5ad(Path(folder, "a.h5ad"))
            with Path(folder, "a.h5ad").open("rb") as written:
                shutil.copyfileobj(written, self.file)
