"""Mean and covariance of distributions at the ends."""

from __future__ import annotations

from torch import Tensor

from sbridge.errors import UnsupportedError
from sbridge.laws.base import Gaussian, GaussianMixture, Law, Point, Samples


def moments(data: Law) -> tuple[Tensor, Tensor]:
    """Returns mean ``(dim,)`` and covariance ``(dim, dim)`` of a distribution given by points or Gaussians.

    Sums are computed in float64, because in float32 the mean of 10⁵ samples far from zero would have a rounding error.
    """
    if isinstance(data, Gaussian):
        return data.mean, data.covariance
    if isinstance(data, Point):
        return data.position, data.position.new_zeros(data.dim, data.dim)
    if isinstance(data, GaussianMixture):
        weights, rows, within = data.weights.double(), data.means, data.covariances.double()
    elif isinstance(data, Samples):
        rows = data.rows
        weights = data.rows.new_ones(len(rows)) if data.weights is None else data.weights
        weights = weights.double() / weights.double().sum()
        within = weights.new_zeros(1, data.dim, data.dim)
    else:
        raise UnsupportedError(f"a {type(data).__name__} has no known moments; draw Samples from it.")
    mean = weights @ rows.double()
    offsets = rows.double() - mean
    inside = (weights[: len(within), None, None] * within).sum(0) if len(within) == len(weights) else within[0]
    return mean.to(rows), (inside + (weights[:, None] * offsets).mT @ offsets).to(rows)
