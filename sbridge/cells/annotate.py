"""Results of a course, written into the ``AnnData`` of its cells."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbridge.cells.fates import as_course, fates
from sbridge.cells.groups import as_groups
from sbridge.data.annotated import AnnotatedCells, column_of
from sbridge.data.tables import timed_rows
from sbridge.errors import InvalidInputError, listed, number, shown
from sbridge.fitting.courses import Course
from sbridge.modes import standard_modes
from sbridge.random import Seed, as_seed, derive
from sbridge.solutions import Bridge
from sbridge.time import snapped

_LIMITS = {"fates": "probabilities", "fates_lower": "lower", "fates_upper": "upper"}


@standard_modes(gradients=False)
def annotate(
    data: AnnotatedCells,
    course: Course | Bridge,
    *,
    time_key: str,
    rep: str = "X_pca",
    groups: str | None = None,
    prefix: str = "sbridge",
    draws: int = 100,
    neighbours: int = 1,
    seed: Seed = 0,
) -> None:
    """Writes velocity, fates and growth of each cell into an ``AnnData``; nothing else of it changes.

    With the default prefix:

    * ``obsm["sbridge_velocity"]``: the mean velocity ``b + σu`` with which the paths leave a cell, in units of the
      representation per unit time. NaN at the last time, which no bridge leaves.
    * ``obsm["sbridge_fates"]``, and ``_lower`` and ``_upper``: the probability of each group of the last time with
      its interval (:func:`~sbridge.cells.fates`), as data frames. NaN for cells between the snapshots of the fit.
    * ``obs["sbridge_growth"]``, if ends are soft: growth until the next snapshot, relative to the mean. NaN as above,
      and at the last time.
    * ``uns["sbridge"]``: times and options.

    Cells outside the times of the course get NaN. Entries of an earlier call are replaced.

    Args:
        data: the cells, of all times or some.
        course: fitted in the space of ``rep``, on the time axis of ``time_key``. A bridge is refused, since it does
            not know the times of its ends: give ``Course((t0, t1), (bridge,))``.
        time_key, rep: as in :func:`~sbridge.fitting.fit_course`.
        groups: the column of ``obs`` with the labels of the cells, of which those at the last time count; ``None``: no
            fates.
        prefix: of all names.
        draws, neighbours, seed: as in :func:`~sbridge.cells.fates`.

    Raises:
        UnknownNameError: for a key that is not there, with those that are.
        InvalidInputError: for a representation of another dimension, cells without a time, no cell at a time of the
            course, and labels that :func:`~sbridge.cells.fates` refuses.
    """
    course = _checked(data, course, groups)
    rows, stamps = _cells(data, course, time_key, rep)
    seed = as_seed(seed)
    options = {"draws": draws, "neighbours": neighbours, "seed": derive(seed, "fates")}
    tables = {} if groups is None else _fates(data, course, (rows, stamps), groups, options)
    tables["velocity"] = _velocities(course, rows, stamps).numpy()
    growth = _growth(course, rows, stamps)
    for name in ("velocity", *_LIMITS):  # all is computed by now: an error leaves the data as they were
        data.obsm.pop(f"{prefix}_{name}", None)
    for name, values in tables.items():
        data.obsm[f"{prefix}_{name}"] = values
    if f"{prefix}_growth" in data.obs:
        del data.obs[f"{prefix}_growth"]
    if growth is not None:
        data.obs[f"{prefix}_growth"] = growth.numpy()
    settings = {"time_key": time_key, "rep": rep, "times": np.array(course.times), "seed": seed}
    settings |= {} if groups is None else {"groups": groups, "draws": draws, "neighbours": neighbours}
    data.uns[prefix] = settings | {"version": sys.modules["sbridge"].__version__}


def _checked(data: object, course: Course | Bridge, groups: object) -> Course:
    """Returns the course; raises InvalidInputError for a bridge, and for data or groups of the wrong kind."""
    if not isinstance(data, AnnotatedCells):
        raise InvalidInputError(f"annotate writes into an AnnData, got {shown(data)}. For arrays use sbridge.fates.")
    if groups is not None and not isinstance(groups, str):
        raise InvalidInputError(f"groups must be the name of one column of obs, or None; got {shown(groups)}.")
    if isinstance(course, Bridge):
        raise InvalidInputError(
            "a bridge does not know the times of its ends: fit with fit_course(adata, time_key=…, times=(t0, t1)), or "
            "give Course((t0, t1), (bridge,))."
        )
    return as_course(course)


def _cells(data: AnnotatedCells, course: Course, time_key: str, rep: str) -> tuple[Tensor, np.ndarray]:
    """Returns the rows of all cells and their times, checked against those of the course."""
    rows, stamps = timed_rows(data, time_key=time_key, rep=rep)
    times = np.array([snapped(t, course.times) for t in stamps.tolist()])
    if rows.shape[1] != course.bridges[0].dim:
        raise InvalidInputError(
            f"{rep} has {rows.shape[1]} columns, but the course has dimension {course.bridges[0].dim}. Give rep, the "
            "representation of the fit."
        )
    if not ((times >= course.times[0]) & (times <= course.times[-1])).any():
        span = f"from {number(course.times[0])} to {number(course.times[-1])}"
        raise InvalidInputError(f"no cell has a time {span}, those of the course; {time_key} is {listed(set(times))}.")
    return rows, times


def _velocities(course: Course, rows: Tensor, times: np.ndarray) -> Tensor:
    """Computes ``b + σu`` of the bridge that runs on from each cell; NaN where there is none."""
    found = torch.full_like(rows, math.nan)
    for t in np.unique(times):
        if course.times[0] <= t < course.times[-1]:
            leg, here = course.leg(t), torch.from_numpy(times == t)
            bridge, start, stop = course.bridges[leg], *course.times[leg : leg + 2]
            pace = bridge.horizon / (stop - start)  # 1, but for a bridge with a clock of its own
            measure, x, clock = bridge.forward, rows[here], pace * float(t - start)
            velocity = measure.process.drift(clock, x)
            if measure.control is not None:
                velocity = velocity + measure.process.scale(clock).to(x)(measure.control(clock, x))
            found[here] = pace * velocity
    return found


def _growth(course: Course, rows: Tensor, times: np.ndarray) -> Tensor | None:
    """Computes growth until the next snapshot; ``None`` if no end is soft."""
    if all(bridge.balance is None for bridge in course.bridges):
        return None
    found = torch.full_like(rows[:, 0], math.nan)
    for bridge, t in zip(course.bridges, course.times, strict=False):
        here = torch.from_numpy(times == t)
        if here.any():
            found[here] = 1.0 if bridge.balance is None else bridge.balance.growth(rows[here])
    return found


def _fates(
    data: AnnotatedCells, course: Course, cells: tuple[Tensor, np.ndarray], key: str, options: dict[str, int]
) -> dict[str, Any]:
    """Returns data frames of fate probabilities and their limits; those of the last time are 0 and 1."""
    (rows, times), last = cells, course.times[-1]
    at_end = times == last
    if not at_end.any():
        raise InvalidInputError(
            f"no cell has the time {number(last)}, the last of the course, at which the groups are needed. Give all "
            "cells, or no groups."
        )
    labels, ends = column_of(data, key, "adata")[at_end], rows[torch.from_numpy(at_end)]
    groups = as_groups(labels, len(ends), f"obs[{shown(key)}] at the time {number(last)}")
    found = {name: torch.full((len(rows), len(groups.names)), math.nan, device="cpu").to(rows) for name in _LIMITS}
    for t in course.times[:-1]:
        here = torch.from_numpy(times == t)
        if here.any():
            made = fates(course, labels, rows[here], labelled=ends, times=(t, last), **options)
            for name, attribute in _LIMITS.items():
                found[name][here] = getattr(made, attribute)
    for values in found.values():
        values[torch.from_numpy(at_end)] = groups.indicators.to(values)
    frame: Any = type(data.obs)
    return {
        name: frame(values.numpy(), index=data.obs_names, columns=list(groups.names)) for name, values in found.items()
    }
