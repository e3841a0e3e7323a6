"""The bridge of a killed diffusion with a known share of survivors, on a grid: a cemetery beside the cells.

``R`` starts at ``p_0`` and dies at the rate ``V ≥ 0``; a share ``m`` of it survives, with density ``p_T``. With a
cemetery as a further state the problem ``min KL(P ‖ R)`` is a plain bridge (Chen, Georgiou & Pavon 2021,
arXiv:2108.02879). Its potentials, with that of the cemetery equal to 1, solve::

    ∂_tφ + b·∇φ + ½a:∇²φ − V(φ − 1) = 0,   φ(T) = h          p_0 = φ(0) φ̂(0),   m p_T = h φ̂(T)

The living have density ``φφ̂``, follow ``b + a∇log φ`` and die at the rate ``V/φ``. It is not the bridge with the state
cost ``V``: that one ends with all of its mass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.errors import InvalidInputError, NotConvergedError
from sbridge.laws import Law
from sbridge.pde.densities import KernelDensity, SampleDensity
from sbridge.pde.equations import HUNDRED_INTERVALS
from sbridge.pde.grids import Field, Grid
from sbridge.pde.potentials import Potentials, PropagatedReference
from sbridge.pde.propagator import Propagator, StateCost
from sbridge.pde.schroedinger import FortetSinkhorn, log_density_of
from sbridge.processes.base import Process, as_time, check_time
from sbridge.time import TimeGrid

_ROUNDING = 1e-12
"""Of probabilities of death."""


@dataclass(frozen=True, eq=False)
class KilledSolution:
    """The bridge of a killed diffusion on a grid, by its potentials.

    Attributes:
        process: the reference without killing.
        reference: the killed reference on the grid.
        rate: ``V``.
        survival: ``m``.
        log_start: ``log p_0``.
        log_phi_hat_start, log_phi_end: ``log φ̂(0)`` and ``log φ(T)``, which determine everything.
        error: L1 distance of survivors and dead from ``(m p_T, 1 − m)``.
        iterations: pairs of half-steps.
    """

    process: Process
    reference: PropagatedReference
    rate: StateCost
    survival: float
    log_start: Field
    log_phi_hat_start: Field
    log_phi_end: Field
    error: float
    iterations: int

    @property
    def grid(self) -> Grid:
        """The grid of the solution."""
        return self.reference.grid

    def log_phi(self, t: float) -> Field:
        """Computes ``log φ(t)``: the living part, and the probability under ``R`` to die between ``t`` and ``T``."""
        living = self._potentials.log_phi(t)
        return np.logaddexp(living, _log_deaths(self._surviving.log_phi(t)))

    def density(self, t: float) -> Field:
        """Computes the density of the living, ``φ(t) φ̂(t)``; its integral is :meth:`mass`."""
        t = float(check_time(t, self.process.horizon))
        return np.exp(self.log_phi(t) + self._potentials.log_phi_hat(t))

    def mass(self, t: float) -> float:
        """Computes the share of the living at time ``t``."""
        return self.grid.integrate(self.density(t))

    def death_rate(self, t: float) -> Field:
        """Computes the rate ``V/φ`` at which the living die at time ``t``."""
        return self.grid.field(self.rate(t, self.grid.points)) * np.exp(-self.log_phi(t))

    @cached_property
    def death_probability(self) -> Field:
        """The probability to die before ``T`` of a path that starts in each cell."""
        return np.exp(_log_deaths(self._surviving.log_phi(0.0)) - self.log_phi(0.0))

    @cached_property
    def reference_survival(self) -> float:
        """The share of the reference, started at ``p_0``, that survives."""
        return self.grid.integrate(np.exp(self.log_start + self._surviving.log_phi(0.0)))

    def control(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``u*(t, x) = σᵀ∇log φ`` of the living, shape ``(batch, dim)``, in noise units."""
        t = check_time(t, self.process.horizon)
        if x.ndim != 2 or x.shape[1] != self.grid.dim:
            raise InvalidInputError(f"states have shape (rows, {self.grid.dim}) here, got {tuple(x.shape)}.")
        found, moments = torch.empty_like(x), as_time(t)[..., 0].expand(len(x))
        for moment in moments.unique().tolist():
            here = (moments == moment).to(x.device)
            gradient = self.grid.spline(self.log_phi(moment)).gradient(x[here].detach().cpu().double().numpy())
            found[here] = self.process.scale(moment).T(torch.from_numpy(gradient)).to(x)
        return found

    @cached_property
    def _potentials(self) -> Potentials:
        return self.reference.potentials(self.log_phi_hat_start, self.log_phi_end)

    @cached_property
    def _surviving(self) -> Potentials:
        """The probability to survive until ``T`` under the reference, as a potential with ``φ(T) = 1``."""
        return self.reference.potentials(self.log_phi_hat_start, np.zeros(self.grid.shape))


