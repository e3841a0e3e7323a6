"""The ends of a fit from what users give: arrays, data frames, distributions, or cells of an ``AnnData``."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from torch import Tensor

from sbridge.data.annotated import AnnotatedCells
from sbridge.data.snapshots import Times
from sbridge.data.tables import snapshots_of
from sbridge.errors import InvalidInputError, listed, shown
from sbridge.laws import Law
from sbridge.laws.frames import Frame

End = Law | Tensor | np.ndarray | Frame


class Cells(TypedDict, total=False):
    """How the cells of an ``AnnData`` are read: see :func:`~sbridge.data.tables.snapshots_of`."""

    time_key: str
    rep: str


class Selection(Cells, total=False):
    """The same, and the times to use."""

    times: Times


def check_selection(selection: Cells | Selection, function: str) -> None:
    """Raises an error for options that select cells, where the data are no ``AnnData``, and for unknown ones."""
    _check_known(selection, function)
    if selection:
        raise InvalidInputError(
            f"{listed(selection)} select cells of an AnnData, but {function} was given arrays. Omit them."
        )


def selected(
    cells: AnnotatedCells, selection: Selection, function: str = "fit_course"
) -> tuple[list[Tensor], tuple[float, ...]]:
    """Returns the snapshots of an ``AnnData`` and their times; raises InvalidInputError without a time key."""
    _check_known(selection, function)
    return snapshots_of(cells, **selection)


def ends_of(x0: End | AnnotatedCells, x1: End | None, selection: Selection) -> tuple[End, End]:
    """Returns the two ends, of arrays or of an ``AnnData``."""
    if isinstance(x0, AnnotatedCells):
        if x1 is not None:
            raise InvalidInputError("an AnnData holds both ends; give it alone, with time_key and times.")
        snapshots, times = selected(x0, selection, "fit")
        if len(snapshots) != 2:
            raise InvalidInputError(
                f"a bridge has two ends, but obs[{shown(selection.get('time_key'))}] has the times {listed(times)}. "
                "Choose two, times=(t0, t1), or use fit_course for all."
            )
        return snapshots[0], snapshots[1]
    check_selection(selection, "fit")
    if x1 is None:
        raise InvalidInputError("x1 is missing: a bridge needs two data sets, or an AnnData with a time_key.")
    return x0, x1


def _check_known(selection: Cells | Selection, function: str) -> None:
    unknown = sorted(set(selection) - {"time_key", "rep", "times"})
    if unknown:
        raise TypeError(f"{function}() got an unexpected keyword argument {shown(unknown[0])}")
