"""Data frames in and out, without an import of pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor

from sbridge.errors import InvalidInputError, listed, shown


@runtime_checkable
class Frame(Protocol):
    """A data frame of pandas: one sample per row, columns with names."""

    columns: Any
    index: Any
    iloc: Any

    def __len__(self) -> int: ...

    def to_numpy(self) -> np.ndarray:
        """Returns the values."""
        ...


F = TypeVar("F", bound=Frame)
_SHOWN = 12


def is_frame(value: object) -> TypeGuard[Frame]:
    """Returns whether ``value`` is a data frame."""
    return all(hasattr(value, name) for name in ("columns", "index", "iloc", "to_numpy"))


def columns_of(value: object) -> tuple[str, ...] | None:
    """Returns the names of the columns; ``None`` for anything but a data frame."""
    return tuple(str(name) for name in value.columns) if is_frame(value) else None


def common_columns(ends: Sequence[object], names: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the columns of the data frames among ``ends``; ``None`` without any.

    Raises:
        InvalidInputError: if two of them differ, in their order too.
    """
    known = [(name, found) for name, end in zip(names, ends, strict=True) if (found := columns_of(end)) is not None]
    for name, columns in known[1:]:
        check_columns(columns, known[0][1], name, f"{known[0][0]} has")
    return known[0][1] if known else None


def check_columns(columns: Sequence[str], wanted: Sequence[str], name: str, whose: str) -> None:
    """Raises InvalidInputError unless ``columns`` of the frame ``name`` are ``wanted``, in this order."""
    if tuple(columns) == tuple(wanted):
        return
    cure = "Rename them if they are the same quantities."
    if set(wanted) <= set(columns):
        cure = f"Choose them in that order: {name}[{list(wanted) if len(wanted) <= _SHOWN else '[…]'}]."
    raise InvalidInputError(f"{name} has the columns {listed(columns)}, but {whose} {listed(wanted)}. {cure}")


def frame_numbers(frame: Any, name: str) -> np.ndarray:  # noqa: ANN401  (pandas is no dependency)
    """Converts a data frame to an array of the widest type of its columns.

    Raises:
        InvalidInputError: for columns that are not numeric, or have missing entries.
    """
    foreign = [f"{shown(column)} ({dtype})" for column, dtype in frame.dtypes.items() if dtype.kind not in "iuf"]
    if foreign:
        raise InvalidInputError(
            f"{name} is a data frame with columns that are not numeric: {listed(foreign)}. Drop or convert them."
        )
    gaps = frame.isna()
    if gaps.to_numpy().any():
        column = gaps.columns[gaps.any()][0]
        rows = listed(frame.index[gaps[column]].tolist(), 6)
        raise InvalidInputError(f"{name}: column {shown(column)} is missing for the rows {rows}. Drop or impute them.")
    return frame.to_numpy(dtype=np.result_type(*(np.dtype(f"{d.kind}{d.itemsize}") for d in frame.dtypes)))


def framed(rows: Tensor, like: Any) -> Any:  # noqa: ANN401
    """Returns ``rows`` as a data frame with index and columns of ``like``, if that is one; else as they are."""
    if not is_frame(like) or rows.ndim != 2:
        return rows
    made: Any = type(like)
    return made(rows.detach().cpu().numpy(), index=like.index, columns=like.columns)
