"""Figures of the distribution of the state through time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.fitting.courses import Course
from sbridge.measures import Direction
from sbridge.plotting.ends import end_rows, states_at
from sbridge.plotting.projection import Projection
from sbridge.plotting.style import (
    BACKDROP,
    INK,
    Clock,
    axes,
    cloud,
    color_bar,
    limits,
    panels,
    plane,
    shape,
    spaced,
    tidy,
)
from sbridge.random import Seed, as_seed, derive
from sbridge.solutions import Bridge

_COLUMNS = 61
_BINS = 80
_LEAST_STATES = 4000
_PER_ROW = 5
_MOST_HALVED = 7


def marginals(
    bridge: Bridge,
    times: Sequence[float] | None = None,
    *,
    seed: Seed,
    ax: Axes | None = None,
    projection: Projection | None = None,
    clock: Clock | None = None,
    n: int = 2000,
) -> Axes:
    """Draws the distribution of ``X_t`` under the forward process at several times.

    In two or more dimensions there is one panel per time; the first and the last one show samples of the end in grey.
    The panels are the ``child_axes`` of the returned axes (for a single time, the axes itself). In one dimension, the
    figure shows the density over time and state, lines at the 5, 50 and 95 % quantiles, and dotted lines at ``times``.

    Args:
        bridge: the solution.
        times: bridge times; five from 0 to the horizon if ``None``.
        seed: of the simulation.
        ax: where to draw; a new figure if ``None``.
        projection: the plane; fitted to the two ends if ``None``.
        clock: how times are shown; as the bridge counts them if ``None``.
        n: number of simulated states.

    Raises:
        InvalidInputError: if there is no time, or one lies outside the horizon.
    """
    seed = as_seed(seed)
    times = [bridge.horizon * k / 4 for k in range(5)] if times is None else [float(t) for t in times]
    if not times:
        raise InvalidInputError("times must hold at least one bridge time.")
    ends = end_rows(bridge, n, derive(seed, "ends"))
    projection = projection or Projection.fit(*ends)
    clock = clock or Clock.of(bridge.horizon)
    if projection.columns == 1:
        knots = torch.linspace(0.0, bridge.horizon, _COLUMNS, dtype=torch.float64, device="cpu").tolist()
        states = projection(states_at(bridge, knots, max(n, _LEAST_STATES), seed))[..., 0]
        return _density(times, knots, states, projection, axes(ax, (6.0, 3.8)), clock)
    behind = [dict(zip(_end_times(bridge), ends, strict=True)).get(t) for t in times]
    return _panels(times, list(states_at(bridge, times, n, seed)), behind, projection, ax, clock)


def course_marginals(
    course: Course,
    snapshots: Sequence[Tensor],
    *,
    seed: Seed,
    ax: Axes | None = None,
    projection: Projection | None = None,
    n: int = 1000,
) -> Axes:
    """Draws samples of the first snapshot at every snapshot and half way in between, as :func:`marginals`.

    States pass through all bridges; each bridge starts at the ends of the previous one. Samples of the snapshots are
    grey. With more than seven bridges, the times half way are not drawn.

    Args:
        course: the bridges.
        snapshots: samples at each of its times.
        seed: of the states.
        ax: where to draw; a new figure if ``None``.
        projection: the plane; fitted to all snapshots if ``None``.
        n: largest number of states.

    Raises:
        InvalidInputError: unless there is one snapshot for every time.
    """
    if len(snapshots) != len(course.times):
        raise InvalidInputError(
            f"{len(snapshots)} snapshots given for {len(course.times)} times; the numbers must be equal."
        )
    seed, projection = as_seed(seed), projection or Projection.fit(*snapshots)
    first = snapshots[0]
    starts, clock = first[spaced(len(first), n)], Clock(0.0, course.times[0], course.times[-1])
    flat, legs = projection.columns == 1, len(course.bridges)
    inner = math.ceil(_COLUMNS / legs) if flat else 1 if legs <= _MOST_HALVED else 0
    times, states = [course.times[0]], [starts]
    behind: list[Tensor | None] = [first]
    for leg, bridge in enumerate(course.bridges):
        rows, stop = states[-1], course.times[leg + 1]
        for k in range(1, inner + 1):
            t = bridge.horizon * k / (inner + 1)
            times.append(course.times[leg] + t)
            states.append(bridge.interpolate(rows, t, seed=derive(seed, leg, k)))
            behind.append(None)
        times.append(stop)
        states.append(bridge.interpolate(rows, bridge.horizon, seed=derive(seed, leg)))
        behind.append(snapshots[leg + 1])
    if flat:
        places = projection(torch.stack(states))[..., 0]
        return _density(course.times, times, places, projection, axes(ax, (6.0, 3.8)), clock)
    return _panels(times, states, behind, projection, ax, clock)


def _panels(
    times: Sequence[float],
    states: Sequence[Tensor],
    behind: Sequence[Tensor | None],
    projection: Projection,
    ax: Axes | None,
    clock: Clock,
) -> Axes:
    """Draws one panel per time, with rows in grey behind the states where there are any."""
    points = [projection(rows) for rows in states]
    grey = [None if rows is None else projection(rows) for rows in behind]
    low, high = limits(np.concatenate([*points, *(rows for rows in grey if rows is not None)]))
    host, inner = panels(ax, len(times), shape(low, high), per_row=_PER_ROW)
    for k, (t, panel) in enumerate(zip(times, inner, strict=True)):
        plane(panel, projection.labels)
        rows = grey[k]
        if rows is not None:
            cloud(panel, rows, BACKDROP, zorder=1)
        cloud(panel, points[k], clock.colour(t))
        panel.set_xlim(low[0], high[0])
        panel.set_ylim(low[1], high[1])
        panel.set_title(f"$t$ = {clock.label(t)}", fontsize=10, color=INK)
        if k % _PER_ROW:
            panel.set_ylabel("")
            panel.tick_params(labelleft=False)
    return host


def _end_times(bridge: Bridge) -> tuple[float, float]:
    """Returns start and end time of the forward process of ``bridge``: a reversed bridge starts at the horizon."""
    forward = bridge.forward.direction is Direction.FORWARD
    return (0.0, bridge.horizon) if forward else (bridge.horizon, 0.0)


def _density(
    times: Sequence[float], knots: Sequence[float], states: np.ndarray, projection: Projection, ax: Axes, clock: Clock
) -> Axes:
    """Draws the density of ``states (knots, n)`` over the plane of time and state, with dotted lines at ``times``."""
    shown = np.array([clock.shown(t) for t in knots])
    low, high = (float(side[0]) for side in limits(states.reshape(-1, 1)))
    edges = np.linspace(low, high, _BINS + 1)
    counts = np.stack([np.histogram(column, edges)[0] for column in states], axis=1)
    density = counts / (states.shape[1] * (edges[1] - edges[0]))
    halves = 0.5 * np.diff(shown)
    boundaries = np.concatenate([[shown[0] - halves[0]], shown[:-1] + halves, [shown[-1] + halves[-1]]])
    # The densest column (a narrow end) would bleach the others.
    top = float(np.quantile(density, 0.99))
    image = ax.pcolormesh(boundaries, edges, density, cmap="Blues", vmin=0.0, vmax=top)
    for level, style in ((0.05, "--"), (0.5, "-"), (0.95, "--")):
        ax.plot(shown, np.quantile(states, level, axis=1), color=INK, linewidth=1.0, linestyle=style)
    for t in times:
        ax.axvline(clock.shown(t), color=INK, linewidth=0.6, linestyle=":")
    ax.set_xlim(shown[0], shown[-1])
    ax.set_ylim(low, high)
    tidy(ax)
    ax.set_xlabel("time $t$")
    ax.set_ylabel(projection.labels[0])
    color_bar(ax, image, "density")
    return ax
