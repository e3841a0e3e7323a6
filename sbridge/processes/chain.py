"""The discrete step used by every simulation and every path measure.

    forward    x_{k+1} = m_k(x_k) + L_k (√Δ_k u(t_k, x_k) + ξ_k)
    backward   x_k = m'_k(x_{k+1}) + L'_k (√Δ_k û(t_{k+1}, x_{k+1}) + ξ'_k)

Three rules give ``m`` and ``L``. :class:`EulerMaruyama`: ``m = x + Δ b(t_k, x)``, ``L = √Δ σ(t_k)``;
backward ``m' = x − Δ b(t_k, x)`` with the same ``L``. :class:`ExactTransition`, for linear processes:
``m = Φ x + c``, ``L Lᵀ = Q``, ``L ≈ √Δ σ``; backward ``m' = Φ⁻¹(x − c)``, ``L' = Φ⁻¹ L``: the uncontrolled chain
then has no time-stepping error at all. :class:`KineticSplitting`, for underdamped processes with any force.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.linear import LinearMap
from sbridge.processes.base import LinearProcess, Process, Transition
from sbridge.processes.underdamped import UnderdampedDrift
from sbridge.storage.registry import register


@register
class Direction(Enum):
    """The direction of a measure along bridge time."""

    FORWARD = 1
    BACKWARD = -1

    @property
    def opposite(self) -> Direction:
        """The opposite direction."""
        return Direction(-self.value)


class StepRule(ABC):
    """A rule that discretises a process to a chain."""

    @abstractmethod
    def steps(self, process: Process, times: Tensor, direction: Direction, like: Tensor) -> Steps:
        """Computes the steps between consecutive ``times`` (increasing), in the dtype and on the device of ``like``."""


class Steps(ABC):
    """Means and noise roots of steps; ``k`` counts intervals ``[t_k, t_{k+1}]`` in bridge time.

    Attributes:
        roots: ``L_k``, one for each interval along the first dimension.
    """

    roots: LinearMap

    @abstractmethod
    def move(self, k: int, x: Tensor) -> Tensor:
        """Computes the mean displacement ``m_k(x) − x`` of the uncontrolled step over interval ``k``."""


@register
@dataclass(frozen=True)
class ExactTransition(StepRule):
    """Exact transition mean and covariance root of a linear process."""

    def steps(self, process: Process, times: Tensor, direction: Direction, like: Tensor) -> Steps:
        """Computes the steps; raises UnsupportedError unless the process is linear."""
        if not isinstance(process, LinearProcess):
            raise UnsupportedError(
                f"ExactTransition needs a LinearProcess, got {type(process).__name__}; use EulerMaruyama()."
            )
        law = process.transition(times[:-1], times[1:])
        root = _aligned_root(law, process.scale(times[:-1]))
        minus_one = LinearMap(-torch.ones(1, dtype=torch.float64, device=law.map.values.device))
        if direction is Direction.FORWARD:
            return _AffineSteps.of(law.map + minus_one, law.offset, root, like)
        back = law.map.inverse()
        # A dense map meets an offset of one number only when that is spread over the coordinates.
        offset = law.offset.expand(*law.offset.shape[:-1], back.dim or law.offset.shape[-1])
        return _AffineSteps.of(back + minus_one, -back(offset), back @ root, like)


def _aligned_root(law: Transition, sigma: LinearMap) -> LinearMap:
    """Computes ``L = σ (σ⁻¹Qσ⁻ᵀ)^½`` with the Cholesky root: ``L Lᵀ = Q`` and ``L = √Δ σ (1 + O(Δ))``.

    A control moves the step by ``√Δ L u``, which has to be ``Δ σ u`` to first order. The Cholesky root of ``Q`` alone
    would do that for a triangular σ only (a diagonal σ gives the same root either way). Where noise enters velocities
    alone, the upper triangular root does it: velocities take their noise as it is, and positions follow them, with an
    independent part of order ``Δ^{3/2}``.
    """
    if not sigma.dense:
        return law.covariance.cholesky(upper=True) if sigma.singular else law.root
    white = sigma.inverse()
    return sigma @ (white @ law.covariance @ white.T).cholesky()


@register
@dataclass(frozen=True)
class EulerMaruyama(StepRule):
    """Euler–Maruyama steps ``m = x ± Δ b(t_k, x)``, ``L = √Δ σ(t_k)``; ``t_k`` is the left end in both directions."""

    def steps(self, process: Process, times: Tensor, direction: Direction, like: Tensor) -> Steps:
        """Computes the steps; raises UnsupportedError if noise does not enter every coordinate."""
        scale = process.scale(times[:-1])
        if scale.singular:
            raise UnsupportedError(
                f"EulerMaruyama() would move positions of {type(process).__name__} without noise, so that two path "
                "measures have no density ratio. Use the default rule; if the process was rescaled for a fit, use "
                "scaling=sb.NoScaling()."
            )
        return _EulerSteps(process, times.tolist(), direction.value, (scale * times.diff().sqrt()).to(like))


@register
@dataclass(frozen=True)
class KineticSplitting(StepRule):
    """Steps of :class:`UnderdampedDrift`: a kick by the force, then the exact transition of the free process.

    Forward, ``m(x, v) = Φ (x, v + Δ F(t_k, x))`` and ``L Lᵀ = Q``, with Φ and Q of the process without the force;
    backward, the inverse of the mean: ``m' = (x', v' − Δ F(t_k, x'))`` with ``(x', v') = Φ⁻¹ y``, and ``L' = Φ⁻¹ L``.
    Linear in the noise, so Girsanov sums are exact for the chain. The steps are those of the symmetric splitting BUB
    (half a kick before and half after; Sanz-Serna & Zygalakis 2021, JMLR 22 (242)) but for half a kick at both ends:
    the stationary laws of positions and of velocities have errors of order ``Δ²``, their covariance one of order ``Δ``.
    """

    def steps(self, process: Process, times: Tensor, direction: Direction, like: Tensor) -> Steps:
        """Computes the steps; raises UnsupportedError unless the process is an :class:`UnderdampedDrift`."""
        if not isinstance(process, UnderdampedDrift):
            raise UnsupportedError(
                f"KineticSplitting needs an UnderdampedDrift, got {type(process).__name__}; use the default rule."
            )
        free = ExactTransition().steps(process.free, times, direction, like)
        return _SplitSteps(process, times.tolist(), direction, free, free.roots)


@dataclass(frozen=True, eq=False)
class _AffineSteps(Steps):
    """Affine steps ``m_k(x) − x = A_k x + c_k``: with ``A = Φ − 1`` from float64, nothing cancels in float32."""

    maps: list[LinearMap]
    offsets: tuple[Tensor, ...]
    roots: LinearMap

    @classmethod
    def of(cls, maps: LinearMap, offsets: Tensor, roots: LinearMap, like: Tensor) -> _AffineSteps:
        return cls(maps.to(like).unbind(), offsets.to(like).unbind(0), roots.to(like))

    def move(self, k: int, x: Tensor) -> Tensor:
        return self.maps[k].add(self.offsets[k], x)


@dataclass(frozen=True, eq=False)
class _EulerSteps(Steps):
    process: Process
    times: list[float]
    sign: int
    roots: LinearMap

    def move(self, k: int, x: Tensor) -> Tensor:
        delta = self.times[k + 1] - self.times[k]
        return self.sign * delta * self.process.drift(self.times[k], x)


@dataclass(frozen=True, eq=False)
class _SplitSteps(Steps):
    process: UnderdampedDrift
    times: list[float]
    direction: Direction
    free: Steps
    roots: LinearMap

    def move(self, k: int, x: Tensor) -> Tensor:
        delta = self.times[k + 1] - self.times[k]
        if self.direction is Direction.FORWARD:
            kick = delta * self.process.kick(self.times[k], x)
            return kick + self.free.move(k, x + kick)
        back = self.free.move(k, x)
        return back - delta * self.process.kick(self.times[k], x + back)


@dataclass(frozen=True, eq=False)
class Chain:
    """A process on a grid in one direction, as simulation and Girsanov sums need it.

    Steps are numbered in the order in which they are run: step ``j`` of a forward chain is interval
    ``j``, of a backward chain interval ``N − 1 − j``.

    Args:
        process: the reference.
        times: increasing knots in bridge time, float64, shape ``(N + 1,)``.
        direction: forward or backward in time.
        rule: the rule of a step.
        like: a tensor whose dtype and device the coefficients take.
    """

    process: Process
    times: Tensor
    direction: Direction
    rule: StepRule
    like: Tensor

    @property
    def length(self) -> int:
        """The number of steps ``N``."""
        return len(self.times) - 1

    @cached_property
    def visited(self) -> Tensor:
        """The times of the states in the order in which they are visited, shape ``(N + 1,)``."""
        return self.times if self.direction is Direction.FORWARD else self.times.flip(0)

    @cached_property
    def step_times(self) -> list[float]:
        """The time at which the control of each step is evaluated: where the step starts."""
        return self.visited[:-1].tolist()

    @cached_property
    def root_durations(self) -> list[float]:
        """The root ``√Δ`` of each duration."""
        return self.visited.diff().abs().sqrt().tolist()

    @cached_property
    def _steps(self) -> Steps:
        return self.rule.steps(self.process, self.times, self.direction, self.like)

    def interval(self, j: int) -> int:
        """Returns the interval that step ``j`` crosses."""
        return j if self.direction is Direction.FORWARD else self.length - 1 - j

    @cached_property
    def _roots(self) -> list[LinearMap]:
        return self._steps.roots.unbind()

    @cached_property
    def _control_roots(self) -> list[LinearMap]:
        """The maps ``√Δ_k L_k`` of each interval."""
        return (self._steps.roots * self.times.diff().sqrt().to(self.like)).unbind()

    def mean(self, j: int, x: Tensor) -> Tensor:
        """Computes the uncontrolled mean of step ``j`` from ``x``."""
        return x + self._steps.move(self.interval(j), x)

    def move(self, j: int, x: Tensor, u: Tensor | None = None) -> Tensor:
        """Computes what step ``j`` adds to ``x`` without noise: ``m_j(x) − x + √Δ_j L_j u``."""
        k = self.interval(j)
        move = self._steps.move(k, x)
        return move if u is None else self._control_roots[k].add(move, u)

    def root(self, j: int) -> LinearMap:
        """Returns the noise root of step ``j``."""
        return self._roots[self.interval(j)]

    def roots(self, j: Tensor) -> LinearMap:
        """Returns the noise roots of the steps ``j``, one for each, on the chain's device."""
        interval = j if self.direction is Direction.FORWARD else self.length - 1 - j
        roots = self._steps.roots
        return LinearMap(roots.values[interval.to(roots.values.device)], roots.dense)

    def push(self, j: int, x: Tensor, shift: Tensor) -> Tensor:
        """Computes ``m_j(x) + L_j shift``, with ``shift = √Δ u + ξ``."""
        return self.mean(j, x) + self.root(j)(shift)

    def shift(self, j: int, x: Tensor, y: Tensor) -> Tensor:
        """Computes the ``shift`` with ``push(j, x, shift) = y``."""
        return self.root(j).inverse()(y - self.mean(j, x))


