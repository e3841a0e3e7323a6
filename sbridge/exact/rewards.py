"""Gaussian mixtures tilted by the exponential of a quadratic reward, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian, GaussianMixture, Law
from sbridge.laws.moments import gaussian_components
from sbridge.problems import Quadratic


@dataclass(frozen=True)
class TiltedLaw:
    """The distribution ``p e^r / Z``.

    Attributes:
        law: of the kind of ``p``, in float64.
        log_normaliser: ``log Z = log E_p e^r``.
    """

    law: Gaussian | GaussianMixture
    log_normaliser: float


def tilted_law(data: Law, reward: Quadratic) -> TiltedLaw:
    """Computes ``p e^r / Z`` for a Gaussian or a Gaussian mixture ``p`` and a quadratic reward ``r``.

    With ``r(x) = c·x − ½xᵀDx + const`` every component ``w N(m, S)`` becomes ``N(m', S')``, weight ``w'``::

        S' = (S⁻¹ + D)⁻¹,   m' = S'(S⁻¹m + c),   w' ∝ w (|S'|/|S|)^½ exp ½(m'ᵀS'⁻¹m' − mᵀS⁻¹m)

    It is the exact answer of :func:`sbridge.tilt`, and the posterior of a linear observation for its
    :meth:`~sbridge.diffusion.LinearObservation.log_likelihood`.

    Raises:
        UnsupportedError: for another distribution.
        InvalidInputError: if the dimensions differ, or ``Z`` is infinite: ``S⁻¹ + D`` is not positive definite.
    """
    if not isinstance(data, (Gaussian, GaussianMixture)):
        raise UnsupportedError(
            f"a tilted distribution in closed form needs a Gaussian or a GaussianMixture, got {type(data).__name__}."
        )
    if data.dim != reward.dim:
        raise InvalidInputError(f"the distribution has dimension {data.dim}, the reward {reward.dim}; they must agree.")
    weights, means, covariances = (part.double() for part in gaussian_components(data))
    linear = torch.zeros_like(means[0]) if reward.vector is None else reward.vector.double().to(means)
    precisions = torch.linalg.inv(covariances)
    root, failed = torch.linalg.cholesky_ex(precisions - 2.0 * reward.matrix.double().to(means))
    if bool(failed.any()):
        raise InvalidInputError(
            "the reward grows faster than the log density falls, so E e^r is infinite and no tilted distribution "
            "exists. Take a reward with less curvature."
        )
    after = torch.cholesky_inverse(root)
    pulled = (precisions @ means.unsqueeze(-1)).squeeze(-1) + linear
    moved = (after @ pulled.unsqueeze(-1)).squeeze(-1)
    gained = (moved * pulled).sum(1) - (means * (pulled - linear)).sum(1)
    exponents = weights.log() + 0.5 * (torch.logdet(after) - torch.logdet(covariances) + gained)
    total = float(torch.logsumexp(exponents, 0)) + reward.constant
    if isinstance(data, Gaussian):
        return TiltedLaw(Gaussian(moved[0], after[0]), total)
    return TiltedLaw(GaussianMixture(exponents.softmax(0), moved, after), total)
