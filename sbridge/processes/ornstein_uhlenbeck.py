"""The Ornstein–Uhlenbeck process, scalar to multivariate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.linear import LinearMap
from sbridge.processes.base import LinearProcess, Time, Transition, check_horizon
from sbridge.processes.coefficients import (
    Coefficient,
    Diffusion,
    Scale,
    as_coefficient,
    as_scale,
    as_vector,
    clock,
    common_dim,
    integrate,
    interval,
    over_times,
    panels_for,
    relative_expm1,
)
from sbridge.processes.constant import ConstantFlow
from sbridge.storage.registry import register

_LEAST_SHARE = 1e-15  # smallest eigenvalue of the noise's correlations: σ may have singular values 1e7 apart


@register
@dataclass(frozen=True, eq=False)
class OrnsteinUhlenbeck(LinearProcess):
    """The process ``dX = −rate (X − mean) dt + σ(t) dW`` (Uhlenbeck & Ornstein 1930, Phys. Rev. 36, 823).

    ``X_t | X_s = x ~ N(mean + Φ (x − mean), Q)`` with ``Φ = e^{−rate (t−s)}`` and
    ``Q = ∫_s^t e^{−rate (t−r)} σσᵀ e^{−rateᵀ (t−r)} dr``. A scalar or diagonal rate β with constant σ has
    ``Q_ij = (σσᵀ)_ij (1 − e^{−(β_i+β_j)(t−s)}) / (β_i+β_j)``, of full relative precision for any β, zero
    and negative ones too. For a matrix rate Φ, the offset and Q are power series on a step ``h`` with
    ``‖rate‖ h ≤ ½``, doubled up to ``t − s`` by ``Q_{2h} = Q_h + Φ_h Q_h Φ_hᵀ``: sums of positive terms,
    where one block exponential over a long interval would cancel.

    Args:
        rate: reversion per unit time: a number, a vector ``(dim,)`` or a matrix ``(dim, dim)``; any sign.
        sigma: σ as in :class:`BrownianMotion`; a function of time is integrated by 20-point Gauss–Legendre
            quadrature on panels of length at most ``4/‖rate‖``.
        mean: the point that it reverts to, a number or a vector ``(dim,)``.
        horizon: ``T > 0``.

    Raises:
        InvalidInputError: as for :class:`BrownianMotion`; if dimensions disagree; if the process grows beyond
            the floating-point range before ``T``.
    """

    rate: Coefficient
    sigma: Scale
    mean: Coefficient = 0.0
    horizon: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizon", check_horizon(self.horizon))
        object.__setattr__(self, "rate", as_coefficient(self.rate, "rate"))
        object.__setattr__(self, "mean", as_vector(self.mean, "mean"))
        object.__setattr__(self, "sigma", as_scale(self.sigma, self.horizon))
        common_dim(rate=self._rate, mean=self._mean, sigma=self._diffusion.probe)
        covariance = self.transition(0.0, self.horizon).covariance
        if not bool(torch.isfinite(covariance.values).all()):
            raise InvalidInputError(
                f"rate × horizon is {self._speed * self.horizon:.3g}: the process leaves the floating-point "
                "range before its end. Shorten the horizon or lower the rate."
            )
        self._check_resolved(covariance)

    def _check_resolved(self, covariance: LinearMap) -> None:
        """Raises an error for a covariance whose entries differ so much in size that the smaller ones are lost."""
        if not covariance.dense:
            return
        sizes = covariance.values.diagonal().sqrt()
        smallest = float(torch.linalg.eigvalsh(covariance.values / sizes / sizes.unsqueeze(1))[0])
        if not smallest > _LEAST_SHARE:
            raise InvalidInputError(
                f"over the horizon {self.horizon:g} the process adds {max(smallest, 0.0):.1e} times as much variance "
                f"in one direction as in others, and at least {_LEAST_SHARE:g} can be resolved: some directions grow "
                f"by e^(rate × horizon), with ‖rate‖ × horizon = {self._speed * self.horizon:.3g}, and others do not. "
                "Shorten the horizon, lower the rate, or give data and rate in the eigenvectors of the rate, where it "
                "is a vector."
            )

    @cached_property
    def _rate(self) -> LinearMap:
        return LinearMap.of(self.rate)  # type: ignore[arg-type]

    @cached_property
    def _mean(self) -> LinearMap:
        return LinearMap.of(self.mean)  # type: ignore[arg-type]

    @cached_property
    def _diffusion(self) -> Diffusion:
        return Diffusion(self.sigma)  # type: ignore[arg-type]

    @cached_property
    def _speed(self) -> float:
        """``‖rate‖``."""
        values = self._rate.values
        return float(torch.linalg.matrix_norm(values, 2) if self._rate.dense else values.abs().max())

    @property
    def dim(self) -> int | None:
        """The dimension of the coefficients, ``None`` if all are scalar."""
        return common_dim(rate=self._rate, mean=self._mean, sigma=self._diffusion.probe)

    def linear(self, t: Time) -> LinearMap:
        """Computes ``A = −rate``."""
        return over_times(-self._rate, clock(t).shape)

    def offset(self, t: Time) -> Tensor:
        """Computes ``c = rate · mean``."""
        return self._pull_to_mean.expand(*clock(t).shape, -1)

    def scale(self, t: Time) -> LinearMap:
        """Returns σ(t)."""
        return self._diffusion.at(clock(t))

    def transition(self, s: Time, t: Time) -> Transition:
        """Computes ``Φ = e^{−rate (t−s)}``, ``k = (1 − Φ) mean`` and Q as in the class's description."""
        start, duration = interval(s, t, self.horizon)
        if self._rate.dense:
            return self._dense_transition(start, duration)
        decay = self._rate.values * duration.unsqueeze(-1)
        offset = -torch.expm1(-decay) * self._mean.values
        return Transition(LinearMap(torch.exp(-decay)), offset, self._covariance(start, duration))

    @cached_property
    def _pull_to_mean(self) -> Tensor:
        if not self._rate.dense:
            return self._rate.values * self._mean.values
        return self._rate.values @ self._mean.values.expand(self._rate.values.shape[-1])

    def _covariance(self, start: Tensor, duration: Tensor) -> LinearMap:
        """Computes Q for a scalar or diagonal rate."""
        rate, constant = self._rate.values, self._diffusion.covariance
        if constant is None:

            def integrand(r: Tensor, left: Tensor) -> LinearMap:
                decay = LinearMap(torch.exp(-rate * left.unsqueeze(-1)))
                return decay @ self._diffusion.covariance_at(r) @ decay

            return integrate(integrand, start, duration, panels_for(self._speed, duration))
        if not constant.dense:
            length = duration.unsqueeze(-1)
            # Q_i = σ_i² (1 − e^{−2β_i h})/(2β_i) = σ_i² h (e^z − 1)/z at z = −2β_i h, which is exact at β = 0 too
            return LinearMap(constant.values * length * relative_expm1(-2.0 * rate * length))
        length = duration.reshape(*duration.shape, 1, 1)
        sums = rate.unsqueeze(0) + rate.unsqueeze(1)
        return LinearMap(constant.values * length * relative_expm1(-sums * length), dense=True)

    @cached_property
    def _flow(self) -> ConstantFlow:
        """Φ and the offset of a matrix rate, and Q if σ is constant (it is zero otherwise)."""
        linear, constant = -self._rate.values, self._diffusion.covariance
        noise = torch.zeros_like(linear) if constant is None else constant.expanded(len(linear))
        return ConstantFlow(linear, self._pull_to_mean, noise)

    def _dense_transition(self, start: Tensor, duration: Tensor) -> Transition:
        phi, offset, covariance = self._flow.over(duration)
        if self._diffusion.constant is None:

            def integrand(r: Tensor, left: Tensor) -> LinearMap:
                decay = LinearMap(self._flow.over(left)[0], dense=True)
                return decay @ self._diffusion.covariance_at(r) @ decay.T

            quadrature = integrate(integrand, start, duration, panels_for(self._speed, duration))
            covariance = 0.5 * (quadrature.values + quadrature.values.mT)
        return Transition(LinearMap(phi, dense=True), offset, LinearMap(covariance, dense=True))
