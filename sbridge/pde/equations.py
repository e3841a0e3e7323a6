"""Fokker–Planck, backward Kolmogorov and Hamilton–Jacobi–Bellman equations, solved on a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError
from sbridge.laws import Law
from sbridge.pde.densities import density_on
from sbridge.pde.grids import Field, Grid
from sbridge.pde.propagator import L_STABLE, Propagator, StateCost, TimeScheme
from sbridge.processes.base import Process
from sbridge.time import TimeGrid

HUNDRED_INTERVALS = TimeGrid.uniform(100)


@dataclass(frozen=True, eq=False)
class FokkerPlanckSolution:
    """Densities at the knots of a time grid.

    Attributes:
        propagator: the discrete process.
        density: ``p(t_k)``, shape ``(N + 1, *grid.shape)``, non-negative.
    """

    propagator: Propagator
    density: np.ndarray

    @property
    def times(self) -> np.ndarray:
        """The times ``t_k``."""
        return self.propagator.times

    @property
    def mass(self) -> np.ndarray:
        """The mass ``∫ p(t_k) dx``: constant without state cost, to rounding."""
        return self.density.reshape(len(self.times), -1).sum(1) * self.propagator.grid.volume

    def flux(self, k: int) -> tuple[np.ndarray, ...]:
        """Computes ``J = b p − ½σ² ∇p`` at ``t_k`` on the faces across each axis, one more than cells along it.

        ``∂_t p = −∇·J − V p``; zero at the boundary.
        """
        lines = self.propagator.generator(float(self.times[k])).lines
        return tuple(line.flux(self.density[k]) for line in lines)


def fokker_planck(
    process: Process,
    grid: Grid,
    start: Law | Field,
    times: TimeGrid = HUNDRED_INTERVALS,
    *,
    control: Control | None = None,
    state_cost: StateCost | None = None,
    scheme: TimeScheme = L_STABLE,
) -> FokkerPlanckSolution:
    """Solves ``∂_t p = −∇·((b + σu) p) + ½ ∇·(σσᵀ∇p) − V p`` from ``p(0)``: positive, mass conserving without V.

    Second order in cell width and time step (first with ``IMPLICIT_EULER``).

    Args:
        process: with scalar or diagonal σ; any drift.
        grid: cells; nothing crosses its boundary.
        start: a distribution, or a non-negative field.
        times: knots at which the density is kept.
        control: ``u`` in noise units.
        state_cost: ``V``, a killing rate where positive.
        scheme: of the time steps.

    Raises:
        InvalidInputError: for a start with negative values or another shape, or a distribution whose mass the grid
            misses.
    """
    density = density_on(start, grid) if isinstance(start, Law) else grid.check(start)
    if not (density >= 0).all():
        raise InvalidInputError(f"a density must be non-negative; its smallest value is {density.min():.3g}.")
    knots = times.times(process.horizon).numpy()
    moves = Propagator(process, grid, knots, state_cost, control, scheme)
    found = [density.astype(np.float64)]
    for k in range(times.steps):
        found.append(moves.forward(k, found[-1]))
    return FokkerPlanckSolution(moves, np.stack(found))


def backward_kolmogorov(
    process: Process,
    grid: Grid,
    terminal: Field,
    times: TimeGrid = HUNDRED_INTERVALS,
    *,
    state_cost: StateCost | None = None,
    scheme: TimeScheme = L_STABLE,
) -> np.ndarray:
    """Solves ``∂_t φ + b·∇φ + ½σσᵀ:∇²φ = Vφ`` from ``φ(T) = terminal``: ``φ(t, x) = E[e^{−∫V} φ(T, X_T) | X_t = x]``.

    The discrete adjoint of :func:`fokker_planck`: ``Σ p(t_k) φ(t_k)`` does not depend on ``k``. At the boundary
    ``φ`` has no normal derivative, so that values within a few ``σ√(T − t)`` of it are those of a reflected process.

    Returns:
        ``φ(t_k)``, shape ``(N + 1, *grid.shape)``.
    """
    moves = Propagator(process, grid, times.times(process.horizon).numpy(), state_cost, scheme=scheme)
    found = [grid.check(terminal).astype(np.float64)]
    for k in reversed(range(times.steps)):
        found.append(moves.backward(k, found[-1]))
    return np.stack(found[::-1])


def hamilton_jacobi_bellman(
    process: Process,
    grid: Grid,
    terminal_cost: Callable[[Tensor], Tensor],
    times: TimeGrid = HUNDRED_INTERVALS,
    *,
    state_cost: StateCost | None = None,
    scheme: TimeScheme = L_STABLE,
) -> np.ndarray:
    """Solves ``∂_t J + b·∇J + ½σσᵀ:∇²J − ½|σᵀ∇J|² + V = 0`` from ``J(T) = g``, by ``J = −log φ``.

    ``J(t, x) = min_u E[∫_t^T (½|u|² + V) ds + g(X_T) | X_t = x]``, attained by ``u* = −σᵀ∇J``. The linear equation for
    ``φ`` is solved in logarithms, so costs of hundreds of nats do no harm (Premkumar 2023, eq. (3.24)–(3.26)).

    Returns:
        ``J(t_k)``, shape ``(N + 1, *grid.shape)``.
    """
    moves = Propagator(process, grid, times.times(process.horizon).numpy(), state_cost, scheme=scheme)
    found = [-grid.field(terminal_cost(grid.points))]
    for k in reversed(range(times.steps)):
        found.append(moves.log_backward(k, found[-1]))
    return -np.stack(found[::-1])
