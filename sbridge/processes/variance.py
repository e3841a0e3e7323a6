"""Variance-preserving and variance-exploding processes (Song et al. 2021, arXiv:2011.13456)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, shown
from sbridge.linear import LinearMap
from sbridge.processes.base import LinearProcess, Time, Transition, check_horizon
from sbridge.processes.coefficients import Coefficient, as_invertible, as_vector, clock, common_dim, identity, interval
from sbridge.processes.schedules import LinearSchedule, Schedule
from sbridge.storage.registry import register


@register
@dataclass(frozen=True, eq=False)
class VariancePreserving(LinearProcess):
    """The process ``dX = −½ β(t) (X − mean) dt + κ √β(t) dW``; ``N(mean, κκᵀ)`` is stationary.

    With ``B = ∫_s^t β``: ``X_t | X_s = x ~ N(mean + e^{−B/2} (x − mean), (1 − e^{−B}) κκᵀ)``.
    A scalar κ gives the static plan of a Brownian reference with ``ε = 2κ² sinh(½∫_0^T β)``.

    Args:
        schedule: β.
        stationary_std: κ, invertible: a number, a vector ``(dim,)`` or a matrix ``(dim, dim)``.
        horizon: ``T > 0``.
        mean: the stationary mean, a number or a vector ``(dim,)``.

    Raises:
        InvalidInputError: for κ ≤ 0, a singular or non-finite κ, dimensions that disagree, a horizon that is not
            positive, or an object that is not a schedule.
    """

    schedule: Schedule = field(default_factory=LinearSchedule)
    stationary_std: Coefficient = 1.0
    horizon: float = 1.0
    mean: Coefficient = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizon", check_horizon(self.horizon))
        object.__setattr__(self, "stationary_std", as_invertible(self.stationary_std, "stationary_std"))
        object.__setattr__(self, "mean", as_vector(self.mean, "mean"))
        if not isinstance(self.schedule, Schedule):
            raise InvalidInputError(
                f"schedule must be a Schedule such as LinearSchedule(), got {shown(self.schedule)}."
            )
        common_dim(stationary_std=self._std, mean=self._mean)

    @cached_property
    def _std(self) -> LinearMap:
        return LinearMap.of(self.stationary_std)  # type: ignore[arg-type]

    @cached_property
    def _mean(self) -> LinearMap:
        return LinearMap.of(self.mean)  # type: ignore[arg-type]

    @property
    def dim(self) -> int | None:
        """The dimension of κ or of the mean, ``None`` if both are scalar."""
        return common_dim(stationary_std=self._std, mean=self._mean)

    def linear(self, t: Time) -> LinearMap:
        """Computes ``A = −½ β(t)``."""
        return LinearMap(-0.5 * self.schedule.rate(clock(t), self.horizon).unsqueeze(-1))

    def offset(self, t: Time) -> Tensor:
        """Computes ``c = ½ β(t) mean``."""
        return -self.linear(t).values * self._mean.values

    def scale(self, t: Time) -> LinearMap:
        """Computes ``σ(t) = κ √β(t)``."""
        return self._std * self.schedule.rate(clock(t), self.horizon).sqrt()

    def transition(self, s: Time, t: Time) -> Transition:
        """Computes ``Φ = e^{−B/2}``, ``k = (1 − Φ) mean``, ``Q = (1 − e^{−B}) κκᵀ``."""
        half = 0.5 * self.schedule.integral(*interval(s, t, self.horizon), self.horizon)
        column = half.unsqueeze(-1)
        covariance = (self._std @ self._std.T) * -torch.expm1(-2.0 * half)
        return Transition(LinearMap(torch.exp(-column)), -torch.expm1(-column) * self._mean.values, covariance)


@register
@dataclass(frozen=True, eq=False)
class VarianceExploding(LinearProcess):
    """The process ``dX = σ(t) dW`` whose noise level ``s(t) = σ_min (σ_max/σ_min)^{t/T}`` grows geometrically.

    ``X_t | X_s = x ~ N(x, s(t)² − s(s)²)`` and ``σ(t) = s(t) √(2 log(σ_max/σ_min)/T)``, geometric too: from 0
    to ``t`` the noise gathered has standard deviation ``√(s(t)² − σ_min²)`` (Song et al. 2021, eq. 29, 30).

    Args:
        sigma_min: the noise level at the start, positive: a number or a vector ``(dim,)``, in units of state.
        sigma_max: the noise level at the end, above ``sigma_min``, likewise.
        horizon: ``T > 0``.

    Raises:
        InvalidInputError: unless ``0 < sigma_min < sigma_max``; for a horizon that is not positive; if
            dimensions disagree.
    """

    sigma_min: Coefficient
    sigma_max: Coefficient
    horizon: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizon", check_horizon(self.horizon))
        for name in ("sigma_min", "sigma_max"):
            as_invertible(as_vector(getattr(self, name), name), name)
            object.__setattr__(self, name, as_vector(getattr(self, name), name))
        common_dim(sigma_min=self._low, sigma_max=self._high)
        if not bool((self._growth > 0).all()):
            raise InvalidInputError(
                f"sigma_min must be below sigma_max, got {shown(self.sigma_min)} and {shown(self.sigma_max)}; for "
                "constant noise use BrownianMotion(sigma)."
            )

    @cached_property
    def _low(self) -> LinearMap:
        return LinearMap.of(self.sigma_min)  # type: ignore[arg-type]

    @cached_property
    def _high(self) -> LinearMap:
        return LinearMap.of(self.sigma_max)  # type: ignore[arg-type]

    @cached_property
    def _growth(self) -> Tensor:
        """``log(σ_max/σ_min)/T``."""
        return (self._high.values / self._low.values).log() / self.horizon

    @property
    def dim(self) -> int | None:
        """The dimension of the noise levels, ``None`` if both are scalar."""
        return common_dim(sigma_min=self._low, sigma_max=self._high)

    def linear(self, t: Time) -> LinearMap:
        """Computes ``A = 0``."""
        return LinearMap(torch.zeros(*clock(t).shape, 1, dtype=torch.float64, device="cpu"))

    def offset(self, t: Time) -> Tensor:
        """Computes ``c = 0``."""
        return torch.zeros(*clock(t).shape, 1, dtype=torch.float64, device="cpu")

    def scale(self, t: Time) -> LinearMap:
        """Computes ``σ(t) = s(t) √(2 log(σ_max/σ_min)/T)``."""
        return LinearMap(self._level(clock(t)) * (2.0 * self._growth).sqrt())

    def transition(self, s: Time, t: Time) -> Transition:
        """Computes ``Φ = 1``, ``k = 0``, ``Q = s(t)² − s(s)²``."""
        start, duration = interval(s, t, self.horizon)
        gathered = self._level(start).square() * torch.expm1(2.0 * duration.unsqueeze(-1) * self._growth)
        zero = torch.zeros(*duration.shape, 1, dtype=torch.float64, device="cpu")
        return Transition(identity(duration.shape), zero, LinearMap(gathered))

    def _level(self, t: Tensor) -> Tensor:
        """Computes ``s(t)``, shape ``(..., 1 | dim)``."""
        return self._low.values * torch.exp(t.unsqueeze(-1) * self._growth)
