"""The posterior of a distribution under a linear observation with Gaussian noise, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian, GaussianMixture, Law, Samples
from sbridge.laws.moments import gaussian_components
from sbridge.random import Seed, generator


@dataclass(frozen=True, eq=False)
class Posterior:
    """The posterior ``X | y``, a mixture ``Σ_k w_k(y) N(μ_k(y), C_k)`` for every row of ``y``; in float64.

    Args:
        log_weights: ``log w_k``, shape ``(batch, K)``.
        means: ``μ_k``, shape ``(batch | 1, K, dim)``.
        covariances: ``C_k``, shape ``(K | 1, dim, dim)``; zeros if the prior distribution is a set of points.
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        """``E[X | y]``, shape ``(batch, dim)``."""
        return torch.einsum("bk,bkd->bd", self.log_weights.exp(), self.means.expand(len(self.log_weights), -1, -1))

    def draw(self, seed: Seed) -> Tensor:
        """Draws one ``X`` for each row of ``y``."""
        g, rows = generator(seed, self.means.device), len(self.log_weights)
        which = torch.multinomial(self.log_weights.exp(), 1, generator=g).squeeze(1)
        every = torch.arange(rows, device=which.device)
        means = self.means.expand(rows, -1, -1)[every, which]
        noise = torch.randn(means.shape, generator=g, dtype=means.dtype, device=means.device)
        roots = self._roots.expand(self.means.shape[1], -1, -1)[which]
        return means + (roots @ noise.unsqueeze(-1)).squeeze(-1)

    def law(self, row: int = 0, coordinates: Tensor | None = None) -> Law:
        """Returns ``X | y`` for one row of ``y``, for some coordinates of ``X`` (all by default).

        Raises:
            InvalidInputError: if the distribution has no density there, as for coordinates that were observed without
                noise.
        """
        weights, means = self.log_weights[row].exp(), self.means.expand(len(self.log_weights), -1, -1)[row]
        kept = torch.arange(means.shape[1], device="cpu") if coordinates is None else coordinates
        means, covariances = means[:, kept], self.covariances[:, kept][:, :, kept]
        if not bool(covariances.any()):
            return Samples(means, weights)
        if len(weights) == 1:
            return Gaussian(means[0], covariances[0])
        return GaussianMixture(weights, means, covariances.expand(len(weights), -1, -1))

    @cached_property
    def _roots(self) -> Tensor:
        values, vectors = torch.linalg.eigh(self.covariances)
        return vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)


def posterior(law: Law, matrix: Tensor, noise: Tensor, y: Tensor) -> Posterior:
    """Computes ``X | y`` for ``X ~ law`` and ``y = A X + η``, ``η ~ N(0, R)``.

    Per component ``N(μ, Σ)``: gain ``G = ΣAᵀ(AΣAᵀ + R)⁻¹``, mean ``μ + G(y − Aμ)``, covariance
    ``(I − GA) Σ (I − GA)ᵀ + G R Gᵀ``, weight ``∝ w N(y; Aμ, AΣAᵀ + R)``.

    Args:
        law: Gaussian, GaussianMixture or Samples.
        matrix: ``A``, shape ``(m, dim)``.
        noise: ``R``, shape ``(m, m)``; it may be zero where ``AΣAᵀ`` is not singular.
        y: observations, shape ``(batch, m)``.

    Raises:
        UnsupportedError: for another distribution.
        InvalidInputError: for shapes that do not fit, or ``AΣAᵀ + R`` singular.
    """
    log_weights, means, covariances = _parts(law, y)
    matrix, noise, precise = (one.to(means) for one in (matrix, noise, y))
    m, dim = matrix.shape
    if dim != law.dim or noise.shape != (m, m) or y.ndim != 2 or y.shape[1] != m:
        raise InvalidInputError(
            f"an observation of a distribution in {law.dim} dimensions needs a matrix (m, {law.dim}), noise (m, m) and "
            f"rows (batch, m), got {tuple(matrix.shape)}, {tuple(noise.shape)} and {tuple(y.shape)}."
        )
    spread = matrix @ covariances @ matrix.mT + noise
    root, failed = torch.linalg.cholesky_ex(spread)
    if bool(failed.any()):
        raise InvalidInputError("the observation has no density: add noise, or drop coordinates that repeat others.")
    gain = torch.cholesky_solve(matrix @ covariances, root).mT
    residual = precise.unsqueeze(1) - means @ matrix.mT
    white = torch.linalg.solve_triangular(root, residual.unsqueeze(-1), upper=False).squeeze(-1)
    log_scale = root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * m * math.log(2.0 * math.pi)
    exponents = log_weights - 0.5 * white.square().sum(-1) - log_scale
    kept = torch.eye(dim, device="cpu").to(gain) - gain @ matrix
    after = kept @ covariances @ kept.mT + gain @ noise @ gain.mT
    moved = means + (gain @ residual.unsqueeze(-1)).squeeze(-1) if bool(covariances.any()) else means.unsqueeze(0)
    return Posterior(torch.log_softmax(exponents, 1), moved, 0.5 * (after + after.mT))


def _parts(law: Law, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log weights ``(K,)``, means ``(K, dim)`` and covariances ``(K | 1, dim, dim)``."""
    if isinstance(law, (Gaussian, GaussianMixture)):
        weights, *shapes = gaussian_components(law)
        parts = weights.log(), *shapes
    elif isinstance(law, Samples):
        count = len(law.rows)
        weights = law.rows.new_full((count,), 1.0 / count) if law.weights is None else law.weights
        parts = weights.log(), law.rows, law.rows.new_zeros(1, law.dim, law.dim)
    else:
        raise UnsupportedError(
            f"a posterior in closed form needs Samples, a Gaussian or a GaussianMixture, got {type(law).__name__}."
        )
    return tuple(one.to(like.device, torch.float64) for one in parts)  # type: ignore[return-value]


def noise_and_average(rows: Tensor, x: Tensor, noise_std: float) -> Tensor:
    """Computes the mean displacement ``E[x_0 − x | x_0 + v z = x]`` of data that noise of size ``v`` moves to ``x``.

    Each row counts with the probability that its noise leads to ``x``. For the empirical distribution of the rows the
    result is ``v² ∇log ρ(x)``, with ``ρ`` the density of the noised rows: the average flux is the score (eq. (4.20)).

    Args:
        rows: data, shape ``(n, dim)``.
        x: where the flux is wanted, shape ``(batch, dim)``.
        noise_std: ``v > 0``.

    Returns:
        Shape ``(batch, dim)``.

    Raises:
        InvalidInputError: for another number of columns, or noise that is not positive.

    Source: Premkumar 2023, §4.3; Efron 2011.
    """
    if rows.ndim != 2 or x.ndim != 2 or rows.shape[1] != x.shape[1] or not noise_std > 0.0:
        raise InvalidInputError(
            f"rows (n, dim), x (batch, dim) and positive noise are needed, got shapes {tuple(rows.shape)}, "
            f"{tuple(x.shape)} and noise_std = {noise_std:g}."
        )
    squares = torch.cdist(x, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.softmax(-0.5 * squares / noise_std**2, 1) @ rows - x
