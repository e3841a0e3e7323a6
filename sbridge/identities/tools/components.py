"""Gaussian mixtures under a linear process, with exact means of test functions: no score, no simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import UnsupportedError
from sbridge.laws import Gaussian, GaussianMixture, Law, Samples
from sbridge.laws.moments import gaussian_components
from sbridge.processes.base import Transition
from sbridge.random import derive, generator


@dataclass(frozen=True, eq=False)
class Components:
    """The Gaussian mixture ``Σ_i w_i N(μ_i, Σ_i)``; data points are components with covariance zero.

    Args:
        weights: shape ``(K,)``.
        means: shape ``(K, dim)``.
        covariances: shape ``(1 | K, dim, dim)``; one if they are all equal.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def of(cls, law: Law) -> Components:
        """Converts a mixture, a Gaussian or a set of points, in float64.

        Raises:
            UnsupportedError: for another distribution.
        """
        if isinstance(law, (Gaussian, GaussianMixture)):
            return cls(*(part.double() for part in gaussian_components(law)))
        if not isinstance(law, Samples):
            raise UnsupportedError(f"a {type(law).__name__} has no components; give Samples or a GaussianMixture.")
        rows, count = law.rows.double(), len(law.rows)
        weights = rows.new_full((count,), 1.0 / count) if law.weights is None else law.weights.double()
        return cls(weights, rows, rows.new_zeros(1, law.dim, law.dim))

    @property
    def dim(self) -> int:
        """The dimension of the means."""
        return self.means.shape[1]

    @property
    def width(self) -> float:
        """The standard deviation, root mean square over coordinates."""
        offsets = self.means - self.weights @ self.means
        within = (self.weights * self.covariances.diagonal(dim1=-2, dim2=-1).mean(1)).sum()
        return math.sqrt(float(self.weights @ offsets.square().mean(1) + within))

    def mean(self) -> Tensor:
        """The mean, shape ``(dim,)``."""
        return self.weights @ self.means

    def moved(self, step: Transition) -> Components:
        """Returns the mixture after ``step``, with components ``N(Φμ + k, ΦΣΦᵀ + Q)``."""
        phi, q = step.map.expanded(self.dim), step.covariance.expanded(self.dim)
        return Components(self.weights, step.mean(self.means), phi @ self.covariances @ phi.mT + q)

    def given(self, step: Transition, y: Tensor) -> Components:
        """Returns the distribution of the state before ``step``, given that ``step`` led to ``y``, shape ``(dim,)``.

        By Bayes' formula it is ``∝ Σ_i w_i N(x; μ_i, Σ_i) N(y; Φx + k, Q)``. With the gain ``G = ΣΦᵀ(ΦΣΦᵀ + Q)⁻¹`` each
        component is a Gaussian with mean ``μ + G(y − Φμ − k)`` and covariance ``(I − GΦ)Σ``.
        """
        ahead, phi = self.moved(step), step.map.expanded(self.dim)
        gain = self.covariances @ phi.mT @ torch.linalg.inv(ahead.covariances)
        residual = y - ahead.means
        means = self.means + (gain @ residual.unsqueeze(-1)).squeeze(-1)
        precision = torch.linalg.inv(ahead.covariances)
        square = (residual.unsqueeze(1) @ precision @ residual.unsqueeze(2)).flatten()
        exponents = self.weights.log() - 0.5 * (square + torch.logdet(ahead.covariances))
        return Components(torch.softmax(exponents, 0), means, self.covariances - gain @ phi @ self.covariances)

    def beside_noise(self) -> Components:
        """Returns the joint distribution of the state and independent standard normal noise of its dimension."""
        covariances = self.covariances.new_zeros(len(self.covariances), 2 * self.dim, 2 * self.dim)
        covariances[:, : self.dim, : self.dim] = self.covariances
        covariances[:, self.dim :, self.dim :] = torch.eye(self.dim, dtype=torch.float64)
        return Components(self.weights, torch.cat([self.means, torch.zeros_like(self.means)], 1), covariances)

    def rescaled(self, factor: float) -> Components:
        """Returns the distribution of ``factor · X``."""
        return Components(self.weights, factor * self.means, factor**2 * self.covariances)

    def expected(self, waves: Waves) -> float:
        """Computes ``E waves(X)``: ``Σ w cos(kᵀμ + phase) e^{−½ kᵀΣk}``, the characteristic function."""
        k = waves.frequencies
        damping = torch.exp(-0.5 * torch.einsum("md,kde,me->km", k, self.covariances, k))
        return float(self.weights @ ((self.means @ k.mT + waves.phases).cos() * damping).mean(1))


@dataclass(frozen=True, eq=False)
class Waves:
    """The test function ``x ↦`` mean of ``cos(kᵀx + phase)`` over wave vectors ``k`` of several lengths.

    Args:
        frequencies: ``k``, shape ``(M, dim)``.
        phases: shape ``(M,)``.
    """

    frequencies: Tensor
    phases: Tensor

    @classmethod
    def drawn(cls, dim: int, width: float, count: int = 12) -> Waves:
        """Makes fixed random directions with lengths from ``½/width`` to ``2/width``."""
        g = generator(derive(20_261, "waves", dim))
        directions = torch.randn(count, dim, generator=g, dtype=torch.float64)
        lengths = torch.linspace(0.5, 2.0, count, dtype=torch.float64) / width
        phases = 2.0 * math.pi * torch.rand(count, generator=g, dtype=torch.float64)
        return cls(lengths[:, None] * directions / directions.norm(dim=1, keepdim=True), phases)

    def __call__(self, x: Tensor) -> Tensor:
        """Computes the mean over the waves, shape ``(batch,)``."""
        return (x.double() @ self.frequencies.mT + self.phases).cos().mean(1)
