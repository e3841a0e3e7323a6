"""State costs of a bridge: what a gradient drift and a quadratic cost amount to."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import cast

import numpy as np
import torch

from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.line import line_grid, shifted_target
from sbridge.laws import Law
from sbridge.pde import Grid, log_density_on, solve_schroedinger
from sbridge.pde.propagator import StateCost
from sbridge.problems import BridgeProblem
from sbridge.problems.costs import AbsorbedCost, Quadratic, TerminalCost
from sbridge.processes import BrownianMotion, LinearProcess, OrnsteinUhlenbeck
from sbridge.time import TimeGrid

schroedinger_identity = partial(identity, group="Schrödinger")
_FINENESS = (1.5, 3.0)  # cells in the narrowest deviation
_KNOTS = (15, 30)


def _reverts_on_line(setting: Setting) -> bool:
    process = setting.process
    return setting.has_density_on_line() and isinstance(process, OrnsteinUhlenbeck) and not callable(process.sigma)


@schroedinger_identity(
    statement="b = −∇U: min KL(P ‖ R) = min {KL(P ‖ BM) + E∫½(|b|²/σ² + ∇·b)} + E_{p_T} U/σ² − E_{p_0} U/σ²",
    equation="Léonard 2014; Premkumar 2023, eq. (3.21)",
    kind=Kind.EQUALITY,
    left="value under the process, by its exact transitions on a grid",
    right="value under Brownian motion with the state cost, by finite volumes",
    applies=_reverts_on_line,
)
def gradient_drift_is_a_state_cost(setting: Setting) -> Outcome:
    """Solves from the data to :func:`shifted_target`; the allowance is the change of the right side in refinement."""
    process, ends = setting.process, (setting.data, shifted_target(setting))
    sigma, slope, offset = process.scale(0.0).values, process.linear(0.0).values, process.offset(0.0)

    def cost(t: float, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * ((process.drift(t, x) / sigma).square() + slope).sum(1)

    def potential(x: torch.Tensor) -> torch.Tensor:
        return -(0.5 * slope * x.square() + offset * x).sum(1) / float(sigma) ** 2

    brownian, grid = BrownianMotion(float(sigma), process.horizon), line_grid(setting, _FINENESS[1])
    coarse, fine = _values(setting, brownian, ends, cost)
    start, end = (_mean(law, grid, potential) for law in ends)
    plain = solve_schroedinger(process, *ends, grid).value
    return Outcome(plain, fine + end - start, allowance=abs(fine - coarse))


@schroedinger_identity(
    statement="V = ½κ|x|²: min {KL(P ‖ R) + E∫V} is a plain bridge under another Ornstein–Uhlenbeck process",
    equation="Chen, Georgiou & Pavon 2018",
    kind=Kind.EQUALITY,
    left="value under the process and the state cost, by finite volumes on a grid",
    right="value under the process that contains the cost, by its exact transitions, and a quadratic of the ends",
    applies=_reverts_on_line,
)
def quadratic_state_cost_is_a_linear_reference(setting: Setting) -> Iterator[Outcome]:
    """Checks an attraction, and a repulsion that leaves no stationary process, at a third of the conjugate time."""
    process, ends = setting.process, (setting.data, shifted_target(setting))
    sigma, rate = float(process.scale(0.0).values), float(process.linear(0.0).values)
    grid = line_grid(setting, _FINENESS[1])
    for note, square in (("attraction", rate**2 + 4.0 / setting.horizon**2), ("repulsion", -1.0 / setting.horizon**2)):
        cost = Quadratic.isotropic(0.5 * (square - rate**2) / sigma**2, 1)
        coarse, fine = _values(setting, process, ends, cost.running)
        problem = BridgeProblem(*ends, process, state_cost=cost).absorbed()
        reference, left = problem.reference, cast("AbsorbedCost", problem.state_cost)
        plain = solve_schroedinger(reference, *ends, grid).value
        start, end = (_mean(law, grid, psi) for law, psi in zip(ends, (left.start, left.end), strict=True))
        yield Outcome(fine, plain + start - end, allowance=abs(fine - coarse), note=note)


def _values(setting: Setting, process: LinearProcess, ends: tuple[Law, Law], cost: StateCost) -> list[float]:
    """The least ``KL + E∫V`` by finite volumes, on two levels of cells and steps."""
    return [
        solve_schroedinger(
            process, *ends, line_grid(setting, fineness), state_cost=cost, times=TimeGrid.cosine(knots)
        ).value
        for fineness, knots in zip(_FINENESS, _KNOTS, strict=True)
    ]


def _mean(law: Law, grid: Grid, function: TerminalCost) -> float:
    return grid.integrate(np.exp(log_density_on(law, grid)) * grid.field(function(grid.points)))
