"""Conditional and marginal Bures–Wasserstein errors of a plan whose conditional moments are known."""

from __future__ import annotations

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.laws.arrays import check_rows
from sbridge.measures import PathMeasure
from sbridge.metrics import bures_squared, covariance
from sbridge.random import Seed, as_seed, derive

_NUMBERS = 2**22  # draws × dim that are held at a time


def conditional_uvp(
    measure: PathMeasure, x: Tensor, moments: tuple[Tensor, Tensor], variance: float, *, seed: Seed, draws: int = 1000
) -> Tensor:
    """Computes ``100 · BW²(N̂_x, N_x) / (½ tr Var)`` in percent for each row of ``x``; its mean is cBW²-UVP.

    ``N̂_x`` has the sample moments of ``draws`` far ends of ``measure`` given ``x``, ``N_x`` the exact ones (Gushchin
    et al. 2023, arXiv:2306.10161). The floor is the value of the exact measure with the same seed.

    Args:
        measure: drawn from by ``transport``.
        x: near ends, ``(n, dim)``.
        moments: exact conditional means ``(n, dim)`` and covariances ``(n, dim, dim)``.
        variance: ``tr Var`` of the far end, unconditionally.
        seed: of the draws; one seed is the same noise for measures that draw in the same manner.
        draws: far ends drawn for each row.

    Raises:
        InvalidInputError: for shapes that do not fit, fewer than two draws, or a variance that is not positive.
    """
    check_rows(x, "x", least=1)
    (n, dim), (means, covariances) = x.shape, moments
    if means.shape != (n, dim) or covariances.shape != (n, dim, dim):
        raise InvalidInputError(
            f"{n} rows of {dim} columns need {n} conditional means and covariances, got {tuple(means.shape)} and "
            f"{tuple(covariances.shape)}."
        )
    if draws < 2 or not variance > 0:
        raise InvalidInputError(f"at least two draws and a positive variance are needed, got {draws} and {variance:g}.")
    seed, size, found = as_seed(seed), max(1, _NUMBERS // (draws * dim)), []
    for block, start in enumerate(range(0, n, size)):
        rows = x[start : start + size]
        far = measure.transport(rows.repeat_interleave(draws, 0), seed=derive(seed, block)).double()
        for i, ends in enumerate(far.reshape(len(rows), draws, dim), start):
            found.append(bures_squared(ends.mean(0), means[i], covariance(ends), covariances[i]))
    return torch.tensor(found, dtype=torch.float64) * (200.0 / variance)


def marginal_uvp(y: Tensor, mean: Tensor, target: Tensor) -> float:
    """Computes ``BW²-UVP = 100 · BW²(N̂_y, N) / (½ tr Var)`` in percent for rows ``y``, from their exact moments.

    Args:
        y: rows, ``(n, dim)``, at least two.
        mean: ``(dim,)``.
        target: covariance, ``(dim, dim)``.
    """
    check_rows(y, "y")
    return 200.0 * bures_squared(y.double().mean(0), mean, covariance(y), target) / float(target.trace())
