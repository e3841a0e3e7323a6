"""Figures of trajectories."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.fitting.courses import Course
from sbridge.measures import Paths
from sbridge.plotting.projection import Projection
from sbridge.plotting.style import TIME, Clock, axes, cloud, limits, opacity, plane, spaced, tidy, time_bar
from sbridge.random import Seed, as_seed, derive

_MOST_KNOTS = 200
_SIZE = 5.4, 4.6


def trajectories(
    paths: Paths,
    *,
    ax: Axes | None = None,
    projection: Projection | None = None,
    clock: Clock | None = None,
    most: int = 150,
) -> Axes:
    """Draws paths as lines coloured by time, with dots at their first and last states.

    In one dimension time is the horizontal axis.

    Args:
        paths: of a forward or a backward measure.
        ax: where to draw; a new figure if ``None``.
        projection: the plane; fitted to the two ends of the paths if ``None``.
        clock: how times are shown; as those of the paths if ``None``.
        most: largest number of paths drawn, evenly spaced among the paths; at most 200 knots of each.

    Raises:
        InvalidInputError: if ``most`` is not positive.
    """
    if most < 1:
        raise InvalidInputError(f"most must be a positive number of paths, got {most}.")
    clock = clock or Clock.of(float(paths.t.max()))
    times = paths.t.detach().cpu().double().numpy() + clock.origin
    projection = projection or Projection.fit(paths.x[0], paths.x[-1])
    return _draw(times, paths.x[:, spaced(paths.x.shape[1], most)], axes(ax, _SIZE), projection, clock)


def course_trajectories(
    course: Course, starts: Tensor, *, seed: Seed, ax: Axes | None = None, projection: Projection | None = None
) -> Axes:
    """Draws paths through all bridges of a time course, each from the end of the previous one, as :func:`trajectories`.

    Args:
        course: the bridges.
        starts: samples at the first time, ``(n, dim)``; each starts one path.
        seed: of the simulation.
        ax: where to draw; a new figure if ``None``.
        projection: the plane; fitted to the first and the last states if ``None``.
    """
    seed, rows = as_seed(seed), starts
    times, states = [], []
    for leg, bridge in enumerate(course.bridges):
        with torch.no_grad():
            paths = bridge.forward.simulate(rows, seed=derive(seed, leg))
        kept = slice(0 if leg == 0 else 1, None)  # a leg begins where the one before ended
        times.append(paths.t[kept].cpu().double().numpy() + course.times[leg])
        states.append(paths.x[kept])
        rows = paths.x[-1]
    x = torch.cat(states)
    projection = projection or Projection.fit(x[0], x[-1])
    clock = Clock(0.0, course.times[0], course.times[-1])
    return _draw(np.concatenate(times), x, axes(ax, _SIZE), projection, clock)


def _draw(times: np.ndarray, x: Tensor, ax: Axes, projection: Projection, clock: Clock) -> Axes:
    """Draws paths ``x (times, n, dim)`` at times on the axis of the user."""
    knots = spaced(len(x), _MOST_KNOTS)
    times, points = times[knots], projection(x[knots])
    if projection.columns == 1:
        points = np.concatenate([np.broadcast_to(times[:, None, None], points.shape), points], axis=-1)
        tidy(ax)
        ax.set_xlabel("time $t$")
        ax.set_ylabel(projection.labels[0])
    else:
        plane(ax, projection.labels)
    ax.add_collection(_lines(times, points, clock))
    for end in (0, -1) if times[0] < times[-1] else (-1, 0):
        cloud(ax, points[end], TIME(clock.norm(float(times[end]))), zorder=3)
    low, high = limits(points)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(low[1], high[1])
    if projection.columns == 2:
        time_bar(ax, clock)
    return ax


def _lines(times: np.ndarray, points: np.ndarray, clock: Clock) -> LineCollection:
    """Makes one segment per step and path, coloured by the time at its middle."""
    segments = np.stack([points[:-1], points[1:]], axis=2).reshape(-1, 2, 2)
    count = points.shape[1]
    middle = np.repeat(0.5 * (times[:-1] + times[1:]), count)
    lines = LineCollection(list(segments), cmap=TIME, norm=clock.norm, linewidths=0.7)
    lines.set_array(middle)
    lines.set_alpha(opacity(count, full=25))
    lines.set_capstyle("butt")
    return lines
