"""The law of the state through time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes

from sbridge.errors import InvalidInputError
from sbridge.measures import Direction
from sbridge.plotting.ends import end_rows, states_at
from sbridge.plotting.projection import Projection
from sbridge.plotting.style import BACKDROP, INK, TIME, axes, cloud, color_bar, limits, panels, plane, shape, tidy
from sbridge.random import Seed, as_seed, derive
from sbridge.solutions import Bridge

_COLUMNS = 61
_BINS = 80
_LEAST_STATES = 4000
_PER_ROW = 5


def marginals(
    bridge: Bridge,
    times: Sequence[float] | None = None,
    *,
    seed: Seed,
    ax: Axes | None = None,
    projection: Projection | None = None,
    n: int = 2000,
) -> Axes:
    """The law of ``X_t`` under the forward process, at several times.

    From two dimensions on: one panel per time, the rows of the end law in grey behind the first and the last. The
    panels are the ``child_axes`` of the axes returned (with a single time, that axes itself). In one dimension: the
    density over the plane of time and state, lines at the 5, 50 and 95 % quantiles, and dotted lines at ``times``.

    Args:
        bridge: the solution.
        times: bridge times; five from 0 to the horizon if ``None``.
        seed: of the simulation.
        ax: where to draw; a new figure if ``None``.
        projection: the plane; fitted to the two ends if ``None``.
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
    if projection.columns == 1:
        return _density(bridge, times, projection, axes(ax, (6.0, 3.8)), n=n, seed=seed)
    states = projection(states_at(bridge, times, n, seed))
    first, last = (projection(rows) for rows in ends)
    low, high = limits(np.concatenate([states.reshape(-1, 2), first, last]))
    host, inner = panels(ax, len(times), shape(low, high), per_row=_PER_ROW)
    for k, (t, points, panel) in enumerate(zip(times, states, inner, strict=True)):
        plane(panel, projection.labels)
        for end, rows in zip(_end_times(bridge), (first, last), strict=True):
            if t == end:
                cloud(panel, rows, BACKDROP, zorder=1)
        cloud(panel, points, TIME(t / bridge.horizon))
        panel.set_xlim(low[0], high[0])
        panel.set_ylim(low[1], high[1])
        panel.set_title(f"$t$ = {t:.3g}", fontsize=10, color=INK)
        if k % _PER_ROW:
            panel.set_ylabel("")
            panel.tick_params(labelleft=False)
    return host


def _end_times(bridge: Bridge) -> tuple[float, float]:
    """When the forward process of ``bridge`` starts and ends: a reversed bridge starts at the horizon."""
    forward = bridge.forward.direction is Direction.FORWARD
    return (0.0, bridge.horizon) if forward else (bridge.horizon, 0.0)


def _density(bridge: Bridge, times: Sequence[float], projection: Projection, ax: Axes, *, n: int, seed: int) -> Axes:
    knots = torch.linspace(0.0, bridge.horizon, _COLUMNS, dtype=torch.float64)
    states = projection(states_at(bridge, knots.tolist(), max(n, _LEAST_STATES), seed))[..., 0]
    low, high = (float(side[0]) for side in limits(states.reshape(-1, 1)))
    edges = np.linspace(low, high, _BINS + 1)
    counts = np.stack([np.histogram(column, edges)[0] for column in states], axis=1)
    density = counts / (states.shape[1] * (edges[1] - edges[0]))
    half = 0.5 * bridge.horizon / (_COLUMNS - 1)
    boundaries = np.concatenate([knots.numpy() - half, [bridge.horizon + half]])
    # The densest column (a narrow end) would bleach the others.
    top = float(np.quantile(density, 0.99))
    image = ax.pcolormesh(boundaries, edges, density, cmap="Blues", vmin=0.0, vmax=top)
    for level, style in ((0.05, "--"), (0.5, "-"), (0.95, "--")):
        ax.plot(knots.numpy(), np.quantile(states, level, axis=1), color=INK, linewidth=1.0, linestyle=style)
    for t in times:
        ax.axvline(t, color=INK, linewidth=0.6, linestyle=":")
    ax.set_xlim(0.0, bridge.horizon)
    ax.set_ylim(low, high)
    tidy(ax)
    ax.set_xlabel("time $t$")
    ax.set_ylabel(projection.labels[0])
    color_bar(ax, image, "density")
    return ax
