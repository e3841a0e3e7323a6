"""Time courses: bridges between consecutive snapshots, on one time axis."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Unpack, cast, overload

import numpy as np
from torch import Tensor

from sbridge.data.annotated import AnnotatedCells
from sbridge.data.snapshots import Times, as_times, snapshots
from sbridge.devices import Device, Movable, as_device
from sbridge.display import short_repr
from sbridge.errors import FileFormatError, InvalidInputError, listed, number, shown
from sbridge.fitting.fit import Preparation, choose_sigma, prepare
from sbridge.fitting.selection import Cells, End, check_selection, selected
from sbridge.laws.frames import F, Frame, common_columns, is_frame
from sbridge.laws.scaling import ScalingRecipe
from sbridge.laws.shapes import as_given
from sbridge.modes import standard_modes
from sbridge.parts import moved
from sbridge.problems import Growth, Quadratic, SoftEnds
from sbridge.processes import BrownianMotion, Process
from sbridge.random import Seed, as_seed, derive
from sbridge.solutions import Bridge, load_bridge, save_bridge
from sbridge.solvers.base import Solver
from sbridge.storage import documents
from sbridge.time import snapped

_FORMAT, _FILE = "sbridge course/1", "course.json"


@dataclass(frozen=True, eq=False)
class Course(Movable):
    """Bridges chained over several time points, on the user's time axis.

    Attributes:
        times: the times of the snapshots, increasing.
        bridges: ``bridges[i]`` runs from ``times[i]`` to ``times[i + 1]``; its own clock is ``t − times[i]``.
    """

    times: tuple[float, ...]
    bridges: tuple[Bridge, ...] = field(repr=False)

    __repr__ = short_repr

    def leg(self, t: float) -> int:
        """Returns the index of the bridge that covers time ``t``."""
        t = snapped(t, self.times)
        if not self.times[0] <= t <= self.times[-1]:
            span = f"{number(self.times[0])} … {number(self.times[-1])}"
            raise InvalidInputError(f"time {number(t)} is outside the course, {span}.")
        return min(int(np.searchsorted(self.times, t, side="right")) - 1, len(self.bridges) - 1)

    @overload
    def interpolate(self, x: Tensor | np.ndarray, start: float, t: float, *, seed: Seed) -> Tensor: ...
    @overload
    def interpolate(self, x: F, start: float, t: float, *, seed: Seed) -> F: ...
    def interpolate(self, x: Any, start: float, t: float, *, seed: Seed) -> Any:
        """Draws the state at time ``t`` once for rows ``x`` at time ``start ≤ t``, through the bridges in between."""
        start, t = snapped(start, self.times), snapped(t, self.times)
        if t < start:
            told = f"t = {number(t)} is before start = {number(start)}"
            raise InvalidInputError(f"{told}; use the bridges' backward measures.")
        seed, leg, last = as_seed(seed), self.leg(start), self.leg(t)
        rows = self.bridges[leg].rows(x, "x")
        while leg <= last and start < t:
            stop = min(t, self.times[leg + 1])
            rows = self._within(leg, rows, start, stop, derive(seed, leg))
            start, leg = stop, leg + 1
        return as_given(rows, x)

    def save(self, folder: str | Path) -> None:
        """Writes ``course.json`` and one pair of files for each bridge, ``bridge-1`` and so on, into ``folder``.

        Raises:
            UnsupportedError: if a bridge contains a plain function or an unregistered class.
            OSError: if the folder cannot be written.
        """
        folder = documents.as_path(folder)
        for leg, bridge in enumerate(self.bridges):
            save_bridge(bridge, folder / f"bridge-{leg + 1}")
        documents.write_text(
            folder / _FILE, json.dumps(documents.sealed({"format": _FORMAT, "times": list(self.times)})) + "\n"
        )

    @classmethod
    def load(cls, folder: str | Path, *, device: Device = "cpu") -> Course:
        """Loads the course that :meth:`save` wrote, onto ``device``.

        Raises:
            FileFormatError: if a file is missing, damaged, or not of this format.
            InvalidInputError: if there is no such device.
        """
        place = as_device(device)
        path = documents.as_path(folder) / _FILE
        document = documents.read_json(path)
        times = document.get("times") if isinstance(document, dict) and document.get("format") == _FORMAT else None
        if not isinstance(times, list) or len(times) < 2 or not all(isinstance(t, float) for t in times):
            raise FileFormatError(f"{path} is not that of a time course (expected format {_FORMAT!r}).")
        documents.check_seal(document, path)
        legs = tuple(load_bridge(path.with_name(f"bridge-{leg}")) for leg in range(1, len(times)))
        return moved(cls(tuple(times), legs), place)

    def _within(self, leg: int, rows: Tensor, start: float, stop: float, seed: int) -> Tensor:
        bridge, origin = self.bridges[leg], self.times[leg]
        if start > origin:
            raise InvalidInputError(
                f"start = {number(start)} is inside a leg; give rows at one of the snapshots {listed(self.times)}."
            )
        return bridge.interpolate(rows, min(stop - origin, bridge.horizon), seed=seed)


Reference = Callable[[Any, Any, float], Process]
"""``(x0, x1, duration)`` of a leg → its reference process, in units of the data."""


def checked_snapshots(
    arrays: Sequence[End] | Tensor | np.ndarray | Frame, times: Times
) -> tuple[Sequence[End], tuple[float, ...]]:
    """Returns snapshots and their times, from these or from the samples and times of one array.

    Raises:
        InvalidInputError: for unequal numbers of snapshots (or samples) and times, times that do not increase, or data
            frames with other columns.
    """
    if is_frame(arrays) or (isinstance(arrays, (np.ndarray, Tensor)) and arrays.ndim == 2):
        found, times = snapshots(arrays, times)
    else:
        found = cast("Sequence[End]", arrays)
    stamps = tuple(as_times(times, "times").tolist())
    if len(found) != len(stamps) or len(stamps) < 2:
        raise InvalidInputError(
            f"{len(found)} snapshots and {len(stamps)} times given; at least two of each are needed."
        )
    if any(b <= a for a, b in pairwise(stamps)):
        raise InvalidInputError(f"times must increase strictly, got {listed(stamps)}.")
    common_columns(found, [f"snapshot {place}" for place in range(len(found))])
    return found, stamps


@standard_modes(gradients=True)
def prepare_course(
    arrays: Sequence[End] | Tensor | np.ndarray | Frame,
    times: Times,
    *,
    sigma: float | None = None,
    reference: Reference | None = None,
    state_cost: Quadratic | None = None,
    balance: SoftEnds | Growth | None = None,
    solver: Solver | None = None,
    scaling: ScalingRecipe | None = None,
    seed: Seed = 0,
) -> tuple[tuple[float, ...], tuple[Preparation, ...]]:
    """Checks the input and makes every choice of :func:`fit_course`, without running anything yet.

    Returns:
        The times, and one :class:`~sbridge.fitting.Preparation` for each leg.
    """
    arrays, times = checked_snapshots(arrays, times)
    if sigma is not None and reference is not None:
        raise InvalidInputError("sigma and reference were both given; the reference determines σ. Omit sigma.")
    seed, legs = as_seed(seed), []
    for leg, (x0, x1) in enumerate(pairwise(arrays)):
        duration, leg_seed = times[leg + 1] - times[leg], derive(seed, "leg", leg)
        if reference is None:
            level = choose_sigma(x0, x1, horizon=duration, seed=leg_seed).sigma if sigma is None else sigma
            process: Process = BrownianMotion(sigma=level, horizon=duration)
        else:
            process = reference(x0, x1, duration)
            if not isinstance(process, Process) or not math.isclose(process.horizon, duration, rel_tol=1e-9):
                raise InvalidInputError(
                    f"reference(x0, x1, duration) must return a process with horizon = duration = {number(duration)}, "
                    f"got {shown(process)}."
                )
        options = {"solver": solver, "scaling": scaling, "seed": leg_seed}
        legs.append(prepare(x0, x1, reference=process, state_cost=state_cost, balance=balance, **options))
    return times, tuple(legs)


def fit_course(
    arrays: Sequence[End] | Tensor | np.ndarray | Frame | AnnotatedCells,
    times: Times = (),
    *,
    sigma: float | None = None,
    reference: Reference | None = None,
    state_cost: Quadratic | None = None,
    balance: SoftEnds | Growth | None = None,
    solver: Solver | None = None,
    scaling: ScalingRecipe | None = None,
    seed: Seed = 0,
    **selection: Unpack[Cells],
) -> Course:
    """Fits bridges between consecutive snapshots, each over its own interval of the time axis.

    Args:
        arrays: snapshots, at least two, with equal numbers of columns; or one array, tensor or data frame ``(n, dim)``
            of the samples of all snapshots, in any order; or an ``AnnData``.
        times: in any unit. Of snapshots: one each, increasing. Of the samples of one array: one each, ``(n,)``; labels
            such as ``"day2"`` are read by their number, with a warning. Of an ``AnnData``: those to use, if not all.
        sigma: of the Brownian reference, in units of the data per root of the time unit, common to all legs;
            ``None``: chosen for each leg by :func:`choose_sigma`.
        reference: another reference process: a function ``(x0, x1, duration) → Process`` that is called once for each
            leg, such as ``lambda x0, x1, duration: OrnsteinUhlenbeck(1.0, 0.5, horizon=duration)``.
        state_cost: as in :func:`fit`, for every leg; one with a closed form, which does not depend on time.
        balance: as in :func:`fit`, for every leg: each has its own growth, ``course.bridges[i].balance``.
        solver, scaling, seed: as in :func:`fit`, for every leg.
        selection: of an ``AnnData``: ``time_key`` and ``rep``, as in :func:`fit`.

    Raises:
        InvalidInputError: for unequal numbers of snapshots (or samples) and times, times that do not increase, a
            reference of another duration, both sigma and reference, and what :func:`fit` refuses.
    """
    if isinstance(arrays, AnnotatedCells):
        wanted = as_times(times, "times").tolist() if np.size(times) else ()
        arrays, times = selected(arrays, {**selection, "times": wanted})
    else:
        check_selection(selection, "fit_course")
    times, legs = prepare_course(
        arrays,
        times,
        sigma=sigma,
        reference=reference,
        state_cost=state_cost,
        balance=balance,
        solver=solver,
        scaling=scaling,
        seed=seed,
    )
    return Course(times, tuple(leg.run() for leg in legs))
