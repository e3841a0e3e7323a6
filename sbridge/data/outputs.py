"""Writers of rows, block by block, to a file that appears only when it is complete."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np

from sbridge.errors import FileFormatError, InvalidInputError
from sbridge.storage import documents


@runtime_checkable
class RowWriter(Protocol):
    """A writer of rows."""

    def write(self, rows: np.ndarray) -> None:
        """Appends ``rows`` of shape ``(n, dim)``."""
        ...


Opener = Callable[[Sequence[str]], AbstractContextManager[RowWriter]]


def writer_for(path: Path, *, overwrite: bool) -> Opener:
    """Opens ``path`` for rows when called with the names of the columns; use it in a ``with`` statement.

    Raises:
        FileFormatError: for an ending other than ``.npy`` and ``.csv``.
        InvalidInputError: if the file exists and is not to be replaced, or its folder does not exist.
    """
    kinds = {".npy": _NpyWriter, ".csv": _CsvWriter}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise FileFormatError(f"{path} has the ending {path.suffix!r}; samples are written as .npy or .csv.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise InvalidInputError(f"{path} exists. Choose another --out, or add --overwrite.")
    if not path.parent.is_dir():
        raise InvalidInputError(f"the folder {path.parent} does not exist. Create it first.")

    @contextmanager
    def opened(columns: Sequence[str]) -> Iterator[RowWriter]:
        with documents.replacing(path) as file:
            writer = kind(file, columns)
            yield writer
            writer.finish()

    return opened


class _NpyWriter:
    """Writer of .npy files. The header is written last, when the number of rows is known; numpy leaves room for it."""

    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
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

    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
        self.file = file
        header = StringIO()
        csv.writer(header, lineterminator="\n").writerow(columns)
        self.file.write(header.getvalue().encode())

    def write(self, rows: np.ndarray) -> None:
        digits = 9 if rows.dtype == np.float32 else 17
        np.savetxt(self.file, rows, fmt=f"%.{digits}g", delimiter=",")

    def finish(self) -> None:
        """Does nothing: the file is complete."""
