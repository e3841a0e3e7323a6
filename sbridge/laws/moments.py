"""Mean and covariance of distributions and of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from sbridge.errors import UnsupportedError
from sbridge.laws.base import Gaussian, GaussianMixture, Law, Point, Samples
from sbridge.laws.stored import StoredRows

_LEAST_CORRELATION = 2e-12


def moments(data: Law) -> tuple[Tensor, Tensor]:
    """Returns mean ``(dim,)`` and covariance ``(dim, dim)`` of a distribution given by points or Gaussians."""
    if isinstance(data, Gaussian):
        return data.mean, data.covariance
    if isinstance(data, StoredRows):
        (mean, covariance), like = data.moments, data.like
        return mean.to(like), covariance.to(like)
    if isinstance(data, Point):
        return data.position, data.position.new_zeros(data.dim, data.dim)
    if isinstance(data, Samples):
        mean, covariance = sample_moments(data.rows, data.weights, correction=0)
        return mean.to(data.rows), covariance.to(data.rows)
    if not isinstance(data, GaussianMixture):
        raise UnsupportedError(f"a {type(data).__name__} has no known moments; draw Samples from it.")
    mean, between = sample_moments(data.means, data.weights, correction=0)
    within = (data.weights[:, None, None].double() * data.covariances.double()).sum(0)
    return mean.to(data.means), (within + between).to(data.means)


def gaussian_components(law: Gaussian | GaussianMixture) -> tuple[Tensor, Tensor, Tensor]:
    """Weights ``(K,)``, means ``(K, dim)`` and covariances ``(K, dim, dim)``; a Gaussian is a mixture of one."""
    if isinstance(law, Gaussian):
        return law.mean.new_ones(1), law.mean[None], law.covariance[None]
    return law.weights, law.means, law.covariances


def sample_moments(rows: Tensor, weights: Tensor | None = None, *, correction: int = 1) -> tuple[Tensor, Tensor]:
    """Mean ``(dim,)`` and covariance ``(dim, dim)`` of rows ``(n, dim)`` with optional weights, in float64.

    In float32 the mean of 10⁵ rows far from zero would have a rounding error. ``correction=1`` makes the covariance
    unbiased, ``correction=0`` is that of the empirical distribution.
    """
    precise, dim = rows.double(), rows.shape[1]
    if weights is None:
        return precise.mean(0), precise.mT.cov(correction=correction).reshape(dim, dim)
    weights = weights.to(precise) / weights.double().sum()
    return weights @ precise, precise.mT.cov(correction=correction, aweights=weights).reshape(dim, dim)


def span_fewer(rows: Tensor) -> bool:
    """Whether rows ``(n, dim)`` span fewer dimensions than they have columns, to rounding: :func:`is_singular`."""
    return is_singular(*sample_moments(rows))


def is_singular(mean: Tensor, covariance: Tensor) -> bool:
    """Whether a column is constant, or the correlations have an eigenvalue 0, to rounding.

    A Cholesky root is not a sufficient test: because of rounding, half of the singular covariances have one. And a
    condition number of 10¹² leaves so few digits of the closed form that the order of the rows would change it by
    several per cent.
    """
    deviations, rounding = covariance.diagonal().sqrt(), 10 * torch.finfo(covariance.dtype).eps
    if not bool((deviations > rounding * mean.abs()).all()):
        return True
    smallest = torch.linalg.eigvalsh(covariance / deviations / deviations.unsqueeze(1))[0]
    return float(smallest) <= max(rounding, _LEAST_CORRELATION) * len(covariance)
