"""Figures of drifts and velocities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from sbridge.controls.base import ZeroControl
from sbridge.errors import InvalidInputError
from sbridge.plotting.ends import projection_of, states_at
from sbridge.plotting.projection import Projection
from sbridge.plotting.style import BACKDROP, INK, Clock, axes, cloud, limits, panels, plane, shape, tidy
from sbridge.random import Seed, as_seed
from sbridge.solutions import Bridge

Field = Callable[[float, Tensor], Tensor]
_CELLS = 16
_LEAST_IN_CELL = 3
_PER_ROW = 3


def drift_field(
    bridge: Bridge,
    times: float | Sequence[float],
    *,
    seed: Seed,
    ax: Axes | None = None,
    projection: Projection | None = None,
    clock: Clock | None = None,
    n: int = 2000,
) -> Axes:
    """Draws the forward drift ``b + σu`` where the bridge has mass, as arrows over states simulated at ``times``.

    An arrow is the mean of the projected drift over the simulated states in a cell of the plane. This is needed because
    in more than two dimensions the drift is not a function of the point in the plane, and because the values of a
    network are not reliable far from the data. There is one panel per time (``child_axes``); in one dimension there is
    one column of arrows per time. ``bridge.reversed()`` gives the backward drift.

    Args:
        bridge: the solution.
        times: one or several bridge times before the end.
        seed: of the simulated states.
        ax: where to draw; a new figure if ``None``.
        projection: the plane; fitted to the two ends if ``None``.
        clock: how times are shown; as the bridge counts them if ``None``.
        n: number of simulated states.

    Raises:
        InvalidInputError: if there is no time, or one lies outside the horizon.
    """
    return _draw(bridge, lambda t, x: _drift(bridge, t, x), times, ax, projection, clock=clock, n=n, seed=seed)


def velocity_field(
    bridge: Bridge,
    times: float | Sequence[float],
    *,
    seed: Seed,
    ax: Axes | None = None,
    projection: Projection | None = None,
    clock: Clock | None = None,
    n: int = 2000,
) -> Axes:
    """Draws the current velocity ``b + ½σ(u − û)``, the motion of the whole distribution, as :func:`drift_field`."""
    return _draw(bridge, bridge.current_velocity, times, ax, projection, clock=clock, n=n, seed=seed)


def _drift(bridge: Bridge, t: float, x: Tensor) -> Tensor:
    process, control = bridge.reference, bridge.forward.control or ZeroControl()
    return process.drift(t, x) + process.scale(t).to(x)(control(t, x))


def _draw(
    bridge: Bridge,
    field: Field,
    times: float | Sequence[float],
    ax: Axes | None,
    projection: Projection | None,
    *,
    clock: Clock | None,
    n: int,
    seed: Seed,
) -> Axes:
    times = [float(t) for t in (times if isinstance(times, Sequence) else [times])]
    if not times or not all(0.0 <= t < bridge.horizon for t in times):
        raise InvalidInputError(
            f"a field is drawn at bridge times in [0, {bridge.horizon:g}), because controls may be infinite at the "
            f"end; got {times}."
        )
    seed, clock = as_seed(seed), clock or Clock.of(bridge.horizon)
    projection = projection_of(bridge, projection, seed)
    states = states_at(bridge, times, n, seed)
    with torch.no_grad():
        arrows = projection.vectors(torch.stack([field(t, x) for t, x in zip(times, states, strict=True)]))
    points = projection(states)
    if projection.columns == 1:
        line = points[..., 0], arrows[..., 0]
        return _draw_line(times, bridge.horizon, line, axes(ax, (6.0, 3.8)), projection, clock)
    return draw_arrows(times, clock, (points, arrows), ax, projection, "drift")


def draw_arrows(
    times: Sequence[float],
    clock: Clock,
    field: tuple[np.ndarray, np.ndarray],
    ax: Axes | None,
    projection: Projection,
    name: str,
) -> Axes:
    """Draws mean arrows in the cells of a plane, one panel per time.

    Args:
        times: one per panel.
        clock: how times are shown.
        field: points and arrows, each of shape ``(times, n, 2)``.
        ax: where to draw; a new figure if ``None``.
        projection: the plane, for its labels.
        name: name of the field in titles.
    """
    points, arrows = field
    low, high = limits(points)
    side = float((high - low).max()) / _CELLS
    host, inner = panels(ax, len(times), shape(low, high), per_row=_PER_ROW)
    for k, (t, panel) in enumerate(zip(times, inner, strict=True)):
        places, means = _cell_means(points[k], arrows[k], low, side)
        span = _span(np.linalg.norm(means, axis=1), 1.6 * side)
        plane(panel, projection.labels)
        cloud(panel, points[k], BACKDROP, zorder=1)
        panel.quiver(
            *places.T, *(span * means).T, color=clock.colour(t), angles="xy", scale_units="xy", scale=1.0,
            width=0.006, headwidth=3.6, headlength=4.2, headaxislength=3.8, zorder=3,
        )  # fmt: skip
        panel.set_xlim(low[0], high[0])
        panel.set_ylim(low[1], high[1])
        panel.set_title(f"$t$ = {clock.label(t)}   (arrow: {name} × {span:g})", fontsize=9, color=INK)
        if k % _PER_ROW:
            panel.set_ylabel("")
            panel.tick_params(labelleft=False)
    return host


def _draw_line(
    times: Sequence[float],
    horizon: float,
    field: tuple[np.ndarray, np.ndarray],
    ax: Axes,
    projection: Projection,
    clock: Clock,
) -> Axes:
    """Draws columns of arrows ``(Δt, Δt · drift)`` over the plane of time and state."""
    tidy(ax)
    points, arrows = field
    low, high = limits(points.reshape(-1, 1))
    side = float(high[0] - low[0]) / _CELLS
    span = 0.6 * float(np.diff([*times, horizon]).min())
    for t, states, values in zip(times, points, arrows, strict=True):
        places, means = _cell_means(states[:, None], values[:, None], low, side)
        shown = clock.shown(t)
        ax.scatter(np.full(len(states), shown), states, s=2, color=BACKDROP, alpha=0.2, linewidths=0, zorder=1)
        across = np.full(len(places), shown), places[:, 0], np.full(len(means), span), span * means[:, 0]
        ax.quiver(*across, color=clock.colour(t), angles="xy", scale_units="xy", scale=1.0, width=0.004, zorder=3)
    ax.set_xlim(clock.shown(-0.02 * horizon), clock.shown(1.02 * horizon))
    ax.set_ylim(float(low[0]), float(high[0]))
    ax.set_title(f"arrow: motion under the drift in a time of {span:.2g}", fontsize=9, color=INK)
    ax.set_xlabel("time $t$")
    ax.set_ylabel(projection.labels[0])
    return ax


def _cell_means(points: np.ndarray, arrows: np.ndarray, low: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean position and mean arrow of the points in each square cell that holds at least three."""
    cell = np.floor((points - low) / side).astype(np.int64)
    _, index, count = np.unique(cell, axis=0, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), points.shape[1] + arrows.shape[1]))
    np.add.at(sums, index.reshape(-1), np.concatenate([points, arrows], axis=1))
    means = (sums / count[:, None])[count >= _LEAST_IN_CELL]
    return means[:, : points.shape[1]], means[:, points.shape[1] :]


def _span(lengths: np.ndarray, longest: float) -> float:
    """Returns a round time span (1, 1.5, 2, 3, 5 or 7 times 10ᵏ) in which most points move at most ``longest``."""
    typical = float(np.quantile(lengths, 0.95)) if len(lengths) else 0.0
    if typical == 0.0:
        return 1.0
    exact = longest / typical
    power = 10.0 ** np.floor(np.log10(exact))
    return float(f"{power * max(step for step in (1, 1.5, 2, 3, 5, 7) if step * power <= exact * (1 + 1e-12)):.2g}")
