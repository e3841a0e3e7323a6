"""Laplace's approximation of a density, at every mode that ascents from random points find: it costs next to nothing.

What a sampler reports about a density of few dimensions has to be better than this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from sbridge.benchmarks.densities import Target
from sbridge.errors import NotConvergedError
from sbridge.laws import GaussianMixture
from sbridge.random import Seed, generator

_STARTS = 256
_SAME = 1e-3  # squared distance per dimension of two ends of ascents, in widths of the mode
_FLAT = 1e-3  # squared Newton step per dimension that is left at an end of an ascent, likewise


@dataclass(frozen=True, eq=False)
class Laplace:
    """The approximation ``e^{−E(x)} ≈ Σ_k e^{−E(m_k)} exp(−½ (x − m_k)ᵀ H_k (x − m_k))``.

    Args:
        mixture: ``N(m_k, H_k⁻¹)`` with the weights of the modes, normalised, float64.
        log_normaliser: ``log Σ_k e^{−E(m_k)} (2π)^{d/2} |H_k|^{−1/2}``.
    """

    mixture: GaussianMixture
    log_normaliser: float

    @property
    def modes(self) -> int:
        """The number of modes found."""
        return len(self.mixture.weights)


@torch.enable_grad()
def laplace(target: Target, *, seed: Seed, starts: int = _STARTS) -> Laplace:
    """Climbs from ``starts`` points, uniform on the cube of half-width ``target.scale``, and expands at the modes.

    Raises:
        NotConvergedError: if no ascent ends at a point with a gradient of zero and a positive definite Hessian.
    """
    draws = torch.rand(starts, target.dim, generator=generator(seed), dtype=torch.float64)
    found: list[tuple[Tensor, Tensor]] = []
    for start in target.scale * (2.0 * draws - 1.0):
        end = _climbed(target, start)
        if any(float((end - mode) @ hessian @ (end - mode)) < _SAME * target.dim for mode, hessian in found):
            continue
        gradient, hessian = _expanded(target, end)
        root, info = torch.linalg.cholesky_ex(hessian)
        if int(info) == 0 and float(gradient @ torch.cholesky_solve(gradient[:, None], root)) < _FLAT * target.dim:
            found.append((end, hessian))
    if not found:
        raise NotConvergedError(f"no mode of {target.name} was found from {starts} starts.")
    modes, hessians = (torch.stack(parts) for parts in zip(*found, strict=True))
    logs = -target.energy(modes) + 0.5 * target.dim * math.log(2.0 * math.pi) - 0.5 * torch.logdet(hessians)
    covariances = torch.linalg.inv(hessians)
    mixture = GaussianMixture(torch.softmax(logs, 0), modes, 0.5 * (covariances + covariances.mT))
    return Laplace(mixture, float(torch.logsumexp(logs, 0)))


def _climbed(target: Target, start: Tensor) -> Tensor:
    def energy(point: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(point).requires_grad_()
        value = target.energy(x[None])[0]
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    result = minimize(energy, start.numpy(), jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-8})
    return torch.from_numpy(result.x)


def _expanded(target: Target, at: Tensor) -> tuple[Tensor, Tensor]:
    """Returns gradient and Hessian of the energy."""
    x = at.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(target.energy(x[None])[0], x, create_graph=True)
    rows = [torch.autograd.grad(one, x, retain_graph=True)[0] for one in gradient]
    return gradient.detach(), torch.stack(rows)
