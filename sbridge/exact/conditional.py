"""Gaussian mixtures, one per row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.linear import LinearMap


@dataclass(frozen=True, eq=False)
class ConditionalMixture:
    """One Gaussian mixture for each of ``n`` rows.

    Args:
        logits: logarithms of the weights, up to a constant per row, ``(n, K)``.
        means: ``(n, K, dim)``.
        covariances: ``(1 | n, K, dim)`` (diagonals) or ``(1 | n, K, dim, dim)``.
        dtype: of results; the numbers themselves are float64.
    """

    logits: Tensor
    means: Tensor
    covariances: Tensor
    dtype: torch.dtype

    @property
    def weights(self) -> Tensor:
        """Returns the weights ``(n, K)``, rows with sum 1, float64."""
        return torch.softmax(self.logits, 1)

    def mean(self) -> Tensor:
        """Returns the means ``(n, dim)``."""
        return torch.einsum("nk,nkd->nd", self.weights, self.means).to(self.dtype)

    def covariance(self) -> Tensor:
        """Returns the covariances ``(n, dim, dim)``: within the components and between them."""
        weights = self.weights
        centred = self.means - torch.einsum("nk,nkd->nd", weights, self.means).unsqueeze(1)
        full = self.covariances if self._dense else torch.diag_embed(self.covariances)
        within = torch.einsum("nk,nkde->nde", weights, full.expand(len(weights), *full.shape[1:]))
        return (within + torch.einsum("nk,nkd,nke->nde", weights, centred, centred)).to(self.dtype)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draws once per row, ``(n, dim)``: a component by one uniform number, then a point by one normal vector."""
        device = self.means.device
        uniform = torch.rand(len(self.means), 1, dtype=torch.float64, generator=generator, device=generator.device)
        noise = torch.randn(
            len(self.means), self.means.shape[2], dtype=torch.float64, generator=generator, device=generator.device
        ).to(device)
        cumulative = self.weights.cumsum(1)
        which = torch.searchsorted(cumulative, uniform.to(device) * cumulative[:, -1:], right=True)[:, 0]
        which = which.clamp_(max=self.means.shape[1] - 1)
        drawn = self.means[torch.arange(len(which), device=device), which]
        if len(self.covariances) > 1:
            own = LinearMap(self.covariances[torch.arange(len(which), device=device), which], self._dense)
            return (drawn + own.cholesky()(noise)).to(self.dtype)
        for k, root in enumerate(LinearMap(self.covariances[0], self._dense).cholesky().unbind()):
            drawn[which == k] += root(noise[which == k])  # one matrix a component, not one a row
        return drawn.to(self.dtype)

    def log_density(self, y: Tensor) -> Tensor:
        """Computes the log density of row ``i``'s mixture at ``y_i``, shape ``(n,)``."""
        root = LinearMap(self.covariances, self._dense).cholesky()
        gaps = y.to(self.means).unsqueeze(1) - self.means
        white = (root.inverse().values @ gaps.unsqueeze(-1)).squeeze(-1) if self._dense else gaps / root.values
        dim = self.means.shape[2]
        volume = root.log_abs_det(dim) + 0.5 * dim * math.log(2.0 * math.pi)
        exponents = torch.log_softmax(self.logits, 1) - 0.5 * white.square().sum(-1) - volume
        return torch.logsumexp(exponents, 1).to(self.dtype)

    @property
    def _dense(self) -> bool:
        return self.covariances.ndim == 4
