"""The Schrödinger system on a grid: an independent solution of every bridge in one and two dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.integrate import simpson
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.errors import InvalidInputError, NonFiniteError, NotConvergedError
from sbridge.laws import Law
from sbridge.pde.densities import KernelDensity, SampleDensity, log_density_on
from sbridge.pde.equations import HUNDRED_INTERVALS
from sbridge.pde.grids import Field, Grid, Spline
from sbridge.pde.kernels import LogKernel, check_size
from sbridge.pde.potentials import ExactReference, Potentials, PropagatedReference, Reference
from sbridge.pde.propagator import Propagator, StateCost
from sbridge.processes.base import LinearProcess, Process, as_time, check_time
from sbridge.time import TimeGrid


@dataclass(frozen=True)
class FortetSinkhorn:
    """Stopping criteria of the iteration.

    Args:
        tolerance: largest L1 distance of the end marginal from the target; the start marginal is exact.
        max_iterations: pairs of half-steps.
    """

    tolerance: float = 1e-10
    max_iterations: int = 10_000

    def __post_init__(self) -> None:
        if not (self.tolerance > 0 and self.max_iterations >= 1):
            raise InvalidInputError(f"a positive tolerance and at least one iteration are needed, got {self}.")


@dataclass(frozen=True, eq=False)
class HalfStep:
    """Potentials after a half-step.

    Attributes:
        log_phi_end: ``log φ(T, ·)``.
        log_phi_hat_start: ``log φ̂(0, ·)``.
        log_phi_start: ``log φ(0, ·)`` after the half-step at the start; else ``None``.
        error: L1 distance of the end marginal from the target *before* a half-step at the end; else ``None``.
    """

    log_phi_end: Field
    log_phi_hat_start: Field
    log_phi_start: Field | None
    error: float | None


def half_steps(kernel: LogKernel, log_start: Field, log_end: Field) -> Iterator[HalfStep]:
    """Iterates Fortet (1940) and Sinkhorn (1964) in logarithms, without end.

    ::

        φ(T, y) = p_T(y) / ∫ G(y | x) φ̂(0, x) dx
        φ̂(0, x) = p_0(x) / ∫ G(y | x) φ(T, y) dy        (Premkumar 2023, eq. (3.28))

    It begins with ``φ̂(0) = p_0``, the reference itself. In path space it is iterative proportional fitting, one
    half-bridge per half-step.
    """
    phi_hat, end, reached = log_start, None, kernel.forward(log_start)
    while True:
        error = None if end is None else float(np.abs(np.exp(end + reached) - np.exp(log_end)).sum())
        end = log_end - reached
        yield HalfStep(end, phi_hat, None, error)
        phi = kernel.backward(end)
        phi_hat = log_start - phi
        yield HalfStep(end, phi_hat, phi, None)
        reached = kernel.forward(phi_hat)


@dataclass(frozen=True, eq=False)
class GridSolution:
    """The Schrödinger bridge on a grid, by its potentials: ``p_t = φ φ̂``, ``u* = σᵀ∇log φ``, ``û* = σᵀ∇log φ̂``.

    Attributes:
        process: the reference.
        reference: the reference on the grid.
        times: knots, at which propagated potentials are kept and :attr:`energy` is integrated.
        log_start, log_end: ``log p_0`` and ``log p_T``.
        log_phi_hat_start, log_phi_end: ``log φ̂(0)`` and ``log φ(T)``, which determine everything.
        state_cost: ``V``.
        error: L1 distance of the end marginal from the target.
        iterations: pairs of half-steps.
    """

    process: Process
    reference: Reference
    times: np.ndarray
    log_start: Field
    log_end: Field
    log_phi_hat_start: Field
    log_phi_end: Field
    state_cost: StateCost | None
    error: float
    iterations: int

    @property
    def grid(self) -> Grid:
        """The grid of the solution."""
        return self.reference.grid

    @cached_property
    def potentials(self) -> Potentials:
        """The potentials ``log φ(t)`` and ``log φ̂(t)`` at every time."""
        return self.reference.potentials(self.log_phi_hat_start, self.log_phi_end)

    def density(self, t: float) -> Field:
        """Computes ``p_t = φ(t) φ̂(t)``."""
        t = float(check_time(t, self.process.horizon))
        return np.exp(self.potentials.log_phi(t) + self.potentials.log_phi_hat(t))

    def control(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``u*(t, x) = σᵀ∇log φ``, shape ``(batch, dim)``, in noise units: a control like any other.

        The gradient of a spline of degree 5 through ``log φ(t)``; outside the grid that of the nearest cell centre.
        """
        return self._gradient(self.potentials.log_phi, t, x)

    def backward_control(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``û*(t, x) = σᵀ∇log φ̂`` likewise, at bridge time ``t``."""
        return self._gradient(self.potentials.log_phi_hat, t, x)

    @cached_property
    def value(self) -> float:
        """The value ``V* = min KL(P ‖ R)`` from the static plan: ``∫ p_T log φ(T) − ∫ p_0 log φ(0)``, in nats.

        With a state cost ``R`` is the killed reference: the mean of ``∫V dt`` is part of it.
        """
        end, start = self._mean_log(self.log_end, self.log_phi_end), self._mean_log(self.log_start, self._log_phi_start)
        return end - start

    @cached_property
    def energy(self) -> float:
        """The value from the dynamics: ``E ∫ (½|u*|² + V) dt``, by Simpson's rule over :attr:`times`."""
        running = [self._running_cost(float(t)) for t in self.times]
        return float(simpson(running, x=self.times))

    @cached_property
    def end_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """``E[X_T | X_0 = x]``, ``(dim, *grid.shape)``, and covariance, ``(dim, dim, *grid.shape)``, at all ``x``."""
        return self._moments(self.reference.whole.backward, self.log_phi_end, self._log_phi_start)

    @cached_property
    def start_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of ``X_0`` given ``X_T = y``, at all ``y``."""
        reached = self.reference.whole.forward(self.log_phi_hat_start)
        return self._moments(self.reference.whole.forward, self.log_phi_hat_start, reached)

    def conditional_mean(self, x0: Tensor) -> Tensor:
        """Computes ``E[X_T | X_0 = x0]`` per row by interpolation; extrapolates outside the grid."""
        rows = self._rows(x0)
        columns = [self.grid.spline(mean)(rows) for mean in self.end_moments[0]]
        return torch.from_numpy(np.stack(columns, -1)).to(x0)

    def transition(self, s: float, t: float) -> np.ndarray:
        """Computes Doob's transition density ``G(t, y | s, x) φ(t, y)/φ(s, x)`` (Premkumar 2023, eq. (3.27)).

        Shape ``(size, size)``, a row for each ``x``; rows times the cell volume sum to 1. For a propagated reference
        ``s`` and ``t`` are knots of its time grid.

        Raises:
            UnsupportedError: for more than 4096 cells.
            InvalidInputError: if the reference spreads by less than 1.2 cells from ``s`` to ``t``, or times are no
                knots.
        """
        check_size(self.grid)
        table = self.reference.between(s, t).table()
        after, before = (self.potentials.log_phi(time).reshape(-1) for time in (t, s))
        return np.exp(table + after - before[:, None])

    def plan(self) -> np.ndarray:
        """Computes ``π*(x, y)`` of the two ends as a density, shape ``(size, size)``."""
        check_size(self.grid)
        joint = (
            self.log_phi_hat_start.reshape(-1)[:, None] + self.reference.whole.table() + self.log_phi_end.reshape(-1)
        )
        return np.exp(joint)

    @cached_property
    def _log_phi_start(self) -> Field:
        return self.reference.whole.backward(self.log_phi_end)

    def _gradient(self, potential: Callable[[float], Field], t: Time, x: Tensor) -> Tensor:
        t = check_time(t, self.process.horizon)
        rows, found = self._rows(x), torch.empty_like(x)
        moments = as_time(t)[..., 0].expand(len(x))
        for moment in moments.unique().tolist():
            here = moments == moment
            gradient = torch.from_numpy(self._spline(potential, moment).gradient(rows[here.numpy()]))
            found[here.to(x.device)] = self.process.scale(moment).T(gradient).to(x)
        return found

    def _spline(self, potential: Callable[[float], Field], t: float) -> Spline:
        """Returns the spline of a potential, cached for the latest time: a simulation evaluates many states at once."""
        key = (potential.__name__, t)
        if key not in self._latest:
            self._latest.clear()
            self._latest[key] = self.grid.spline(potential(t))
        return self._latest[key]

    @cached_property
    def _latest(self) -> dict[tuple[str, float], Spline]:
        return {}

    def _mean_log(self, log_density: Field, logs: Field) -> float:
        held = np.isfinite(log_density)
        return float(np.exp(log_density[held]) @ logs[held]) * self.grid.volume

    def _running_cost(self, t: float) -> float:
        log_phi, scale = self.potentials.log_phi(t), self.process.scale(t).expanded(self.grid.dim).numpy()
        cost = 0.5 * (np.tensordot(scale.T, self.grid.gradient(log_phi), 1) ** 2).sum(0)
        if self.state_cost is not None:
            cost = cost + self.grid.field(self.state_cost(t, self.grid.points))
        return self.grid.integrate(np.exp(log_phi + self.potentials.log_phi_hat(t)) * cost)

    def _moments(self, mean_of: Callable[[Field], Field], logs: Field, total: Field) -> tuple[np.ndarray, np.ndarray]:
        dim, mesh = self.grid.dim, np.meshgrid(*self.grid.centres, indexing="ij")
        away = [np.log(mesh[a] - self.grid.low[a]) for a in range(dim)]  # positive, so logarithms will do
        first = np.stack([np.exp(mean_of(logs + away[a]) - total) for a in range(dim)])
        second = np.empty((dim, dim, *self.grid.shape))
        for a in range(dim):
            for b in range(a + 1):
                product = np.exp(mean_of(logs + away[a] + away[b]) - total)
                second[a, b] = second[b, a] = product - first[a] * first[b]
        low = np.array(self.grid.low).reshape(dim, *[1] * dim)
        return first + low, second

    def _rows(self, x: Tensor) -> np.ndarray:
        if x.ndim != 2 or x.shape[1] != self.grid.dim:
            raise InvalidInputError(f"states have shape (rows, {self.grid.dim}) here, got {tuple(x.shape)}.")
        return x.detach().cpu().double().numpy()


def solve_schroedinger(
    process: Process,
    source: Law | Field,
    target: Law | Field,
    grid: Grid,
    *,
    state_cost: StateCost | None = None,
    times: TimeGrid = HUNDRED_INTERVALS,
    options: FortetSinkhorn = FortetSinkhorn(),
    estimate: SampleDensity = KernelDensity(),
) -> GridSolution:
    """Solves ``min KL(P ‖ R)`` over path measures with ``P_0 = source`` and ``P_T = target`` on a grid.

    A linear process without state cost enters by its exact transition: no error in time, and in space one that falls
    faster than any power of the cell width for smooth ends. Every other process, and every state cost (``R`` is then
    the killed process), is propagated by finite volumes: second order in cell width and in the steps of ``times``.

    Args:
        process: the reference; one that mixes the axes needs at most 4096 cells, and a propagated one a scalar or
            diagonal σ.
        source, target: distributions, or non-negative fields.
        grid: contains both of them.
        state_cost: ``V(t, x)``, of either sign.
        times: knots of the propagation and of :attr:`GridSolution.energy`.
        options: when the iteration ends.
        estimate: makes densities of samples.

    Raises:
        InvalidInputError: if the grid misses mass of an end or is too coarse for the reference.
        NotConvergedError: if the tolerance is not met; the message says what was.
    """
    setting = _Setting.of(process, source, target, grid, state_cost, times, estimate)
    solved, error, iterations = _iterate(setting.reference.whole, setting.log_start, setting.log_end, options)
    return setting.bridge(solved, error, iterations)


def proportional_fitting(
    process: Process,
    source: Law | Field,
    target: Law | Field,
    grid: Grid,
    *,
    times: TimeGrid = HUNDRED_INTERVALS,
    estimate: SampleDensity = KernelDensity(),
) -> Iterator[GridSolution]:
    """Every iterate of :func:`half_steps` as a path measure, without end; arguments as in :func:`solve_schroedinger`.

    The first is the reference from ``source``, reversed and started in ``target``; each is the reversal of the one
    before, with the right distribution at its other end. ``iterations`` counts half-steps; ``error`` is the L1
    distance of the end marginal from the target, which is zero after the first and every second one.
    """
    setting = _Setting.of(process, source, target, grid, None, times, estimate)
    kernel, goal = setting.reference.whole, np.exp(setting.log_end)
    for count, step in enumerate(half_steps(kernel, setting.log_start, setting.log_end), start=1):
        reached = np.exp(step.log_phi_end + kernel.forward(step.log_phi_hat_start))
        yield setting.bridge(step, grid.integrate(np.abs(reached - goal)), count)


@dataclass(frozen=True, eq=False)
class _Setting:
    """The reference and both ends on the grid."""

    process: Process
    reference: Reference
    knots: np.ndarray
    log_start: Field
    log_end: Field
    state_cost: StateCost | None

    @classmethod
    def of(
        cls,
        process: Process,
        source: Law | Field,
        target: Law | Field,
        grid: Grid,
        state_cost: StateCost | None,
        times: TimeGrid,
        estimate: SampleDensity,
    ) -> _Setting:
        log_start, log_end = (log_density_of(end, grid, estimate) for end in (source, target))
        if process.dim not in (None, grid.dim):
            raise InvalidInputError(f"the process has dimension {process.dim}, the grid has {grid.dim}.")
        knots = times.times(process.horizon).numpy()
        if isinstance(process, LinearProcess) and state_cost is None:
            reference: Reference = ExactReference(process, grid)
        else:
            reference = PropagatedReference(Propagator(process, grid, knots, state_cost))
        return cls(process, reference, knots, log_start, log_end, state_cost)

    def bridge(self, step: HalfStep, error: float, iterations: int) -> GridSolution:
        """Makes the bridge of the potentials of ``step``."""
        return GridSolution(
            self.process,
            self.reference,
            self.knots,
            self.log_start,
            self.log_end,
            step.log_phi_hat_start,
            step.log_phi_end,
            self.state_cost,
            error,
            iterations,
        )


def _iterate(
    kernel: LogKernel, log_start: Field, log_end: Field, options: FortetSinkhorn
) -> tuple[HalfStep, float, int]:
    """Returns the potentials that meet the tolerance, with their error and the number of iterations."""
    iterations, error, solved = 0, np.inf, None
    for step in half_steps(kernel, log_start, log_end):
        if step.error is None:
            if step.log_phi_start is not None:
                iterations, solved = iterations + 1, step
            continue
        error = step.error * kernel.grid.volume
        if not np.isfinite(error):
            raise NonFiniteError(
                "the potentials are not finite: the reference cannot reach the target within the horizon."
            )
        if solved is not None and error <= options.tolerance:
            return solved, error, iterations
        if iterations >= options.max_iterations:
            break
    raise NotConvergedError(
        f"the end marginal is {error:.3g} (L1) from the target after {iterations} iterations; {options.tolerance:g} is "
        "the tolerance. Raise max_iterations, use a larger σ, or accept a larger tolerance."
    )


def log_density_of(end: Law | Field, grid: Grid, estimate: SampleDensity) -> Field:
    """Returns the log density of an end on the grid; raises InvalidInputError for a field that is not a density."""
    if isinstance(end, Law):
        return log_density_on(end, grid, estimate)
    mass = grid.integrate(end)
    if not ((end >= 0).all() and np.isfinite(mass) and abs(mass - 1.0) < 1e-3):
        raise InvalidInputError(
            f"a density must be non-negative with mass 1; this field has smallest value {end.min():.3g} and mass "
            f"{mass:.6g}. Divide by grid.integrate(field)."
        )
    with np.errstate(divide="ignore"):
        return np.log(end / mass)
