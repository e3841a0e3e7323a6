"""Optimal-transport maps fitted to two samples and applicable to new rows: the baselines of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.laws.scaling import common_units
from sbridge.storage.registry import register
from sbridge.transport.cloud import Cloud
from sbridge.transport.plans import check_pair, exact_plan
from sbridge.transport.sinkhorn import EntropicProblem, Sinkhorn, sinkhorn


@register
@dataclass(frozen=True, eq=False)
class NearestRowMap:
    """The piecewise constant map ``T(x) = images_i`` with ``i`` the source row nearest to ``x``.

    Args:
        rows: source rows ``(n, dim)``.
        images: the image of each source row, ``(n, dim)``.
    """

    rows: Tensor
    images: Tensor
    holds_training_rows: ClassVar[bool] = True

    def __call__(self, x: Tensor) -> Tensor:
        """Returns images of ``x``, shape ``(k, dim)``; a source row goes to its own image."""
        return self.images.to(x)[nearest_rows(x, self.rows)]


@register
@dataclass(frozen=True, eq=False)
class BarycentricMap:
    """The map ``T(x) = E[y | x] = Σ_j w_j(x) y_j`` under the entropic plan, extended to any ``x`` by its potential.

    Conditional means have a smaller variance than the target, so the image of the source is too narrow.

    Args:
        cloud: target rows with logits ``g/ε + log b``.
        epsilon: ε.
    """

    cloud: Cloud
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Returns images of ``x``, shape ``(k, dim)``."""
        return self.cloud.mean(x, self.epsilon)


@register
@dataclass(frozen=True, eq=False)
class AffineMap:
    """The affine map ``T(x) = M x + shift``; ``matrix`` ``(dim, dim)``, ``shift`` ``(dim,)``, float64."""

    matrix: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Returns images of ``x``, shape ``(k, dim)``."""
        return (x.double() @ self.matrix.to(x.device).mT + self.shift.to(x.device)).to(x.dtype)


def exact_map(x0: Tensor, x1: Tensor) -> NearestRowMap:
    """Computes the exact plan from ``x0`` to ``x1`` as a map: a source row goes to the barycentre of its targets.

    With as many rows on both sides that is an assignment. A new row takes the image of the nearest source
    row, so the map is piecewise constant. Cost and errors of :func:`~sbridge.transport.exact_plan`.
    """
    return exact_maps(x0, x1)[0]


def exact_maps(x0: Tensor, x1: Tensor) -> tuple[NearestRowMap, NearestRowMap]:
    """Computes :func:`exact_map` from ``x0`` to ``x1`` and from ``x1`` to ``x0``, from one plan."""
    plan = exact_plan(x0, x1)
    there = NearestRowMap(x0, (plan @ x1) / plan.sum(1, keepdim=True))
    return there, NearestRowMap(x1, (plan.mT @ x0) / plan.sum(0).unsqueeze(1))


def entropic_map(x0: Tensor, x1: Tensor, epsilon: float, options: Sinkhorn | None = None) -> BarycentricMap:
    """Computes the barycentric map of the entropic plan from ``x0`` to ``x1`` (Pooladian & Niles-Weed 2021).

    Raises:
        NotConvergedError: if Sinkhorn does not meet its tolerance.
    """
    return entropic_maps(x0, x1, epsilon, options)[0]


def entropic_maps(
    x0: Tensor, x1: Tensor, epsilon: float, options: Sinkhorn | None = None
) -> tuple[BarycentricMap, BarycentricMap]:
    """Computes :func:`entropic_map` from ``x0`` to ``x1`` and from ``x1`` to ``x0``, from one plan."""
    found = sinkhorn(EntropicProblem(x0, x1, epsilon), options)
    return BarycentricMap(found.forward, epsilon), BarycentricMap(found.backward, epsilon)


def gaussian_map(x0: Tensor, x1: Tensor) -> AffineMap:
    """Computes the optimal map between the Gaussians with the moments of ``x0`` and ``x1`` (Knott & Smith 1984).

    ``T(x) = m_1 + M(x − m_0)``, ``M = A^{−½}(A^½BA^½)^½A^{−½}``, ``A`` and ``B`` the sample covariances.

    Raises:
        InvalidInputError: if the covariance of ``x0`` is singular.
    """
    check_pair(x0, x1)
    if len(x0) < 2 or len(x1) < 2:
        raise InvalidInputError(f"a covariance needs at least two rows, got {len(x0)} and {len(x1)}.")
    x, y, _ = common_units(x0, x1)
    source, target = _covariance(x), _covariance(y)
    spectrum = torch.linalg.eigvalsh(source)
    if float(spectrum[0]) <= 1e-12 * float(spectrum[-1]):
        raise InvalidInputError(
            f"the covariance of the {len(x0)} source rows in {x0.shape[1]} dimensions is singular, so there is no "
            "Gaussian map: drop constant or dependent columns, or use more rows than columns."
        )
    import ot  # takes seconds, with scikit-learn and pandas: not before it is needed

    matrix, _ = ot.gaussian.bures_wasserstein_mapping(x.mean(0), y.mean(0), source, target)  # type: ignore[assignment]
    return AffineMap(matrix, x1.double().mean(0) - matrix @ x0.double().mean(0))


def nearest_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Returns the index of the row nearest to each row of ``x``; int64, shape ``(k,)``. Blocks of 4 MB."""
    check_pair(x, rows)
    points, others, _ = common_units(x, rows)
    half_norms = 0.5 * others.square().sum(1)
    size = max(1, 2**19 // len(rows))
    return torch.cat([torch.addmm(-half_norms, part, others.mT).argmax(1) for part in points.split(size)])


def _covariance(rows: Tensor) -> Tensor:
    return torch.cov(rows.mT).reshape(rows.shape[1], rows.shape[1])
