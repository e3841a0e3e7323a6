"""Figures of reverse diffusion: distributions through time, scores, their effect, and the action gap in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from sbridge.diffusion import ControlScore, ExactScore, Score
from sbridge.errors import InvalidInputError
from sbridge.laws import Samples
from sbridge.plotting.courses import trajectories
from sbridge.plotting.ends import projection_of, states_at
from sbridge.plotting.fields import draw_arrows
from sbridge.plotting.projection import Projection
from sbridge.plotting.style import BACKDROP, INK, SOURCE, TARGET, TIME, Clock, axes, cloud, limits, panels, shape, tidy
from sbridge.processes.base import check_time
from sbridge.random import Seed, as_seed, derive
from sbridge.solutions import Bridge

_BINS = 60
_POINTS = 400
_PER_ROW = 3
_LEAST_FRACTION = 0.01
_LINES = {1: 80, 2: 15}
_LEAST_WINDOW = 25


def densities(
    bridge: Bridge,
    exact: ExactScore,
    times: Sequence[float] | None = None,
    *,
    seed: Seed,
    ax: Axes | None = None,
    n: int = 10_000,
) -> Axes:
    """Draws noising and reversal of one-dimensional data at several times, with the exact density ``ρ_t``.

    The filled histogram shows states of the noising process, the stepped one states of the reversal, which uses only
    the prior and the score, and the line ``ρ_t`` in closed form. There is one panel per time (``child_axes``).

    Args:
        bridge: a reverse diffusion in one dimension.
        exact: the exact score of the noised data.
        times: bridge times; positive for a set of points, which has no density at 0. By default six times, from 0 or 1
            % of the horizon on.
        seed: of both simulations.
        ax: where to draw; a new figure if ``None``.
        n: number of simulated states of either process.

    Raises:
        InvalidInputError: if the states have more than one dimension, or a time lies outside ``(0, T]``.
    """
    if bridge.dim != 1:
        raise InvalidInputError(
            f"densities are drawn in one dimension only, but the states have {bridge.dim}; use marginals."
        )
    seed, points = as_seed(seed), isinstance(exact.data, Samples)
    if times is None:
        first = _LEAST_FRACTION if points else 0.0
        times = [bridge.horizon * (first + (1.0 - first) * (k / 5) ** 1.5) for k in range(6)]
    times = [float(check_time(t, bridge.horizon)) for t in times]
    if not times or (points and min(times) == 0.0):
        raise InvalidInputError(f"a set of points has a density at times after 0 only, got {times}.")
    there = bridge.forward.marginals(times, n, seed=derive(seed, "noising"))[..., 0].cpu().numpy()
    back = bridge.backward.marginals(times, n, seed=derive(seed, "reversal"))[..., 0].cpu().numpy()
    host, inner = panels(ax, len(times), 0.8, per_row=_PER_ROW)
    for k, (t, panel) in enumerate(zip(times, inner, strict=True)):
        low, high = (float(side[0]) for side in limits(np.stack([there[k], back[k]]).reshape(-1, 1)))
        edges, x = (
            np.linspace(low, high, _BINS + 1).tolist(),
            torch.linspace(low, high, _POINTS, dtype=torch.float64, device="cpu")[:, None],
        )
        panel.hist(there[k], edges, density=True, color=SOURCE, alpha=0.25, label="noising")
        panel.hist(back[k], edges, density=True, histtype="step", color=TARGET, linewidth=1.2, label="reversal")
        exactly = exact.log_density(t, x.to(bridge.forward.starts(1, seed=0).device)).exp().cpu().numpy()
        panel.plot(x[:, 0], exactly, color=INK, linewidth=1.0, label=r"exact $\rho_t$")
        panel.set_title(f"$t$ = {t:.3g}", fontsize=10, color=INK)
        panel.set_xlim(low, high)
        panel.set_yticks([])
        tidy(panel)
        panel.spines["left"].set_visible(False)
        panel.set_xlabel("$x$")
    inner[0].legend(loc="lower left", bbox_to_anchor=(0.0, 1.12), ncols=3, frameon=False, fontsize=8, borderaxespad=0.2)
    return host


def score_field(
    bridge: Bridge,
    times: float | Sequence[float],
    *,
    seed: Seed,
    ax: Axes | None = None,
    projection: Projection | None = None,
    exact: Score | None = None,
    n: int = 2000,
) -> Axes:
    """Draws the score ``s_θ(t, x) = σ^{−ᵀ} û`` where the noised data have mass.

    In two or more dimensions, arrows over simulated states show the mean of the projected score in the cells of the
    plane, one panel per time (``child_axes``); they point towards denser data. In one dimension, ``s`` is drawn against
    ``x`` over the range of the states, coloured by time, with ``exact`` as a dashed line if it is given.

    Args:
        bridge: a reverse diffusion.
        times: one or several bridge times after 0.
        seed: of the simulated states.
        ax: where to draw; a new figure if ``None``.
        projection: the plane; fitted to the two ends if ``None``.
        exact: the true score, drawn in one dimension.
        n: number of simulated states.

    Raises:
        InvalidInputError: if there is no time, or one lies outside ``(0, T]``; without a backward control.
    """
    times = [float(t) for t in (times if isinstance(times, Sequence) else [times])]
    if not times or not all(0.0 < t <= bridge.horizon for t in times):
        raise InvalidInputError(f"scores are drawn at bridge times in (0, {bridge.horizon:g}], got {times}.")
    if bridge.backward.control is None:
        raise InvalidInputError("the backward process has no control, so there is no score to draw.")
    seed, score, clock = (
        as_seed(seed),
        ControlScore(bridge.reference, bridge.backward.control),
        Clock.of(bridge.horizon),
    )
    projection = projection_of(bridge, projection, seed)
    states = states_at(bridge, times, n, seed)
    if projection.columns == 2:
        with torch.no_grad():
            values = torch.stack([score(t, x) for t, x in zip(times, states, strict=True)])
        return draw_arrows(times, clock, (projection(states), projection.vectors(values)), ax, projection, "score")
    return _score_panels(times, bridge.horizon, states, (score, exact), ax)


@torch.no_grad()
def _score_panels(
    times: Sequence[float], horizon: float, states: Tensor, scores: tuple[Score, Score | None], ax: Axes | None
) -> Axes:
    """Draws ``s`` against ``x`` over the range of the states."""
    host, inner = panels(ax, len(times), 0.8, per_row=_PER_ROW)
    learned, exact = scores
    for k, (t, rows, panel) in enumerate(zip(times, states, inner, strict=True)):
        low, high = (float(side[0]) for side in limits(rows.cpu().numpy()))
        x = torch.linspace(low, high, _POINTS, device="cpu").to(rows)[:, None]
        place = x[:, 0].cpu().numpy()
        if exact is not None:
            panel.plot(place, exact(t, x)[:, 0].cpu(), color=BACKDROP, linewidth=3.5, label="exact")
        panel.plot(place, learned(t, x)[:, 0].cpu(), color=TIME(t / horizon), linewidth=1.4, label="learned")
        panel.axhline(0.0, color=INK, linewidth=0.5, zorder=0)
        panel.set_title(f"$t$ = {t:.3g}", fontsize=10, color=INK)
        panel.set_xlabel("$x$")
        if k % _PER_ROW == 0:
            panel.set_ylabel(r"score $\partial_x \log \rho_t$")
        tidy(panel)
    inner[0].legend(frameon=False, fontsize=8)
    return host


def reversals(
    bridge: Bridge, *, seed: Seed, ax: Axes | None = None, projection: Projection | None = None, n: int = 600
) -> Axes:
    """Draws trajectories back from the prior with and without the score, from the same starts and noise.

    Two panels (``child_axes``) have the limits of the reversal. They show that reversing a process is not the same as
    reversing its drift. Lines show some of the paths, dots the ends of all paths.

    Args:
        bridge: a reverse diffusion.
        seed: of starts and noise.
        ax: where to draw; a new figure if ``None``.
        projection: the plane; fitted to the two ends if ``None``.
        n: number of paths.
    """
    seed = as_seed(seed)
    projection = projection_of(bridge, projection, seed)
    ways = {"with the score": bridge.backward, "without the score": replace(bridge.backward, control=None)}
    paths = {name: measure.sample(n, seed=seed) for name, measure in ways.items()}
    seen = projection(paths["with the score"].x)
    low, high = limits(seen)
    flat = projection.columns == 1
    host, inner = panels(ax, 2, 0.8 if flat else shape(low, high), per_row=2)
    for k, (name, panel) in enumerate(zip(ways, inner, strict=True)):
        trajectories(paths[name], ax=panel, projection=projection, most=_LINES[projection.columns])
        ends = projection(paths[name].x[-1])
        if flat:
            panel.set_xlim(bridge.horizon, 0.0)
            panel.set_ylim(low[0], high[0])
            panel.set_xticks([share * bridge.horizon for share in (0.8, 0.6, 0.4, 0.2)])
        else:
            cloud(panel, ends, SOURCE, zorder=2.5)
            panel.set_xlim(low[0], high[0])
            panel.set_ylim(low[1], high[1])
        gone = float(((ends < low) | (ends > high)).any(-1).mean())
        panel.set_title(f"{name}" + (f" ({gone:.0%} end outside)" if gone > 0.01 else ""), fontsize=9, color=INK)
        for bar in panel.child_axes if k == 0 else ():
            bar.set_visible(False)
        if k:
            panel.set_ylabel("")
            panel.tick_params(labelleft=False)
    return host


def action_gap(
    measured: Sequence[Mapping[str, float]],
    history: Sequence[Mapping[str, float]] = (),
    *,
    constant: float = 0.0,
    ax: Axes | None = None,
) -> Axes:
    """Draws the action gap during training, computed in two ways; the two curves should coincide.

    The strong lines are the gap ``½∫ E|σᵀ(s_θ − ∇log ρ)|²`` with the exact score, and the denoising loss minus its
    constant, each with a band of two standard errors. The faint line is a running mean of the training loss minus the
    constant.

    Args:
        measured: the ``rows`` of a :class:`~sbridge.diffusion.GapRecorder`.
        history: one mapping per training step with its ``loss``; may be empty.
        constant: ``C``, :attr:`GapRecorder.constant`; used for ``history``.
        ax: where to draw; a new figure if ``None``.

    Raises:
        InvalidInputError: if nothing was measured.
    """
    if not measured:
        raise InvalidInputError("no measurements; pass the rows of a GapRecorder used as a callback.")
    ax = axes(ax, (5.8, 3.8))
    tidy(ax)
    steps = np.array([row["step"] for row in measured])
    losses = np.array([(row.get("step", k), row["loss"]) for k, row in enumerate(history, 1) if "loss" in row])
    window = max(_LEAST_WINDOW, len(losses) // 15)
    if len(losses) > window:
        mean = np.convolve(losses[:, 1], np.ones(window) / window, mode="valid") - constant
        middle = losses[window // 2 : window // 2 + len(mean), 0]
        label = f"training loss $-\\,C$, mean of {window} updates"
        ax.plot(middle, np.where(mean > 0, mean, np.nan), color=TARGET, alpha=0.3, linewidth=0.8, label=label)
    lines = (("gap", SOURCE, "-", 3.2, r"gap $\frac{1}{2}\int\! \mathrm{E}|\sigma^\top(s_\theta-\nabla\log\rho)|^2$"),
             ("excess", TARGET, "--", 1.4, r"denoising loss $-\,C$"))  # fmt: skip
    for key, color, style, width, label in lines:
        values, errors = (np.array([row[name] for row in measured]) for name in (key, f"{key}_error"))
        ax.fill_between(
            steps, np.maximum(values - 2 * errors, 1e-12), values + 2 * errors, color=color, alpha=0.15, linewidth=0
        )
        ax.plot(steps, values, color=color, linestyle=style, linewidth=width, label=label)
    ax.set_yscale("log")
    smallest = min(float(row["gap"]) for row in measured)
    ax.set_ylim(bottom=0.4 * smallest)
    ax.set_xlabel("training step")
    ax.set_ylabel("nats")
    ax.legend(frameon=False, fontsize=8)
    return ax
