"""Trajectories."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize

from sbridge.errors import InvalidInputError
from sbridge.measures import Paths
from sbridge.plotting.projection import Projection
from sbridge.plotting.style import SOURCE, TARGET, TIME, axes, cloud, limits, opacity, plane, spaced, tidy, time_bar

_MOST_KNOTS = 200


def trajectories(
    paths: Paths, *, ax: Axes | None = None, projection: Projection | None = None, most: int = 150
) -> Axes:
    """Paths as lines coloured by time, with their states at ``t = 0`` and ``t = T`` as dots.

    In one dimension time is the horizontal axis.

    Args:
        paths: of a forward or a backward measure.
        ax: where to draw; a new figure if ``None``.
        projection: the plane; fitted to the two ends of the paths if ``None``.
        most: at most so many paths are drawn, evenly spaced among the rows; at most 200 knots of each.

    Raises:
        InvalidInputError: if ``most`` is not positive.
    """
    if most < 1:
        raise InvalidInputError(f"most must be a positive number of paths, got {most}.")
    knots, rows = spaced(len(paths.x), _MOST_KNOTS), spaced(paths.x.shape[1], most)
    times = paths.t.detach().cpu().double().numpy()[knots]
    projection = projection or Projection.fit(paths.x[0], paths.x[-1])
    points = projection(paths.x[:, rows][knots])
    ax = axes(ax, (5.4, 4.6))
    if projection.columns == 1:
        points = np.concatenate([np.broadcast_to(times[:, None, None], points.shape), points], axis=-1)
        tidy(ax)
        ax.set_xlabel("time $t$")
        ax.set_ylabel(projection.labels[0])
    else:
        plane(ax, projection.labels)
    lines = _lines(times, points, len(rows))
    ax.add_collection(lines)
    first, last = (0, -1) if times[0] < times[-1] else (-1, 0)
    cloud(ax, points[first], SOURCE, zorder=3)
    cloud(ax, points[last], TARGET, zorder=3)
    low, high = limits(points)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(low[1], high[1])
    if projection.columns == 2:
        time_bar(ax, float(times.max()))
    return ax


def _lines(times: np.ndarray, points: np.ndarray, count: int) -> LineCollection:
    """One segment per step and path, coloured by the time at its middle."""
    segments = np.stack([points[:-1], points[1:]], axis=2).reshape(-1, 2, 2)
    middle = np.repeat(0.5 * (times[:-1] + times[1:]), count)
    lines = LineCollection(list(segments), cmap=TIME, norm=Normalize(0.0, float(times.max())), linewidths=0.7)
    lines.set_array(middle)
    lines.set_alpha(opacity(count, full=25))
    lines.set_capstyle("butt")
    return lines
