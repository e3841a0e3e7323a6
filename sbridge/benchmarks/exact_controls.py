"""Exact controls of samplers: what a chain with given steps reaches when nothing is left to be learned.

For a reference with a stationary Gaussian start the optimal control is ``u = σᵀ(∇log p_t + S⁻²x)``, ``p_t`` the density
noised for the time that is left. Mixtures stay mixtures; the noised funnel is one integral over its first coordinate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.benchmarks.densities import IsotropicMixture
from sbridge.controls.base import Time
from sbridge.errors import InvalidInputError
from sbridge.exact.mixture import MixtureControl, MixturePotential
from sbridge.processes import LinearProcess, OrnsteinUhlenbeck

_POINTS, _REACH = 101, 8.0  # of the quadrature, in standard deviations: its error is below 1e-8


def stationary_noise(scales: Tensor | float, horizon: float) -> OrnsteinUhlenbeck:
    """Makes the Ornstein–Uhlenbeck process of rate 1 with the stationary standard deviations ``scales``."""
    return OrnsteinUhlenbeck(1.0, math.sqrt(2.0) * torch.as_tensor(scales, dtype=torch.float64), horizon=horizon)


def mixture_control(mixture: IsotropicMixture, process: LinearProcess, scale: float) -> MixtureControl:
    """Computes the control from ``N(0, scale²)``, stationary under ``process``, to the mixture.

    The tilt ``e^{−g}`` is the mixture over ``N(0, scale²)``: Gaussian terms of precision ``1/v − 1/scale²``.

    Raises:
        InvalidInputError: if the components are wider than the stationary distribution.
    """
    means, variance = mixture.means, mixture.variance
    if not variance < scale**2:
        raise InvalidInputError(f"components of variance {variance:.3g} need a larger scale than {scale:.3g}.")
    precision = torch.full_like(means, 1.0 / variance - 1.0 / scale**2)
    logits = -0.5 * means.square().sum(1) / variance
    return MixtureControl(MixturePotential(process, logits, means / variance, precision))


@dataclass(frozen=True, eq=False)
class FunnelControl:
    """The control from a stationary Gaussian to :func:`~sbridge.benchmarks.densities.funnel`, by quadrature.

    The noised density is ``∫ N(z; 0, 9) N(x_1; az, b_1) Π_i N(x_i; 0, a² e^z + b) dz`` with ``a = e^{−τ}`` and
    ``b_i = S_i²(1 − a²)``. Given ``x_1`` the integrand is a Gaussian in ``z`` times a smooth function; the trapezoidal
    rule on that Gaussian is exact to 1e-8.

    Args:
        scales: ``S``, the stationary standard deviations, all but the first of them equal, shape ``(dim,)``.
        horizon: ``T``, for rate 1.
        sigma: of the funnel.
    """

    scales: Tensor
    horizon: float
    sigma: float = 3.0

    def log_density(self, t: float, x: Tensor) -> Tensor:
        """Computes the logarithm of the noised density up to a constant, shape ``(batch,)``."""
        left = self.horizon - t
        a, noise = math.exp(-left), -math.expm1(-2.0 * left) * self.scales[:2].double().square()
        x = x.double()
        first, rest = x[:, :1], x[:, 1:].square().sum(1, keepdim=True)
        precision = 1.0 / self.sigma**2 + a * a / noise[0]
        middle = a * first / noise[0] / precision
        z = middle + precision.rsqrt() * torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
        variance = a * a * z.exp() + noise[1]
        exponents = -0.5 * (z / self.sigma).square() - 0.5 * (first - a * z).square() / noise[0]
        exponents = exponents - 0.5 * rest / variance - 0.5 * (x.shape[1] - 1) * variance.log()
        return torch.logsumexp(exponents, 1)

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the control at one time, shape ``(batch, dim)``; differentiable."""
        with torch.enable_grad():
            kept = x.requires_grad
            states = x if kept else x.detach().requires_grad_()
            (score,) = torch.autograd.grad(self.log_density(float(t), states).sum(), states, create_graph=kept)
        scales = self.scales.to(x)
        return math.sqrt(2.0) * scales * (score + x / scales.square())
