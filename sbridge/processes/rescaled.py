"""Processes in other units of state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

from torch import Tensor

from sbridge.laws.scaling import AffineScaling
from sbridge.linear import LinearMap
from sbridge.processes.base import LinearProcess, Process, Time, Transition, applied
from sbridge.processes.brownian import BrownianMotion
from sbridge.processes.coefficients import Diffusion, ScaleFunction
from sbridge.processes.ornstein_uhlenbeck import OrnsteinUhlenbeck
from sbridge.processes.variance import VarianceExploding, VariancePreserving
from sbridge.storage.registry import register


@register
@dataclass(frozen=True, eq=False)
class RescaledProcess(Process):
    """The process of ``X̃ = S⁻¹ (X − m)``: drift ``S⁻¹ b(t, m + S x̃)``, noise ``S⁻¹ σ``."""

    process: Process
    scaling: AffineScaling

    @property
    def horizon(self) -> float:  # type: ignore[override]
        """The horizon of the process."""
        return self.process.horizon

    @property
    def dim(self) -> int | None:
        """The dimension of the process, or of the scaling."""
        return _dim(self.process, self.scaling)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``S⁻¹ b(t, m + S x)``."""
        return self.process.drift(t, self.scaling.to_data(x)) / self.scaling.scale.to(x)

    def scale(self, t: Time) -> LinearMap:
        """Computes ``S⁻¹ σ(t)``."""
        return _shrink(self.scaling) @ self.process.scale(t)


@register
@dataclass(frozen=True, eq=False)
class RescaledLinearProcess(LinearProcess):
    """The rescaled linear process: ``Φ̃ = S⁻¹ΦS``, ``k̃ = S⁻¹(k + (Φ − 1) m)``, ``Q̃ = S⁻¹QS⁻ᵀ``."""

    process: LinearProcess
    scaling: AffineScaling

    @property
    def horizon(self) -> float:  # type: ignore[override]
        """The horizon of the process."""
        return self.process.horizon

    @property
    def dim(self) -> int | None:
        """The dimension of the process, or of the scaling."""
        return _dim(self.process, self.scaling)

    def linear(self, t: Time) -> LinearMap:
        """Computes ``S⁻¹AS``."""
        return _conjugate(self.process.linear(t), self.scaling)

    def offset(self, t: Time) -> Tensor:
        """Computes ``S⁻¹(c + A m)``."""
        shift = self.scaling.shift.double().cpu()
        return (self.process.offset(t) + applied(self.process.linear(t), shift)) * _shrink(self.scaling).values

    def scale(self, t: Time) -> LinearMap:
        """Computes ``S⁻¹ σ(t)``."""
        return _shrink(self.scaling) @ self.process.scale(t)

    def transition(self, s: Time, t: Time) -> Transition:
        """Computes the transition as in the class's description."""
        law, shrink = self.process.transition(s, t), _shrink(self.scaling)
        shift = self.scaling.shift.double().cpu()
        moved = law.offset + (applied(law.map, shift) - shift)
        return Transition(_conjugate(law.map, self.scaling), moved * shrink.values, shrink @ law.covariance @ shrink)


@singledispatch
def rescale(process: Process, scaling: AffineScaling) -> Process:
    """Returns the process of ``X̃ = (X − shift)/scale`` when ``X`` follows ``process``.

    The control in noise units and the driving noise are the same for both (see :mod:`sbridge.laws.scaling`).
    Processes of this package keep their class; other linear processes stay linear.

    Args:
        process: the reference in data units.
        scaling: the change of units; a scalar ``scale`` keeps a scalar σ scalar.
    """
    return RescaledProcess(process, scaling)


@rescale.register(LinearProcess)
def _(process: LinearProcess, scaling: AffineScaling) -> Process:
    return RescaledLinearProcess(process, scaling)


@rescale.register(BrownianMotion)
def _(process: BrownianMotion, scaling: AffineScaling) -> Process:
    return BrownianMotion(_scaled_sigma(process.sigma, scaling), process.horizon)  # type: ignore[arg-type]


@rescale.register(OrnsteinUhlenbeck)
def _(process: OrnsteinUhlenbeck, scaling: AffineScaling) -> Process:
    rate = _conjugate(LinearMap.of(process.rate), scaling).values  # type: ignore[arg-type]
    sigma = _scaled_sigma(process.sigma, scaling)  # type: ignore[arg-type]
    return OrnsteinUhlenbeck(rate, sigma, _scaled_mean(process.mean, scaling), process.horizon)  # type: ignore[arg-type]


@rescale.register(VariancePreserving)
def _(process: VariancePreserving, scaling: AffineScaling) -> Process:
    std = _shrink(scaling) @ LinearMap.of(process.stationary_std)  # type: ignore[arg-type]
    mean = _scaled_mean(process.mean, scaling)  # type: ignore[arg-type]
    return VariancePreserving(process.schedule, std.values, process.horizon, mean)


@rescale.register(VarianceExploding)
def _(process: VarianceExploding, scaling: AffineScaling) -> Process:
    shrink = _shrink(scaling).values
    return VarianceExploding(process.sigma_min * shrink, process.sigma_max * shrink, process.horizon)  # type: ignore[operator]


def _shrink(scaling: AffineScaling) -> LinearMap:
    """Computes ``S⁻¹``."""
    return LinearMap(1.0 / scaling.scale.double().cpu())


def _conjugate(one: LinearMap, scaling: AffineScaling) -> LinearMap:
    """Computes ``S⁻¹ A S``; diagonal maps commute with ``S``."""
    return _shrink(scaling) @ one @ LinearMap(scaling.scale.double().cpu()) if one.dense else one


def _dim(process: Process, scaling: AffineScaling) -> int | None:
    if process.dim is not None:
        return process.dim
    return len(scaling.shift) if len(scaling.shift) > 1 else None


def _scaled_mean(mean: float | Tensor, scaling: AffineScaling) -> Tensor:
    return (mean - scaling.shift.double().cpu()) * _shrink(scaling).values


def _scaled_sigma(sigma: float | Tensor | ScaleFunction, scaling: AffineScaling) -> Tensor | ScaleFunction:
    shrink = _shrink(scaling)
    if not callable(sigma):
        return (shrink @ LinearMap.of(sigma)).values
    diffusion = Diffusion(sigma)
    return lambda t: (shrink @ diffusion.at(t)).values
