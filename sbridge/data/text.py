"""Reader of text tables: comma, semicolon or tab separated, with or without a header."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from sbridge.errors import FileFormatError, InvalidInputError, ReadingWarning, listed, shown, unknown_name

BLOCK_ROWS = 8192
_MISSING = {"", "na", "n/a", "null", "none"}
_EXAMPLES = 6
_LINES_OF_EVIDENCE = 1000
Line = tuple[int, str]  # its number in the file, counted from 1, and its text


@dataclass(frozen=True)
class TextRows:
    """A text table that is opened but not yet read.

    Attributes:
        path: the file.
        delimiter: between cells.
        columns: names of the columns used; empty without a header.
        used: their positions.
        width: cells in a line.
        header: whether the first line is one.
        dtype: of the blocks; ``None``: float64, and left open for the table.
        called: what the user called it, if that is not its path.
    """

    path: Path
    delimiter: str
    columns: tuple[str, ...]
    used: tuple[int, ...]
    width: int
    header: bool
    dtype: np.dtype | None
    called: str | None = None

    @classmethod
    def open(cls, path: Path, columns: Sequence[str], dtype: np.dtype | None, header: str = "auto") -> TextRows:
        """Reads the first line. Lines that are blank or begin with ``#`` do not count.

        The first line is a header if a cell in it is no number. A first line 0, 1, 2, … may be data, or the column
        names of a data frame without names. It is a header if every cell after it has a decimal point or an exponent,
        as data frames write floating-point numbers. A warning says what was decided.

        Args:
            path: the file.
            columns: names of the columns to use; none: all.
            dtype: of the blocks, or ``None``.
            header: ``"yes"``, ``"no"``, or ``"auto"``, as above.

        Raises:
            FileFormatError: if there is no text in it, or it is no UTF-8.
            InvalidInputError: if a header cell is empty, which is how row labels are written, or names repeat.
            UnknownNameError: if a column asked for is not there.
        """
        number, first = next(_lines(path), (0, ""))
        if not number:
            raise FileFormatError(f"{path} has no lines with data. Save it again.")
        delimiter = max(",;\t", key=first.count)
        cells = [cell.strip() for cell in _cells(path, first, delimiter)]
        named = _is_header(path, cells, delimiter) if header == "auto" else header == "yes"
        if columns and not named:
            raise InvalidInputError(f"{path} has no header line, so columns {listed(columns)} cannot be chosen.")
        names = tuple(cells) if named else ()
        if not columns:
            _check_names(path, names)
        for name in columns:
            if names.count(name) != 1:
                raise unknown_name(f"column of {path}", name, names)
        used = tuple(names.index(name) for name in columns) if columns else tuple(range(len(cells)))
        return cls(path, delimiter, tuple(columns) or names, used, len(cells), named, dtype)

    @property
    def name(self) -> str:
        """The user's name for it."""
        return self.called or str(self.path)

    @property
    def time(self) -> None:
        """``None``: text files give no time."""
        return None

    @property
    def dim(self) -> int:
        """The number of columns used."""
        return len(self.used)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields all rows in order, at most ``BLOCK_ROWS`` at a time.

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
        return finite(
            values,
            self.dtype or np.dtype(np.float64),
            lambda i, j: f"{self.path}: line {block[i][0]}, {self._column(j)}",
        )

    def _check_widths(self, block: list[Line]) -> None:
        for number, text in block:
            count = len(_cells(self.path, text, self.delimiter))
            if count != self.width:
                raise InvalidInputError(
                    f"{self.path}: line {number} has {count} cells, the first line has {self.width}. Is it truncated?"
                )

    def _diagnosis(self, block: list[Line], cause: ValueError) -> InvalidInputError:
        """Describes why a block is not a table of numbers: every faulty column with its first example."""
        self._check_widths(block)
        faults: dict[int, str] = {}
        for number, text in block:
            cells = _cells(self.path, text, self.delimiter)
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
            f"{self.path}: not numeric: {listed or cause}{more}. Drop such columns, or choose the numeric ones by name "
            "(--columns); write decimals with a point, not a comma."
        )

    def _column(self, position: int) -> str:
        return f"column {shown(self.columns[position])}" if self.columns else f"column {self.used[position] + 1}"


def finite(values: np.ndarray, dtype: np.dtype, place: Callable[[int, int], str]) -> np.ndarray:
    """Copies ``values`` to ``dtype``; raises InvalidInputError with the ``place(row, column)`` of a non-finite one."""
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
    """Yields the numbered lines that are neither blank nor comments."""
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:
            for number, text in enumerate(file, 1):
                if "\0" in text:
                    raise FileFormatError(
                        f"{path} is not UTF-8 text (line {number} holds zero bytes); save it as UTF-8."
                    )
                if text.strip() and not text.startswith("#"):
                    yield number, text.rstrip("\n")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise FileFormatError(f"{path} is not UTF-8 text ({reason}); save it as UTF-8.") from error


def _cells(path: Path, text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([text], delimiter=delimiter))
    except csv.Error as error:
        raise FileFormatError(f"{path} is not a text table ({error} in a line that begins {text[:30]!r}).") from error


def _is_header(path: Path, cells: list[str], delimiter: str) -> bool:
    """Returns whether the first line is a header; warns where it may be either."""
    if not all(_is_number(cell) for cell in cells):
        return True
    if len(cells) < 2 or cells != [str(i) for i in range(len(cells))]:
        return False
    rest = islice(_lines(path), 1, 1 + _LINES_OF_EVIDENCE)
    pointed = [any(mark in cell for mark in ".eE") for _, text in rest for cell in _cells(path, text, delimiter)]
    named, shown = bool(pointed) and all(pointed), delimiter.join(cells[:4]) + ("…" if len(cells) > 4 else "")
    reason = "the names of columns, because all cells below have decimal points" if named else "a row of data"
    warnings.warn(
        f"{path}: the first line, {shown}, is read as {reason}. Otherwise: --header {'no' if named else 'yes'}.",
        ReadingWarning,
        stacklevel=2,
    )
    return named


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
                f"{path}: column {position + 1} has no name in the header; it probably holds row labels. Save the "
                "table without them (pandas: index=False), or choose columns by name (--columns)."
            )
        if names.index(name) != position:
            raise InvalidInputError(f"{path}: two columns are named {shown(name)}. Give each column its own name.")
