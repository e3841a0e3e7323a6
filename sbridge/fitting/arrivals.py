"""Checks whether a fitted bridge transports the samples of either end to the distribution of the other."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import MarginalWarning, SbridgeError
from sbridge.fitting.data_checks import noise_level
from sbridge.laws import Density, Law, Samples
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeProblem
from sbridge.random import derive, generator
from sbridge.solutions import Bridge

STANDARD_ERRORS = 6.0
"""Number of standard errors beyond which a deviation is reported, if it is material too."""
MEAN, COVARIANCE, SHARE = 0.1, 0.25, 0.05
"""Material deviations: of a mean in standard deviations of the column, of a covariance in products of two of them (of a
variance: a quarter of it), of the share of a value."""
_MOST, _LEAST, _DRAWN = 10_000, 500, 4096
_PAIRS = 4 * 10**7  # of rows transported and rows of the other end, which a plug-in direction compares
_LEVELS, _SHOWN = 10, 3


@dataclass(frozen=True)
class Miss:
    """A statistic of an end that transport does not reproduce.

    Attributes:
        what: name of the statistic, such as ``"mean of column 0"``.
        wanted: its value at the end.
        arrived: its value after transport.
        error: the standard error of the difference.
        size: the difference divided by its threshold.
    """

    what: str
    wanted: float
    arrived: float
    error: float
    size: float

    def __str__(self) -> str:
        errors = abs(self.arrived - self.wanted) / self.error if self.error > 0.0 else float("inf")
        return f"{self.what}: {self.arrived:.4g} instead of {self.wanted:.4g} ({errors:.3g} standard errors)"


def warn_if_missed(bridge: Bridge, problem: BridgeProblem, seed: int) -> None:
    """Transports the samples of each end and warns if means, covariances or shares of the other end do not arrive.

    It also warns if a direction cannot be simulated, for example on a grid that is too coarse.

    At most 10 000 samples are transported, fewer if the ends have more than 4000; 4096 draws of an end in closed form.
    An end that is only a density has no samples, and nothing is checked. Draws come from seeds derived from ``seed``.
    The thresholds are those of :func:`misses`.

    Args:
        bridge: fitted, in units of the data.
        problem: what it was fitted to.
        seed: of the fit.
    """
    ends = problem.source, problem.target
    if any(isinstance(end, Density) for end in ends):
        return
    largest = max(len(end.rows) if isinstance(end, Samples) else _DRAWN for end in ends)
    most = max(_LEAST, min(_MOST, _PAIRS // largest))
    rows = [_rows(end, derive(seed, "arrivals", name)) for name, end in zip(("x0", "x1"), ends, strict=True)]
    noise = noise_level(problem.reference, problem.dim)
    directions: tuple[tuple[PathMeasure, int], ...] = (bridge.forward, 0), (bridge.backward, 1)
    for measure, start in directions:
        names = ("x0", "x1") if start == 0 else ("x1", "x0")
        failure = f"the fit does not transport the samples of {names[0]} to {names[1]}"
        try:
            arrived = measure.transport(rows[start][:most], seed=derive(seed, "arrivals", start))
        except SbridgeError as error:  # the bridge is there, and its user may simulate it on a finer grid
            warnings.warn(f"{failure}: {error}", MarginalWarning, stacklevel=2)
            continue
        found = misses(arrived, rows[1 - start], noise)
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            warnings.warn(
                f"{failure}: {'; '.join(map(str, found[:_SHOWN]))}{more} ({len(arrived)} samples transported). Fit "
                "this direction for longer, or with another solver: SinkhornBridge() reproduces both samples.",
                MarginalWarning,
                stacklevel=2,
            )


def misses(arrived: Tensor, wanted: Tensor, noise: float) -> list[Miss]:
    """Returns the statistics of ``wanted`` that are not reproduced, the largest deviation first.

    The statistics are the mean of each column, all covariances, and, for a column of at most ten values, the fraction
    of samples nearest to each value. A difference is reported if it exceeds :data:`STANDARD_ERRORS` standard errors of
    both samples together, and also :data:`MEAN` standard deviations of the column, :data:`COVARIANCE` times the product
    of two standard deviations, or :data:`SHARE`. The second condition ignores small biases of networks that a large
    sample would detect; an evaluation measures them.

    Args:
        arrived: rows ``(n, dim)`` after transport.
        wanted: rows ``(m, dim)`` of the end.
        noise: ``σ√T``, which replaces the standard deviation of a column that is constant at the end.
    """
    a, w = arrived.double(), wanted.double()
    finite = a.isfinite().all(1)
    if not bool(finite.all()):
        return [Miss("share of finite samples", 1.0, float(finite.double().mean()), 0.0, float("inf"))]
    width = w.std(0, correction=0)
    width = torch.where(width > 1e-9 * w.abs().amax(0), width, noise)
    found = _missed_moments(a, w, width)
    for j in range(w.shape[1]):
        found += _missed_shares(a[:, j].contiguous(), w[:, j].contiguous(), j)
    return sorted(found, key=lambda one: -one.size)


def _missed_moments(a: Tensor, w: Tensor, width: Tensor) -> list[Miss]:
    means, centred = (a.mean(0), w.mean(0)), ((a - a.mean(0)) / width, (w - w.mean(0)) / width)
    errors = sum(one.square().mean(0) / len(one) for one in centred) ** 0.5
    gaps = (means[0] - means[1]) / width
    missed = (gaps.abs() > MEAN) & (gaps.abs() > STANDARD_ERRORS * errors)
    found = [
        Miss(
            f"mean of column {j}",
            float(means[1][j]),
            float(means[0][j]),
            float(errors[j] * width[j]),
            float(gaps[j].abs()) / MEAN,
        )
        for j in missed.nonzero().flatten().tolist()
    ]
    covariances = [one.mT @ one / len(one) for one in centred]
    fourths = [one.square().mT @ one.square() / len(one) for one in centred]
    variances = [(f - c.square()) / len(one) for f, c, one in zip(fourths, covariances, centred, strict=True)]
    errors = (variances[0] + variances[1]).clamp_min(0.0).sqrt()
    gaps = (covariances[0] - covariances[1]).abs().tril()
    for i, j in ((gaps > COVARIANCE) & (gaps > STANDARD_ERRORS * errors)).nonzero().tolist():
        unit = float(width[i] * width[j])
        wanted, arrived = (float(one[i, j]) * unit for one in reversed(covariances))
        what = f"variance of column {i}" if i == j else f"covariance of columns {j} and {i}"
        found.append(Miss(what, wanted, arrived, float(errors[i, j]) * unit, float(gaps[i, j]) / COVARIANCE))
    return found


def _missed_shares(a: Tensor, w: Tensor, j: int) -> list[Miss]:
    levels, counts = w.unique(return_counts=True)
    if not 1 < len(levels) <= _LEVELS:
        return []
    edges = 0.5 * (levels[1:] + levels[:-1])
    shares = torch.bincount(torch.bucketize(a, edges), minlength=len(levels)).double() / len(a), counts / len(w)
    found = []
    for level, arrived, wanted in zip(levels.tolist(), *(one.tolist() for one in shares), strict=True):
        error = sum(p * (1.0 - p) / n for p, n in ((arrived, len(a)), (wanted, len(w)))) ** 0.5
        gap = abs(arrived - wanted)
        if gap > SHARE and gap > STANDARD_ERRORS * error:
            found.append(Miss(f"share of {level:.6g} in column {j}", wanted, arrived, error, gap / SHARE))
    return found


def _rows(end: Law, seed: int) -> Tensor:
    """Returns rows of an end with equal weights and in random order."""
    if not isinstance(end, Samples):
        return end.sample(_DRAWN, generator(seed))
    if end.weights is not None:
        return end.sample(_MOST, generator(seed))
    order = torch.randperm(len(end.rows), generator=generator(seed), device="cpu")[:_MOST]
    return end.rows[order.to(end.rows.device)]
