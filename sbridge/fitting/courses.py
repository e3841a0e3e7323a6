"""Time courses: bridges between consecutive snapshots, on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from torch import Tensor

from sbridge.data.snapshots import Times, as_times, snapshots
from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, listed, number
from sbridge.fitting.fit import End, choose_sigma, fit
from sbridge.laws import as_rows
from sbridge.laws.scaling import ScalingRecipe
from sbridge.modes import standard_modes
from sbridge.processes import BrownianMotion
from sbridge.random import Seed, as_seed, derive
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.time import snapped


@dataclass(frozen=True, eq=False)
class Course:
    """Bridges chained over several time points, on the user's time axis.

    Attributes:
        times: the times of the snapshots, rising.
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

    def interpolate(self, x: Tensor | np.ndarray, start: float, t: float, *, seed: Seed) -> Tensor:
        """Draws the state at time ``t`` once for rows ``x`` at time ``start ≤ t``, through the bridges in between."""
        start, t = snapped(start, self.times), snapped(t, self.times)
        if t < start:
            told = f"t = {number(t)} is before start = {number(start)}"
            raise InvalidInputError(f"{told}; use the bridges' backward measures.")
        seed, leg, last = as_seed(seed), self.leg(start), self.leg(t)
        rows = as_rows(x, "x", least=1)
        while leg <= last and start < t:
            stop = min(t, self.times[leg + 1])
            rows = self._within(leg, rows, start, stop, derive(seed, leg))
            start, leg = stop, leg + 1
        return rows

    def _within(self, leg: int, rows: Tensor, start: float, stop: float, seed: int) -> Tensor:
        bridge, origin = self.bridges[leg], self.times[leg]
        if start > origin:
            raise InvalidInputError(
                f"start = {number(start)} is inside a leg; give rows at one of the snapshots {listed(self.times)}."
            )
        return bridge.interpolate(rows, min(stop - origin, bridge.horizon), seed=seed)


@standard_modes(gradients=True)
def fit_course(
    arrays: Sequence[End] | Tensor | np.ndarray,
    times: Times,
    *,
    sigma: float | None = None,
    solver: Solver | None = None,
    scaling: ScalingRecipe | None = None,
    seed: Seed = 0,
) -> Course:
    """Fits bridges between consecutive snapshots, each over its own interval of the time axis.

    Args:
        arrays: snapshots, at least two, with equal numbers of columns; or one array or tensor ``(n, dim)`` of the rows
            of all snapshots, in any order.
        times: in any unit. Of snapshots: one each, rising. Of the rows of one array: one each, ``(n,)``; labels such as
            ``"day2"`` are read by their number, with a warning.
        sigma: of the Brownian reference, in units of the data per root of the time unit, common to all legs;
            ``None``: chosen for each leg by :func:`choose_sigma`.
        solver, scaling, seed: as in :func:`fit`, for every leg.

    Raises:
        InvalidInputError: for unequal numbers of snapshots (or rows) and times, times that do not rise, what
            :func:`fit` refuses.
    """
    if isinstance(arrays, (np.ndarray, Tensor)) and arrays.ndim == 2:
        arrays, times = snapshots(arrays, times)
    times = tuple(as_times(times, "times").tolist())
    if len(arrays) != len(times) or len(times) < 2:
        raise InvalidInputError(
            f"{len(arrays)} snapshots and {len(times)} times given; at least two of each are needed."
        )
    if any(b <= a for a, b in pairwise(times)):
        raise InvalidInputError(f"times must increase strictly, got {listed(times)}.")
    seed, bridges = as_seed(seed), []
    for leg, (x0, x1) in enumerate(pairwise(arrays)):
        horizon = times[leg + 1] - times[leg]
        leg_seed = derive(seed, "leg", leg)
        level = choose_sigma(x0, x1, horizon=horizon, seed=leg_seed).sigma if sigma is None else sigma
        reference = BrownianMotion(sigma=level, horizon=horizon)
        bridges.append(fit(x0, x1, reference=reference, solver=solver, scaling=scaling, seed=leg_seed))
    return Course(times, tuple(bridges))