_FINE = 0.25  # growth h over a step at which a stationary law is simulated 15 % too wide
LARGEST_ERROR_GROWTH = 1e6
"""By which a simulation may multiply deviations in all: see :func:`check_growth`. Samplers of a diffusion model that
take few steps on purpose reach some hundreds, with poor rows; beyond this, rows are no answer at all."""


def check_growth(process: Process, times: Tensor, direction: Direction) -> None:
    """Checks that a control constant over each step can stabilise a linear process on the grid ``times``.

    Where the uncontrolled process grows by ``e^h`` over a step of length ``Δ`` (backward in time a process that reverts
    to its mean does), a control that keeps a stationary distribution is ``−2h x/(Δσ)``, and the step multiplies
    deviations by ``e^h (1 − √(2h(1 − e^{−2h})))``: by less than 1 in magnitude up to ``h = 1.05``, by 3 at 1.5 and by 7
    at 2.

    Raises:
        InvalidInputError: if these factors, where above 1, multiply to more than :data:`LARGEST_ERROR_GROWTH`.
    """
    if not isinstance(process, LinearProcess):
        return
    maps = process.transition(times[:-1], times[1:]).map
    sizes = torch.linalg.svdvals(maps.values) if maps.dense else maps.values.abs()
    forward = direction is Direction.FORWARD
    growth = (sizes.amax(-1).log() if forward else -sizes.amin(-1).log()).clamp_min(0.0)
    held = (1.0 - (-2.0 * growth * torch.expm1(-2.0 * growth)).sqrt()).abs().log()
    if float((growth + held).clamp_min(0.0).sum()) <= math.log(LARGEST_ERROR_GROWTH):
        return
    worst, steps = int(growth.argmax()), len(times) - 1
    most = float(growth[worst])
    needed = f" with n = {math.ceil(steps * most / _FINE)} or more" if math.isfinite(most) else ""
    raise InvalidInputError(
        f"over the step from t = {float(times[worst]):.4g} to {float(times[worst + 1]):.4g}, one of {steps}, the "
        f"reference run {'forward' if forward else 'backward'} grows by a factor e^{most:.3g}. A control that is "
        f"constant over the step cannot compensate this: a factor e is stable at most, and e^{_FINE:g} is accurate. "
        f"Use a finer grid, TimeGrid.uniform(n){needed}, or a shorter horizon. transport() and interpolate() of a "
        "solver in closed form use no steps."
    )


def default_rule(process: Process) -> StepRule:
    """Returns exact steps for linear processes, a splitting for underdamped ones, Euler–Maruyama for others."""
    if isinstance(process, UnderdampedDrift):
        return KineticSplitting()
    return ExactTransition() if isinstance(process, LinearProcess) else EulerMaruyama()