def solve_killed(
    process: Process,
    source: Law | Field,
    target: Law | Field,
    grid: Grid,
    *,
    rate: StateCost,
    survival: float,
    times: TimeGrid = HUNDRED_INTERVALS,
    options: FortetSinkhorn = FortetSinkhorn(),
    estimate: SampleDensity = KernelDensity(),
) -> KilledSolution:
    """Solves ``min KL(P ‖ R)`` for a reference that is killed at a known rate, with known survivors.

    Fortet's iteration with one more column, the cemetery, of mass ``1 − survival``. The reference is propagated by
    finite volumes: second order in cell width and in the steps of ``times``.

    Args:
        process: the reference without killing, with a scalar or diagonal σ.
        source: ``p_0``.
        target: ``p_T``, the density of the survivors, normalised.
        grid: contains both of them.
        rate: ``V(t, x) ≥ 0``, per unit time.
        survival: ``m``, the share that is alive at ``T``, strictly between 0 and 1.
        times: knots of the propagation.
        options: when the iteration ends.
        estimate: makes densities of samples.

    Raises:
        InvalidInputError: for a share outside ``(0, 1)``, a rate that is negative, or one that kills nothing.
        NotConvergedError: if the tolerance is not met.
    """
    if not 0.0 < survival < 1.0:
        raise InvalidInputError(
            f"survival must lie strictly between 0 and 1, got {survival:g}; if all survive, use solve_schroedinger."
        )
    knots = times.times(process.horizon).numpy()
    for t in (0.0, 0.5 * process.horizon, process.horizon):
        lowest = float(rate(t, grid.points).min())
        if not lowest >= 0.0:
            raise InvalidInputError(f"a killing rate must be 0 or more; the smallest at t = {t:g} is {lowest:g}.")
    reference = PropagatedReference(Propagator(process, grid, knots, rate))
    log_start, log_target = (log_density_of(one, grid, estimate) for one in (source, target))
    phi_hat, end, error, count = _iterate(reference, log_start, math.log(survival) + log_target, survival, options)
    return KilledSolution(process, reference, rate, survival, log_start, phi_hat, end, error, count)


def _iterate(
    reference: PropagatedReference, log_start: Field, log_living: Field, survival: float, options: FortetSinkhorn
) -> tuple[Field, Field, float, int]:
    """Returns ``log φ̂(0)`` and ``log φ(T)``, with the potential of the cemetery equal to 1."""
    kernel, grid = reference.whole, reference.grid
    log_deaths = _log_deaths(kernel.backward(np.zeros(grid.shape)))
    if not grid.integrate(np.exp(log_start + log_deaths)) > _ROUNDING:
        raise InvalidInputError(
            f"the rate kills nothing that starts in the source, but a share of {1.0 - survival:g} is to die."
        )
    error, reached, phi_hat = math.inf, kernel.forward(log_start), log_start
    for count in range(1, options.max_iterations + 1):
        end = log_living - reached
        cemetery = math.log1p(-survival) - math.log(grid.integrate(np.exp(phi_hat + log_deaths)))
        phi_hat = log_start - np.logaddexp(kernel.backward(end), cemetery + log_deaths)
        reached = kernel.forward(phi_hat)
        living = grid.integrate(np.abs(np.exp(end + reached) - np.exp(log_living)))
        dead = math.exp(cemetery) * grid.integrate(np.exp(phi_hat + log_deaths))
        error = living + abs(dead - (1.0 - survival))
        if error <= options.tolerance:
            return phi_hat + cemetery, end - cemetery, error, count
    raise NotConvergedError(
        f"survivors and dead are {error:.3g} (L1) from their shares after {options.max_iterations} iterations; "
        f"{options.tolerance:g} is the tolerance. Raise max_iterations, or accept a larger tolerance."
    )


def _log_deaths(log_survival: Field) -> Field:
    """Computes ``log(1 − e^s)`` of a log probability of survival; −∞ where rounding leaves nothing to die."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(-np.expm1(np.minimum(log_survival, 0.0))))
