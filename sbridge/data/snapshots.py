"""Splits rows into snapshots by their times."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from sbridge.errors import InvalidInputError, TimesWarning, listed
from sbridge.laws.frames import Frame, is_frame
from sbridge.time import same_times, times_of_labels

Rows = Tensor | np.ndarray | Frame


@runtime_checkable
class ArrayLike(Protocol):
    """Anything that numpy converts to an array: arrays, tensors, columns of data frames."""

    def __array__(self) -> np.ndarray:
        """Returns the array."""
        ...


Times = Sequence[float] | Sequence[str] | ArrayLike


def snapshots(rows: Rows, times: Times) -> tuple[list[Rows], tuple[float, ...]]:
    """Splits ``rows`` by their times; also returns the times, increasing. Times that differ only by rounding are equal.

    Args:
        rows: ``(n, dim)``.
        times: one for each row: numbers or labels, in anything that becomes a one-dimensional array.

    Raises:
        InvalidInputError: if there is not one time for each row, times are not finite numbers, all are equal, or a
            time has a single row.
    """
    stamps = as_times(times, "times")
    if len(stamps) != len(rows):
        raise InvalidInputError(
            f"{len(rows)} rows and {len(stamps)} times given. One array of rows needs one time for each row; a list of "
            "arrays needs one time for each array."
        )
    values, which = same_times(stamps)
    if len(values) < 2:
        raise InvalidInputError(f"all {len(rows)} rows have the time {values[0]:g}; at least two times are needed.")
    counts = np.bincount(which)
    if counts.min() < 2:
        alone = listed(values[counts < 2].tolist())
        raise InvalidInputError(
            f"a bridge needs at least two rows at each time, but only one row has the time {alone}. Omit such times, "
            "or round times to those of the snapshots."
        )
    found: Any = rows.iloc if is_frame(rows) else rows
    return [found[np.flatnonzero(which == place)] for place in range(len(values))], tuple(values.tolist())


def as_times(times: Times, name: str, ranks: Sequence[str] | None = None) -> np.ndarray:
    """Converts times to finite float64, shape ``(n,)``; labels such as ``day2`` give their number, with a warning.

    Args:
        times: numbers or labels, in anything that becomes a one-dimensional array.
        name: their name in messages.
        ranks: the order of the labels, if they have one: it counts where they hold no numbers.

    Raises:
        InvalidInputError: for other shapes, labels without numbers or order, and missing or infinite times.
    """
    found = np.asarray(times.detach().cpu() if isinstance(times, Tensor) else times)
    if found.ndim != 1 or not len(found):
        raise InvalidInputError(f"{name} must be a one-dimensional list of times, got shape {found.shape}.")
    if found.dtype.kind not in "iuf":
        found = _numbers(found, name, ranks)
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        count = int((~np.isfinite(found)).sum())
        raise InvalidInputError(f"{name}: the time is missing or infinite for {count} of {len(found)} rows; drop them.")
    return found


def _numbers(labels: np.ndarray, name: str, ranks: Sequence[str] | None) -> np.ndarray:
    """Returns the times that labels denote; numbers give no warning."""
    text = np.array([str(label) for label in labels])
    try:
        return text.astype(np.float64)
    except ValueError:
        pass
    known = np.unique(text).tolist()
    order = [] if ranks is None else [str(rank) for rank in ranks]
    spread = dict(zip(order, map(float, range(len(order))), strict=True))
    times = times_of_labels(known) or (spread if set(known) <= set(spread) else None)
    if times is None:
        raise InvalidInputError(
            f"{name} holds {listed(known, 6)}; times must be numbers, labels with one number each (day2, day10) or an "
            "ordered category. Add a column of numbers."
        )
    pairs = listed([f"{label} = {times[label]:g}" for label in sorted(known, key=times.__getitem__)], 8)
    equal = ", one unit of time apart in the order of the category" if times is spread else ""
    warnings.warn(f"{name} holds labels; they are read as times{equal}: {pairs}.", TimesWarning, stacklevel=4)
    return np.array([times[label] for label in text.tolist()])
