"""Tables of numbers as text: comma, semicolon or tab separated, with or without a header."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from sbridge.errors import FileFormatError, InvalidInputError, listed, unknown_name

BLOCK_ROWS = 8192
_MISSING = {"", "na", "n/a", "null", "none"}
_EXAMPLES = 6
Line = tuple[int, str]  # its number in the file, counted from 1, and its text


@dataclass(frozen=True)
class TextRows:
    """A text table that was looked at but not read yet.

    Attributes:
        path: the file.
        delimiter: between cells.
        columns: names of the columns used; empty without a header.
        used: their positions.
        width: cells in a line.
        header: whether the first line is one.
        dtype: of the blocks.
    """

    path: Path
    delimiter: str
    columns: tuple[str, ...]
    used: tuple[int, ...]
    width: int
    header: bool
    dtype: np.dtype

    @classmethod
    def open(cls, path: Path, columns: Sequence[str], dtype: np.dtype) -> TextRows:
        """Reads the first line. Lines that are blank or begin with ``#`` do not count.

        The first line is a header if a cell in it is no number, or if it counts 0, 1, 2, … (as a data frame without
        names is written).

        Raises:
            FileFormatError: if there is no text in it, or it is no UTF-8.
            InvalidInputError: if a header cell is empty, which is how row labels are written, or names repeat.
            UnknownNameError: if a column asked for is not there.
        """
        number, first = next(_lines(path), (0, ""))
        if not number:
            raise FileFormatError(f"{path} has no lines with data. Save it again.")
        delimiter = max(",;\t", key=first.count)
        cells = [cell.strip() for cell in _cells(first, delimiter)]
        counted = len(cells) > 1 and cells == [str(i) for i in range(len(cells))]
        header = counted or not all(_is_number(cell) for cell in cells)
        if columns and not header:
            raise InvalidInputError(f"{path} has no header line, so columns {listed(columns)} cannot be chosen.")
        names = tuple(cells) if header else ()
        if not columns:
            _check_names(path, names)
        for name in columns:
            if names.count(name) != 1:
                raise unknown_name(f"column of {path}", name, names)
        used = tuple(names.index(name) for name in columns) if columns else tuple(range(len(cells)))
        return cls(path, delimiter, tuple(columns) or names, used, len(cells), header, dtype)

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def time(self) -> None:
        """Text says no time."""
        return None

    @property
    def dim(self) -> int:
        """The number of columns used."""
        return len(self.used)

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order, at most ``BLOCK_ROWS`` at a time.

        Raises:
            InvalidInputError: naming line and column of the first cell that is missing, NaN, infinite or no number,
                or the line with another number of cells.
        """
        lines = islice(_lines(self.path), 1 if self.header else 0, None)
        first = next(lines, None)
        if first is None:
            raise InvalidInputError(f"{self.path} has a header but no rows.")
        lines = chain([first], lines)
        while block := list(islice(lines, BLOCK_ROWS)):
            yield self._parsed(block)

    def _parsed(self, block: list[Line]) -> np.ndarray:
        texts = [text for _, text in block]
        try:
            values = np.loadtxt(
                texts, delimiter=self.delimiter, comments=None, quotechar='"', usecols=self.used, ndmin=2
            )
        except ValueError as error:
            raise self._diagnosis(block, error) from error
        if any(text.count(self.delimiter) + 1 != self.width for text in texts):
            # Unlike numpy, which takes the columns asked for from lines of any length.
            self._check_widths(block)
        return finite(values, self.dtype, lambda i, j: f"{self.path}: line {block[i][0]}, {self._column(j)}")

    def _check_widths(self, block: list[Line]) -> None:
        for number, text in block:
            count = len(_cells(text, self.delimiter))
            if count != self.width:
                raise InvalidInputError(
                    f"{self.path}: line {number} has {count} cells, the first line has {self.width}. Is it truncated?"
                )

    def _diagnosis(self, block: list[Line], cause: ValueError) -> InvalidInputError:
        """Why a block is no table of numbers: every column at fault with its first example."""
        self._check_widths(block)
        faults: dict[int, str] = {}
        for number, text in block:
            cells = _cells(text, self.delimiter)
            for position, index in enumerate(self.used):
                cell = cells[index].strip()
                if position not in faults and not _is_number(cell):
                    shown = "is empty" if not cell else f"has {cell[:30]!r}"
                    faults[position] = f"{self._column(position)} {shown} in line {number}"
                    if cell.lower() in _MISSING:
                        return InvalidInputError(
                            f"{self.path}: {faults[position]}. Remove or impute rows with missing entries."
                        )
        listed = "; ".join(list(faults.values())[:_EXAMPLES])
        more = f"; {len(faults) - _EXAMPLES} more columns" if len(faults) > _EXAMPLES else ""
        return InvalidInputError(
            f"{self.path}: not numeric: {listed or cause}{more}. Drop such columns, or choose the numeric ones by "
            "name (--columns); decimal points are points."
        )

    def _column(self, position: int) -> str:
        return f"column {self.columns[position]!r}" if self.columns else f"column {self.used[position] + 1}"


def finite(values: np.ndarray, dtype: np.dtype, place: Callable[[int, int], str]) -> np.ndarray:
    """A copy of ``values`` in ``dtype``; InvalidInputError with the ``place(row, column)`` of the first not finite."""
    with np.errstate(over="ignore"):
        used = np.array(values, dtype=dtype, order="C")
    bad = np.argwhere(~np.isfinite(used))
    if len(bad):
        row, column = (int(index) for index in bad[0])
        value = values[row, column]
        cure = (
            f"That is beyond {dtype}: use --dtype float64, or other units."
            if np.isfinite(value)
            else "Remove or impute rows with NaN or infinite entries."
        )
        raise InvalidInputError(f"{place(row, column)} is {value}. {cure}")
    return used


def _lines(path: Path) -> Iterator[Line]:
    """Numbered lines that are neither blank nor comments."""
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:
            for number, text in enumerate(file, 1):
                if "\0" in text:
                    raise FileFormatError(f"{path} is no UTF-8 text (line {number} holds zero bytes); save it as such.")
                if text.strip() and not text.startswith("#"):
                    yield number, text.rstrip("\n")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise FileFormatError(f"{path} is no UTF-8 text ({reason}); save it as such.") from error


def _cells(text: str, delimiter: str) -> list[str]:
    return next(csv.reader([text], delimiter=delimiter))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _check_names(path: Path, names: tuple[str, ...]) -> None:
    for position, name in enumerate(names):
        if not name:
            raise InvalidInputError(
                f"{path}: column {position + 1} has no name in the header; it looks like row labels. Save the table "
                "without them (pandas: index=False), or choose the columns to use by name (--columns)."
            )
        if names.index(name) != position:
            raise InvalidInputError(f"{path}: two columns are named {name!r}. Give each column a name of its own.")
