"""Duality of the Schrödinger problem: the excess cost of a control and the duality gap are KL divergences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import simpson
from torch import Tensor

from sbridge.controls import Control
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.line import line_grid, mean_and_std, shifted_target
from sbridge.identities.tools.noising import noise_knots
from sbridge.identities.tools.tilts import Tilt
from sbridge.measures import Direction
from sbridge.pde import Grid, log_density_on, solve_schroedinger
from sbridge.processes.chain import Chain, default_rule
from sbridge.random import NormalNoise, generator
from sbridge.simulation import simulate
from sbridge.time import TimeGrid

schroedinger_identity = partial(identity, group="Schrödinger")
_STEPS = 128
_KNOTS = (20, 40)
_FINENESS = 2.4  # cells in the narrowest deviation


@schroedinger_identity(
    statement="½E∫|u|² dt + E log c(X_0) − E_q g = KL(P^u ‖ P^g) with the end distribution q of P^u, c = E[e^g | X_0]",
    equation="Dai Pra 1991; Premkumar 2023, eq. (3.19), (3.26)",
    kind=Kind.EQUALITY,
    left="energy, g and log c in closed form along simulated paths",
    right="½E∫|u − σᵀ∇log φ|² dt along the same paths, extrapolated to step 0",
    applies=Setting.has_density,
)
def gap_of_a_control_is_a_divergence(setting: Setting) -> Iterator[Outcome]:
    """Checks a linear control, and half of the optimal control of the tilted reference."""
    tilt = Tilt.of(setting)
    for note, control in _controls(setting, tilt).items():
        yield _second_order([_sides(setting, tilt, control, note, every) for every in (1, 2, 4)], note)


@schroedinger_identity(
    statement="½E∫|u|² dt − D(g) = KL(P^u ‖ P^g) + E_q g − E_{p_T} g with D(g) = E_{p_T} g − E_{p_0} log c",
    equation="duality; Mikami & Thieullen 2006; Léonard 2014",
    kind=Kind.EQUALITY,
    left="energy along simulated paths; D(g) from closed forms by quadrature over both ends",
    right="½E∫|u − σᵀ∇log φ|² dt and g along the same paths, extrapolated to step 0; p_T by quadrature",
    applies=Setting.has_density_on_line,
)
def duality_identity(setting: Setting) -> Iterator[Outcome]:
    """Checks controls whose end distribution ``q`` is not ``p_T``."""
    tilt, grid = Tilt.of(setting), line_grid(setting, _FINENESS)
    start, end = (log_density_on(law, grid) for law in (setting.data, shifted_target(setting)))
    dual, wanted = _dual(tilt, start, end, grid), _mean(end, tilt.log_potential(tilt.horizon, grid.points), grid)
    for note, control in _controls(setting, tilt).items():
        sides = [_sides(setting, tilt, control, note, every) for every in (1, 2, 4)]
        moved = [
            replace(one, left=one.left - one.log_mass + one.reached - dual, right=one.right + one.reached - wanted)
            for one in sides
        ]
        yield _second_order(moved, note)


@schroedinger_identity(
    statement="D(g) = E_{p_T} g − E_{p_0} log c ≤ V* = min KL(P ‖ R)",
    equation="duality; Mikami & Thieullen 2006; Léonard 2014",
    kind=Kind.INEQUALITY,
    left="D(g) from closed forms, integrated over both ends on a grid",
    right="V* from the potentials of the Schrödinger system",
    applies=Setting.has_density_on_line,
)
def dual_value_is_below_the_value(setting: Setting) -> Outcome:
    """Checks a tilt that is not optimal."""
    tilt, target, grid = Tilt.of(setting), shifted_target(setting), line_grid(setting, _FINENESS)
    bridge = solve_schroedinger(setting.process, setting.data, target, grid)
    return Outcome(_dual(tilt, bridge.log_start, bridge.log_end, grid), bridge.value)


@schroedinger_identity(
    statement="D(g) = V* − KL(P* ‖ P^g)",
    equation="duality; Léonard 2014",
    kind=Kind.EQUALITY,
    left="closed forms of g and log c, integrated over both ends on a grid",
    right="energy of the bridge minus ½E∫|u* − σᵀ∇log φ|² dt along it; Simpson's rule in time",
    applies=Setting.has_density_on_line,
)
def dual_gap_is_a_divergence(setting: Setting) -> Outcome:
    """Compares a bridge solved on a grid with the tilted reference in closed form."""
    tilt, target, grid = Tilt.of(setting), shifted_target(setting), line_grid(setting, _FINENESS)
    values, left = [], math.nan
    for count in _KNOTS:
        bridge = solve_schroedinger(setting.process, setting.data, target, grid, times=TimeGrid.cosine(count))
        left = _dual(tilt, bridge.log_start, bridge.log_end, grid)
        gaps = [
            grid.integrate(
                bridge.density(t)
                * grid.field(0.5 * (bridge.control(t, grid.points) - tilt.control(t, grid.points)).square().sum(1))
            )
            for t in bridge.times.tolist()
        ]
        values.append(bridge.energy - float(simpson(np.array(gaps), x=bridge.times)))
    return Outcome(left, values[1], allowance=abs(values[1] - values[0]))


@dataclass(frozen=True, eq=False)
class Sides:
    """Both sides along each path, shape ``(batch,)``.

    Attributes:
        left: ``½∫|u|² dt + log c(X_0) − g(X_T) + ∫ σᵀ∇log φ · dW``; the last term has mean zero.
        right: ``½∫|u − σᵀ∇log φ|² dt``.
        log_mass: ``log c(X_0)``.
        reached: ``g(X_T)``.
    """

    left: Tensor
    right: Tensor
    log_mass: Tensor
    reached: Tensor


def _controls(setting: Setting, tilt: Tilt) -> dict[str, Control]:
    (centre, width), root = mean_and_std(setting, 1.0), math.sqrt(setting.horizon)
    return {
        "linear control": lambda t, x: (centre - x) / (width * root),
        "half of the tilt's control": lambda t, x: 0.5 * tilt.control(t, x),
    }


def _sides(setting: Setting, tilt: Tilt, control: Control, stream: str, every: int) -> Sides:
    """Computes both sides from the same noise on every ``every``-th knot."""
    start = setting.data.sample(setting.samples, generator(setting.seed_of("gap", stream))).double()
    noise = NormalNoise(setting.seed_of("gap", stream, "noise"), _STEPS, *start.shape, dtype=torch.float64).stored()
    knots = noise_knots(setting, _STEPS)
    times = knots[::every]
    joined = (noise * knots.diff().sqrt()[:, None, None]).unflatten(0, (-1, every)).sum(1)
    noise = joined / times.diff().sqrt()[:, None, None]
    chain = Chain(setting.process, times, Direction.FORWARD, default_rule(setting.process), start)
    x, v = simulate(chain, control, start, noise)
    tilted = torch.stack([tilt.control(t, states) for t, states in zip(times.tolist(), x, strict=True)])
    spans = times.diff()[:, None]
    energy = 0.5 * (spans * v.square().sum(2)).sum(0)
    martingale = (spans.sqrt() * (tilted[:-1] * noise).sum(2)).sum(0)
    squares = [(v - side).square().sum(2) for side in (tilted[:-1], tilted[1:])]
    log_mass, reached = tilt.log_potential(0.0, x[0]), tilt.log_potential(setting.horizon, x[-1])
    right = 0.25 * (spans * (squares[0] + squares[1])).sum(0)
    return Sides(energy + log_mass - reached + martingale, right, log_mass, reached)


def _second_order(sides: list[Sides], note: str) -> Outcome:
    """Extrapolates from steps Δ, 2Δ and 4Δ; the difference of the sides is of second order in the step."""
    better, coarser = ((4.0 * a - b) / 3.0 for a, b in pairwise([one.left - one.right for one in sides]))
    right, allowance = 2.0 * sides[0].right - sides[1].right, abs(float((better - coarser).mean()))
    return Outcome.paired(better, right, allowance, note)


def _dual(tilt: Tilt, log_start: np.ndarray, log_end: np.ndarray, grid: Grid) -> float:
    """Computes ``E_{p_T} g − E_{p_0} log c``."""
    end, start = (tilt.log_potential(t, grid.points) for t in (tilt.horizon, 0.0))
    return _mean(log_end, end, grid) - _mean(log_start, start, grid)


def _mean(log_density: np.ndarray, values: Tensor, grid: Grid) -> float:
    return grid.integrate(np.exp(log_density) * grid.field(values))
