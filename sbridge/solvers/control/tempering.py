"""Rough draws of an unnormalised density by tempering: where it lies, before a sampler of it is learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import NotConvergedError
from sbridge.laws import Density, Gaussian
from sbridge.linear import LinearMap
from sbridge.problems.costs import checked
from sbridge.random import derive, generator
from sbridge.solvers.control.trust_region import TrustRegion

_PROBES, _HALVINGS, _LARGEST, _MOVES_OF_CENTRE = 4096, 40, 2.0**20, 10
_MAX_KL, _MOST_ROUNDS, _MOVES, _LAST_MOVES = 0.5, 200, 8, 32
_ACCEPTED = 0.6  # the share of proposals that the step length aims at; .574 is best in many dimensions


def covering(density: Density, width: float, like: Tensor) -> Gaussian:
    """Finds an isotropic Gaussian that is wider than ``e^{−E}`` in every direction, in the dtype of ``like``.

    For ``N(c, s²)`` and standard normal ``z``, a regression of ``s ∇E(c + s z)`` on ``z`` has the matrix ``H``, the
    mean of ``s² ∇²E``. For a Gaussian its eigenvalues are ``s²`` over the variances. The scale ``s`` begins at
    ``2²⁰ width`` and falls by ``√2`` until the smallest eigenvalue is 1 or less; the last ``s`` before is taken. If the
    regression is zero farther than ``s √dim`` from the centre, the centre moves there.

    Args:
        density: with log density ``−E``, for states like ``like``.
        width: a length of about the size of the density, within a factor of ``10⁵``.
        like: gives dtype and device.

    Raises:
        NotConvergedError: if no scale qualifies, as for a density that does not decrease.
        InvalidInputError, NonFiniteError: for a log density of another shape, or that is not finite at any scale.
    """
    half = torch.randn(_PROBES // 2, density.dim, generator=generator(0), dtype=torch.float64)
    z = torch.cat([half, -half])
    centre = torch.zeros(density.dim, dtype=torch.float64)
    scale, step = width, centre
    for _ in range(_MOVES_OF_CENTRE):
        scale, step = _scale(density, z, centre, width, like)
        if float(step.norm()) < scale * math.sqrt(density.dim):
            break
        centre = centre + step
    return Gaussian(centre.to(like), (scale**2 * torch.eye(density.dim, dtype=torch.float64)).to(like))


def _scale(density: Density, z: Tensor, centre: Tensor, width: float, like: Tensor) -> tuple[float, Tensor]:
    """The scale about ``centre``, and the step to the mean."""
    found: tuple[float, Tensor] | None = None
    scale = _LARGEST * width
    for _ in range(2 * _HALVINGS):
        slope = _with_slope(density, (centre + scale * z).to(like))[1].double().cpu() * scale
        if bool(slope.isfinite().all()):
            curvature = torch.linalg.solve(z.mT @ z, z.mT @ -slope)
            values, vectors = torch.linalg.eigh(0.5 * (curvature + curvature.mT))
            if float(values[0]) <= 1.0:
                break
            found = scale, scale * (vectors / values) @ (vectors.mT @ slope.mean(0))
        scale /= math.sqrt(2.0)
    if found is None:
        rows = (centre + width * z).to(like)
        checked(_with_slope(density, rows)[0], rows, "log density", f"states of size {width:.3g}")
        raise NotConvergedError(
            f"the log density does not decrease at distances up to {_LARGEST * width:.3g} from the origin like that of "
            "a distribution, so it is not known where draws of it should begin. Check that the log density is not "
            "flat and does not have the wrong sign, or say where its mass is: DensitySampler(cover=Gaussian(mean, "
            "covariance)), wider than the density."
        )
    return found


def tempered(density: Density, cover: Gaussian, rows: int, seed: int) -> Tensor:
    """Draws ``rows`` states of about the distribution ``e^{−E}/Z``, by tempering from ``cover``; ``(rows, dim)``.

    A sequential Monte Carlo sampler (Del Moral, Doucet & Jasra 2006) along ``q^{1−β} e^{−βE}``, ``q = cover``: β rises
    as far as the weights stay within half a nat of uniform, states are drawn again by weight, and Metropolis-adjusted
    Langevin steps (Roberts & Tweedie 1996), scaled by the covariance of the states, move them. Draws are dependent, and
    exact only for many rows.

    Raises:
        NonFiniteError: if the log density is NaN.
        NotConvergedError: after 200 rounds.
    """
    draws, region = generator(derive(seed, "tempering")), TrustRegion(_MAX_KL)
    path = _Tempered(density, cover)
    states = path.at(cover.sample(rows, draws))
    beta, length = 0.0, 0.5
    for _ in range(_MOST_ROUNDS):
        weights, power = region.weights((1.0 - beta) * (states.log_target - states.log_cover))
        beta = 1.0 if power == 1.0 else beta + (1.0 - beta) * power
        places = (torch.arange(rows) + torch.rand(1, generator=draws, dtype=torch.float64)) / rows
        states = states.rows(torch.searchsorted(weights.cumsum(0).cpu(), places).clamp_max(rows - 1))
        for _ in range(_LAST_MOVES if beta == 1.0 else _MOVES):
            states, accepted = path.moved(states, beta, length, draws)
            length *= math.exp(0.5 * (accepted - _ACCEPTED))
        if beta == 1.0:
            return states.x
    raise NotConvergedError(
        f"tempering from {cover} to the log density did not end in {_MOST_ROUNDS} rounds (β = {beta:.2g}): the density "
        "is far narrower than the Gaussian that it begins from. Say where its mass is: "
        "DensitySampler(cover=Gaussian(mean, covariance)), wider than the density, but not by orders of magnitude."
    )


@dataclass(frozen=True, eq=False)
class _States:
    """States with both log densities and their gradients there; log densities are in float64."""

    x: Tensor
    log_target: Tensor
    log_cover: Tensor
    slope_target: Tensor
    slope_cover: Tensor

    def rows(self, index: Tensor) -> _States:
        return _States(*(part[index.to(part.device)] for part in vars(self).values()))

    def log_density(self, beta: float) -> Tensor:
        return beta * self.log_target + (1.0 - beta) * self.log_cover

    def slope(self, beta: float) -> Tensor:
        return beta * self.slope_target + (1.0 - beta) * self.slope_cover


@dataclass(frozen=True, eq=False)
class _Tempered:
    """The distributions ``q^{1−β} e^{−βE}``."""

    density: Density
    cover: Gaussian

    def at(self, x: Tensor) -> _States:
        """``x`` with all that is known there; where ``E`` is infinite or has no finite gradient, the density is 0."""
        logs, slopes = _with_slope(self.density, x)
        if bool(logs.isnan().any()):
            checked(logs, x, "log density", "states of the tempered sampler")
        usable = logs.isfinite() & slopes.isfinite().all(1)
        logs = torch.where(usable, logs.double(), -math.inf)
        slopes = torch.where(usable.unsqueeze(1), slopes, 0.0)
        cover, slope = _with_slope(self.cover, x)
        return _States(x, logs, cover.double(), slopes, slope)

    def moved(self, states: _States, beta: float, length: float, draws: torch.Generator) -> tuple[_States, float]:
        """One Metropolis-adjusted Langevin step of each state, and the share of accepted proposals."""
        x = states.x
        noise = torch.randn(x.shape, generator=draws, dtype=torch.float64).to(x)
        root = LinearMap(torch.cov(x.double().mT).reshape(x.shape[1], -1), dense=True).cholesky().to(x)
        drift = root.T(states.slope(beta))
        proposed = self.at(x + root(0.5 * length**2 * drift + length * noise))
        back = noise + 0.5 * length * (drift + root.T(proposed.slope(beta)))
        gain = proposed.log_density(beta) - states.log_density(beta)
        gain = gain + 0.5 * (noise.double().square() - back.double().square()).sum(1)
        uniform = torch.rand(len(x), generator=draws, dtype=torch.float64).to(gain)
        accepted = uniform.log() < gain
        parts = zip(vars(states).values(), vars(proposed).values(), strict=True)
        kept = (torch.where(accepted.reshape(-1, *[1] * (a.ndim - 1)), b, a) for a, b in parts)
        return _States(*kept), float(accepted.double().mean())


def _with_slope(law: Density | Gaussian, x: Tensor) -> tuple[Tensor, Tensor]:
    """The log density at ``x`` and its gradient; InvalidInputError for another shape."""
    log_density: Callable[[Tensor], Tensor] = law.log_density
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        values = log_density(x)
        if not isinstance(values, Tensor) or values.shape != x.shape[:1]:
            checked(values, x, "log density", "states of the sampler")
        if not values.requires_grad:
            return values.detach(), torch.zeros_like(x).detach()
        (slope,) = torch.autograd.grad(values.sum(), x, allow_unused=True, materialize_grads=True)
    return values.detach(), slope
