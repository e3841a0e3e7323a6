"""A known control for tilting a reverse diffusion: that between Gaussian mixtures fitted to ends of the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.controls import Control, MirroredControl
from sbridge.controls.base import Time
from sbridge.diffusion.conversions import Score, ScoreControl
from sbridge.diffusion.exact import ExactScore
from sbridge.errors import InvalidInputError
from sbridge.laws import GaussianMixture
from sbridge.measures import Direction, PathMeasure
from sbridge.measures.generating import MeasureProcess
from sbridge.problems import ControlProblem
from sbridge.processes import LinearProcess, StepRule, rescale
from sbridge.random import generator
from sbridge.solvers.control import WarmStart
from sbridge.storage.registry import register
from sbridge.time import TimeGrid

_PATHS, _ROUNDS = 4096, 40


@register
@dataclass(frozen=True, eq=False)
class ScoreDifference:
    """The difference of two scores, ``s_1 − s_0``."""

    plus: Score
    minus: Score

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes it, shape ``(batch, dim)``."""
        return self.plus(t, x) - self.minus(t, x)


@register
@dataclass(frozen=True)
class MixtureStart(WarmStart):
    """From the control that tilts a Gaussian mixture, fitted to ends of the model, by the reward.

    A mixture ``q`` is fitted to 4096 ends of the model by expectation–maximisation. Its components with moments and
    shares under weights ``e^r`` make ``q'``, and the control is ``σᵀ(∇log q'_t − ∇log q_t)``, in closed form for a
    linear noising process. Parts of the data then have about the right shares before anything is learned; shares are
    what control learning finds last. Of other processes than reverse diffusions nothing is known, and learning begins
    from no control.

    Args:
        components: of the mixture.

    Raises:
        InvalidInputError: unless ``components`` is positive.
    """

    components: int = 8

    def __post_init__(self) -> None:
        if self.components < 1:
            raise InvalidInputError(f"components must be positive, got {self.components}.")

    def control(self, problem: ControlProblem, grid: TimeGrid, rule: StepRule) -> Control | None:
        """The control, or ``None`` for a problem of other kind than those of :func:`sbridge.tilt`."""
        process = problem.process
        if not isinstance(process, MeasureProcess) or process.measure.direction is not Direction.BACKWARD:
            return None
        noising = rescale(process.measure.process, process.scaling)
        if not isinstance(noising, LinearProcess):
            return None
        model = PathMeasure(process, None, problem.start, grid=grid, rule=rule)
        ends = model.transport(model.starts(_PATHS, seed=0), seed=0)
        weights = (-problem.costs.end(ends).detach().double()).softmax(0)
        plain, tilted = tilted_mixtures(ends.double(), weights, min(self.components, len(ends)))
        difference = ScoreDifference(ExactScore(noising, tilted), ExactScore(noising, plain))
        return MirroredControl(ScoreControl(noising, difference), noising.horizon)


def tilted_mixtures(rows: Tensor, weights: Tensor, count: int) -> tuple[GaussianMixture, GaussianMixture]:
    """Fits ``count`` Gaussians to ``rows`` by expectation–maximisation, and moves them by ``weights``.

    Covariances are shrunk towards that of all rows, and moments under weights towards those without, each by as many
    rows as there are columns and one.

    Args:
        rows: float64, shape ``(n, dim)``.
        weights: of the rows, with sum 1.
        count: of components.
    """
    n, dim = rows.shape
    least, whole = dim + 1.0, torch.cov(rows.mT).reshape(dim, dim)
    shares, means = rows.new_full((count,), 1.0 / count), rows[_spread_out(rows, count)]
    covariances = whole.expand(count, dim, dim) / count ** (2.0 / dim)
    for _ in range(_ROUNDS):
        belongs = _responsibilities(rows, shares, means, covariances)
        sizes = belongs.sum(0).clamp_min(1e-9)
        shares, means = sizes / n, belongs.mT @ rows / sizes.unsqueeze(1)
        covariances = _mixed(_scatter(rows, belongs / sizes, means), whole, sizes, least)
    belongs = _responsibilities(rows, shares, means, covariances)
    weighted = belongs * weights.unsqueeze(1)
    sizes = weighted.sum(0).clamp_min(1e-12)
    each = weighted / sizes
    effective = 1.0 / each.square().sum(0).clamp_min(1e-12)
    moved = _mixed(each.mT @ rows, means, effective, least)
    after = _mixed(_scatter(rows, each, moved), covariances, effective, least)
    return GaussianMixture(shares / shares.sum(), means, covariances), GaussianMixture(
        sizes / sizes.sum(), moved, after
    )


def _responsibilities(rows: Tensor, shares: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """The probabilities of the components given each row, shape ``(n, K)``."""
    roots = torch.linalg.cholesky(covariances)
    white = torch.linalg.solve_triangular(roots, (rows - means.unsqueeze(1)).mT, upper=False)
    log_scale = roots.diagonal(dim1=-2, dim2=-1).log().sum(1)
    return (shares.log() - log_scale - 0.5 * white.square().sum(1).mT).softmax(1)


def _scatter(rows: Tensor, weights: Tensor, means: Tensor) -> Tensor:
    """Covariances under weights ``(n, K)`` whose columns have sum 1, shape ``(K, dim, dim)``."""
    gaps = rows - means.unsqueeze(1)
    return (gaps * weights.mT.unsqueeze(2)).mT @ gaps


def _mixed(found: Tensor, prior: Tensor, rows: Tensor, least: float) -> Tensor:
    """``found`` of so many ``rows`` and ``prior`` of ``least``, component by component."""
    share = (rows / (rows + least)).reshape(-1, *[1] * (found.ndim - 1))
    return share * found + (1.0 - share) * prior


def _spread_out(rows: Tensor, count: int) -> list[int]:
    """Rows to begin with: the first, then each drawn by its squared distance from those before (k-means++)."""
    draws, chosen = generator(0), [0]
    nearest = (rows - rows[0]).square().sum(1)
    while len(chosen) < count:
        if float(nearest.sum()) <= 0.0:
            chosen.append(len(chosen))
            continue
        chosen.append(int(torch.multinomial(nearest.cpu(), 1, generator=draws)))
        nearest = torch.minimum(nearest, (rows - rows[chosen[-1]]).square().sum(1))
    return chosen
