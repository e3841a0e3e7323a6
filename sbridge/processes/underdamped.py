"""Underdamped Langevin processes: states of positions and velocities, noise on velocities alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, shown
from sbridge.linear import LinearMap
from sbridge.processes.base import LinearProcess, Process, Time, Transition, check_horizon
from sbridge.processes.coefficients import (
    Coefficient,
    as_coefficient,
    as_invertible,
    as_vector,
    clock,
    common_dim,
    interval,
    over_times,
)
from sbridge.processes.constant import ConstantFlow
from sbridge.storage.registry import register


@register
@dataclass(frozen=True, eq=False)
class UnderdampedLangevin(LinearProcess):
    """Underdamped Langevin dynamics in a quadratic potential ``U(x) = ½ (x − mean)ᵀK(x − mean)``, or in none.

    The state is ``(x, v)`` with ``d`` positions and ``d`` velocities::

        dx = v dt        dv = (−γ v − K (x − mean)) dt + σ dW

    (Langevin 1908; Premkumar 2023, eq. (2.1) with unit mass). Noise enters the velocities and reaches the positions
    through them: the diffusion coefficient ``diag(0, σ)`` is singular, but the covariance of a transition is regular
    for every ``t > s`` (Kolmogorov 1934). So transitions, pinned bridges, exact steps and path measures are those of
    any linear process. In steps, ``L`` is the upper triangular root of ``Q``: a control of velocities moves both
    halves of the state as a constant force would.

    For a scalar ``γ > 0`` and σ the stationary law is ``∝ exp(−(U(x) + ½|v|²)/θ)`` with the temperature
    ``θ = σ²/2γ``. With σ replaced by ``γσ`` and ``U`` by ``γU``, the law of ``x`` tends to that of
    ``dx = −∇U dt + σ dW`` as ``γ → ∞``, with an error of order ``1/γ``.

    Args:
        friction: ``γ ≥ 0`` per unit time: a number or a vector ``(d,)``.
        sigma: ``σ > 0``, a number or a vector ``(d,)``, in units of velocity per square root of time.
        stiffness: ``K``: a number, a vector ``(d,)`` or a symmetric matrix ``(d, d)``, of any sign; zero for no
            potential.
        mean: the stationary point of the potential, a number or a vector ``(d,)``.
        horizon: ``T > 0``.
        positions: ``d``, needed if all coefficients are numbers and ``d > 1``.

    Raises:
        InvalidInputError: for ``γ < 0``, ``σ ≤ 0`` or a matrix σ, an asymmetric stiffness, dimensions that disagree, or
            a potential so repulsive that the process leaves the floating-point range before ``T``.
    """

    friction: Coefficient
    sigma: Coefficient
    stiffness: Coefficient = 0.0
    mean: Coefficient = 0.0
    horizon: float = 1.0
    positions: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizon", check_horizon(self.horizon))
        object.__setattr__(self, "friction", _checked_friction(self.friction))
        object.__setattr__(self, "sigma", as_invertible(as_vector(self.sigma, "sigma"), "sigma"))
        object.__setattr__(self, "stiffness", as_coefficient(self.stiffness, "stiffness"))
        object.__setattr__(self, "mean", as_vector(self.mean, "mean"))
        names = ("friction", "sigma", "stiffness", "mean")
        object.__setattr__(self, "positions", _positions(self.positions, **{name: self._map(name) for name in names}))
        stiffness = self._map("stiffness").values
        if self._map("stiffness").dense and not torch.equal(stiffness, stiffness.mT):
            raise InvalidInputError(
                f"stiffness must be a symmetric matrix, the second derivative of a potential, got {shown(stiffness)}. "
                "For a force that has no potential use UnderdampedDrift."
            )
        if not bool(torch.isfinite(self.transition(0.0, self.horizon).covariance.values).all()):
            raise InvalidInputError(
                f"the potential repels: with ‖K‖ = {float(stiffness.abs().max()):.3g} the process leaves the "
                f"floating-point range before its end {self.horizon:g}. Shorten the horizon or lower the stiffness."
            )

    @property
    def dim(self) -> int:
        """The dimension ``2d`` of the states."""
        return 2 * self._d

    @property
    def _d(self) -> int:
        return self.positions  # type: ignore[return-value]

    def linear(self, t: Time) -> LinearMap:
        """Returns ``[[0, 1], [−K, −γ]]``."""
        return over_times(LinearMap(self._flow.linear, dense=True), clock(t).shape)

    def offset(self, t: Time) -> Tensor:
        """Returns ``(0, K mean)``."""
        return self._flow.offset.expand(*clock(t).shape, -1)

    def scale(self, t: Time) -> LinearMap:
        """Returns ``diag(0, σ)``."""
        return over_times(self._scale, clock(t).shape)

    def transition(self, s: Time, t: Time) -> Transition:
        """Computes ``Φ = e^{A(t−s)}``, the offset, and ``Q = ∫ e^{Ar} diag(0, σ²) e^{Aᵀr} dr``."""
        phi, offset, covariance = self._flow.over(interval(s, t, self.horizon)[1])
        return Transition(LinearMap(phi, dense=True), offset, LinearMap(covariance, dense=True))

    def _map(self, name: str) -> LinearMap:
        return LinearMap.of(getattr(self, name))

    @cached_property
    def _scale(self) -> LinearMap:
        sigma = self._map("sigma").values.expand(self._d)
        return LinearMap(torch.cat([torch.zeros_like(sigma), sigma]))

    @cached_property
    def _flow(self) -> ConstantFlow:
        d = self._d
        stiffness, friction = (self._map(name).expanded(d) for name in ("stiffness", "friction"))
        one, nothing = torch.eye(d, dtype=torch.float64, device="cpu"), torch.zeros_like(stiffness)
        linear = torch.cat([torch.cat([nothing, one], 1), torch.cat([-stiffness, -friction], 1)])
        pull = stiffness @ self._map("mean").values.expand(d)
        return ConstantFlow(linear, torch.cat([torch.zeros_like(pull), pull]), self._scale.values.square().diag())


@register
@dataclass(frozen=True, eq=False)
class UnderdampedDrift(Process):
    """Underdamped Langevin dynamics ``dx = v dt``, ``dv = (F(t, x) − γ v) dt + σ dW`` with a user-defined force.

    The state is ``(x, v)`` as for :class:`UnderdampedLangevin`, which a linear force should use. It is simulated by
    :class:`KineticSplitting`. For a force ``−∇U`` and scalars ``γ, σ`` the stationary law is
    ``∝ exp(−(U(x) + ½|v|²)/θ)``, ``θ = σ²/2γ``.

    Args:
        force: ``F``, called as ``force(t, x)`` with positions ``x`` of shape ``(batch, d)`` and a time as for
            :class:`DriftProcess`. Returns the shape and dtype of ``x``; row ``i`` depends on row ``i`` only. A process
            made of a plain function cannot be saved; one made of an object of a registered class can.
        friction, sigma, horizon, positions: as for :class:`UnderdampedLangevin`.

    Raises:
        InvalidInputError: as for :class:`UnderdampedLangevin`; when it is used, if the states have another number of
            columns than ``2d``, or the force returns another shape or dtype.
    """

    force: Callable[[Time, Tensor], Tensor]
    friction: Coefficient
    sigma: Coefficient
    horizon: float = 1.0
    positions: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.force):
            raise InvalidInputError(
                f"force must be a function (t, x) -> force on positions x, got {shown(self.force)}."
            )
        for name in ("friction", "sigma", "horizon", "positions"):
            object.__setattr__(self, name, getattr(self.free, name))

    @cached_property
    def free(self) -> UnderdampedLangevin:
        """The process without the force."""
        return UnderdampedLangevin(self.friction, self.sigma, horizon=self.horizon, positions=self.positions)

    @property
    def dim(self) -> int:
        """The dimension ``2d`` of the states."""
        return self.free.dim

    def drift(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``(v, F(t, x) − γ v)``."""
        return self.kick(t, x) + self.free.drift(t, x)

    def scale(self, t: Time) -> LinearMap:
        """Returns ``diag(0, σ)``."""
        return self.free.scale(t)

    def kick(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``(0, F(t, x))``, the rate at which the force alone moves the state."""
        if x.shape[1] != self.dim:
            raise InvalidInputError(
                f"states of {self.dim // 2} positions and as many velocities have {self.dim} columns, got {x.shape[1]}."
            )
        places = x[:, : self.dim // 2]
        force = self.force(t.to(x) if isinstance(t, Tensor) else t, places)
        if not isinstance(force, Tensor) or force.shape != places.shape or force.dtype != x.dtype:
            said = f"{tuple(force.shape)} {force.dtype}" if isinstance(force, Tensor) else type(force).__name__
            raise InvalidInputError(
                f"force must return the shape and dtype of the positions, {tuple(places.shape)} {x.dtype}; it "
                f"returned {said}. Combine a time of shape (batch,) with x as t.unsqueeze(-1)."
            )
        return torch.cat([torch.zeros_like(force), force], 1)


def _checked_friction(friction: Coefficient) -> float | Tensor:
    found = as_vector(friction, "friction")
    least = float(torch.as_tensor(found, device="cpu").min())
    if least < 0.0:
        raise InvalidInputError(f"friction must not be negative, got {least:g}: velocities would grow without bound.")
    return found


def _positions(given: int | None, **maps: LinearMap) -> int:
    """Returns ``d``; raises InvalidInputError if it is not positive, or coefficients disagree with it."""
    found = common_dim(**maps)
    if given is None:
        return found or 1
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 1 or found not in (None, given):
        raise InvalidInputError(
            f"positions must be a positive integer that agrees with the coefficients, got {shown(given)} and "
            f"coefficients of dimension {found}."
        )
    return int(given)
