"""Quadratic potentials that give the blocks of a Gaussian vector chosen covariances, as snapshots do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbridge.errors import NotConvergedError

_FACTOR = 4.0
_MOST_STEPS = 500
_NEAR = 0.05
_ACCEPTED = 1e-8
_WEAK = "The noise is so weak that positions at different times nearly determine each other: use a larger sigma."


def bend_to_unit_blocks(precision: Tensor, blocks: int) -> Tensor:
    """Finds symmetric ``A_i`` such that ``((Λ + diag(A_1, …, A_K))⁻¹)_ii = 1`` for every block, ``(K, d, d)``.

    Of all Gaussian vectors with these blocks it is the one closest to that of precision ``Λ``. The ``A_i`` maximise the
    concave function ``log det(Λ + diag(A)) − Σ tr A_i``. Proportional scaling maximises it block by block, and is slow
    where the blocks nearly determine each other. Here all blocks take Newton steps together. With ``τΛ`` for ``Λ`` and
    ``A = τB``, the function is the barrier function of the semidefinite programme ``min Σ tr B_i, Λ + diag(B) ⪰ 0``;
    its central path is followed from a small ``τ`` to ``τ = 1`` (Boyd & Vandenberghe 2004, §11.6).

    Args:
        precision: ``Λ``, positive semidefinite, ``(K d, K d)``.
        blocks: ``K``.

    Raises:
        NotConvergedError: if the blocks are not reached to 1e-8.
    """
    size = len(precision) // blocks
    bend = torch.eye(size, dtype=torch.float64, device="cpu").expand(blocks, size, size).clone()
    share = min(1.0, 1.0 / max(float(torch.linalg.matrix_norm(precision, 2)), 1e-300))
    while share < 1.0:
        bend, _ = _maximised(share * precision, bend, closely=False)
        before, share = share, min(1.0, _FACTOR * share)
        bend = share / before * bend
    bend, error = _maximised(precision, bend, closely=True)
    if error > _ACCEPTED:
        raise NotConvergedError(
            f"the potentials of the snapshots did not converge: covariances are off by {error:.1e}, relatively. {_WEAK}"
        )
    return bend


def _maximised(precision: Tensor, bend: Tensor, *, closely: bool) -> tuple[Tensor, float]:
    """Takes Newton steps, halved until the function grows; returns the best ``A`` and its largest error."""
    blocks, size, _ = bend.shape
    best, found = math.inf, bend
    for _ in range(_MOST_STEPS):
        root, failed = torch.linalg.cholesky_ex(precision + torch.block_diag(*bend))
        if int(failed):
            raise NotConvergedError(f"the potentials of the snapshots did not converge. {_WEAK}")
        covariance = torch.cholesky_inverse(root).reshape(blocks, size, blocks, size)
        excess = torch.stack([covariance[i, :, i] for i in range(blocks)]) - torch.eye(
            size, dtype=torch.float64, device="cpu"
        )
        error = float(excess.abs().max())
        step = _newton_step(covariance, excess)
        slope = float((step * excess).sum())
        near = slope < _NEAR  # where plain Newton steps converge quadratically, until rounding ends it
        if near and (error >= best or not closely):
            break
        best, found = error, bend
        if not near:
            here = _value(precision, bend)
            while _value(precision, bend + step) < here + 0.1 * slope:
                step, slope = 0.5 * step, 0.5 * slope
        bend = bend + step
    return (found, best) if closely else (bend, best)


def _value(precision: Tensor, bend: Tensor) -> float:
    """``log det(Λ + diag(A)) − Σ tr A_i``; ``−∞`` if the matrix is not positive definite."""
    root, failed = torch.linalg.cholesky_ex(precision + torch.block_diag(*bend))
    if int(failed):
        return -math.inf
    return float(2.0 * root.diagonal().log().sum() - bend.diagonal(dim1=1, dim2=2).sum())


def _newton_step(covariance: Tensor, excess: Tensor) -> Tensor:
    """Solves ``Σ_j Σ_ij B_j Σ_ji = excess_i`` for symmetric ``B_j`` by conjugate gradients."""

    def curvature(b: Tensor) -> Tensor:
        return torch.einsum("iajb,jbc,idjc->iad", covariance, b, covariance)

    step, left = torch.zeros_like(excess), excess
    way, square = left, left.square().sum()
    goal = 1e-24 * square
    for _ in range(2 * excess.numel()):
        if not bool(square > goal):
            break
        curved = curvature(way)
        length = square / (way * curved).sum()
        step, left = step + length * way, left - length * curved
        before, square = square, left.square().sum()
        way = left + square / before * way
    return 0.5 * (step + step.mT)
