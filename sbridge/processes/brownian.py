"""Brownian motion."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.linear import LinearMap
from sbridge.processes.base import LinearProcess, Time, Transition, check_horizon
from sbridge.processes.coefficients import Diffusion, Scale, as_scale, clock, identity, integrate, interval
from sbridge.storage.registry import register


@register
@dataclass(frozen=True, eq=False)
class BrownianMotion(LinearProcess):
    """Brownian motion ``dX = σ(t) dW``; ``X_t | X_s = x ~ N(x, ∫_s^t σσᵀ dr)``.

    The entropic constant of the cost ``½|x − y|²`` is ``ε = σ²T`` for a constant scalar σ.

    Args:
        sigma: σ, invertible: a number, a vector ``(dim,)`` (diagonal) or a matrix ``(dim, dim)``, in units
            of state per square root of time; or a function of time, called with a float64 tensor of times
            ``(n,)``, that returns ``(n,)``, ``(n, dim)`` or ``(n, dim, dim)``. A function is integrated by
            Gauss–Legendre quadrature with 20 nodes (exact for ``σσᵀ`` polynomial of degree 39), and the process can be
            saved only if the function is an object of a registered class.
        horizon: ``T > 0``.

    Raises:
        InvalidInputError: for σ ≤ 0, a singular or non-finite σ, or a horizon that is not positive.
    """

    sigma: Scale
    horizon: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizon", check_horizon(self.horizon))
        object.__setattr__(self, "sigma", as_scale(self.sigma, self.horizon))

    @cached_property
    def _diffusion(self) -> Diffusion:
        return Diffusion(self.sigma)  # type: ignore[arg-type]

    @property
    def dim(self) -> int | None:
        """The dimension of σ, ``None`` if it is scalar."""
        return self._diffusion.probe.dim

    def linear(self, t: Time) -> LinearMap:
        """Computes ``A = 0``."""
        return LinearMap(torch.zeros(*clock(t).shape, 1, dtype=torch.float64, device="cpu"))

    def offset(self, t: Time) -> Tensor:
        """Computes ``c = 0``."""
        return torch.zeros(*clock(t).shape, 1, dtype=torch.float64, device="cpu")

    def scale(self, t: Time) -> LinearMap:
        """Returns σ(t)."""
        return self._diffusion.at(clock(t))

    def transition(self, s: Time, t: Time) -> Transition:
        """Computes ``Φ = 1``, ``k = 0``, ``Q = ∫_s^t σσᵀ dr``."""
        start, duration = interval(s, t, self.horizon)
        constant = self._diffusion.covariance
        if constant is None:
            covariance = integrate(lambda r, _: self._diffusion.covariance_at(r), start, duration)
        else:
            covariance = constant * duration
        return Transition(
            identity(duration.shape), torch.zeros(*duration.shape, 1, dtype=torch.float64, device="cpu"), covariance
        )
