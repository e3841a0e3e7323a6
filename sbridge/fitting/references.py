"""Linear reference processes learned from the snapshots of a time course."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from sbridge.data.snapshots import Times
from sbridge.display import short_repr
from sbridge.errors import IdentifiabilityWarning, InvalidInputError, shown
from sbridge.exact.references import LinearDrift, Snapshots
from sbridge.fitting.courses import checked_snapshots
from sbridge.fitting.fit import End
from sbridge.laws import Law, Samples, as_law, check_same_space, moments
from sbridge.laws.moments import is_singular
from sbridge.modes import standard_modes
from sbridge.processes import LinearProcess
from sbridge.random import Seed, as_seed, derive, generator

_FLAT = 1e-6  # of the curvature that whole paths would give
_UNCLEAR = 0.5  # of the rate, or of one over the duration of the course
_EXACT, _TIGHT, _LOOSE = 1e-9, 1e-6, 1e-4  # tolerances: exact snapshots, samples, resamples of them


@dataclass(frozen=True, eq=False)
class LearnedReference:
    """A reference ``dX = −rate (X − mean) dt + σ dW``, the best of its kind for the snapshots of a course.

    It is a function ``(x0, x1, duration) → process``, so it can be passed on: ``fit_course(…, reference=learned)``.

    Attributes:
        rate: ``(dim, dim)``, per unit of time; in general neither symmetric nor positive.
        mean: the fixed point, ``(dim,)``.
        sigma: σ, in units of the data per root of the time unit.
        divergences: ``min_P KL(P ‖ R)`` in nats, the sum over legs, between Gaussians with the moments of the
            snapshots: of Brownian motion, after each round, and at the end. It never rises.
        rate_draws: the rate for each resample of the rows, ``(resamples, dim, dim)``; empty for none.
        mean_draws: the same for the mean, ``(resamples, dim)``.
        sigma_draws: the same for σ, ``(resamples,)``; all equal if σ was given.
    """

    rate: Tensor
    mean: Tensor
    sigma: float
    divergences: tuple[float, ...]
    rate_draws: Tensor = field(repr=False)
    mean_draws: Tensor = field(repr=False)
    sigma_draws: Tensor = field(repr=False)

    __repr__ = short_repr

    def __call__(self, x0: object, x1: object, duration: float) -> LinearProcess:
        """Returns the process over a leg; the data ``x0`` and ``x1`` are not used."""
        return self.process(duration)

    def process(self, horizon: float) -> LinearProcess:
        """Returns the process over ``[0, horizon]``."""
        return LinearDrift(-self.rate, self.rate @ self.mean, self.sigma).process(horizon)

    def corrected(self) -> LearnedReference:
        """Returns twice the estimate minus the mean of the resamples: without most of the bias of finite snapshots.

        The noise in the moments of snapshots can only be explained by a larger σ, which therefore comes out too large
        by about its standard error. The divergences and the resamples stay as they are.

        Raises:
            InvalidInputError: without resamples, or if σ would not be positive, which means too few rows.
        """
        if not len(self.sigma_draws):
            raise InvalidInputError(
                "the correction needs resamples of rows: learn_reference(…, resamples=20). Exact snapshots need none."
            )
        if 2.0 * self.sigma <= float(self.sigma_draws.mean()):
            raise InvalidInputError("σ would not be positive: the snapshots have too few rows for a correction.")
        rate, mean = 2.0 * self.rate - self.rate_draws.mean(0), 2.0 * self.mean - self.mean_draws.mean(0)
        return replace(self, rate=rate, mean=mean, sigma=2.0 * self.sigma - float(self.sigma_draws.mean()))

    @cached_property
    def rate_error(self) -> Tensor:
        """The standard error of every entry of the rate, ``(dim, dim)``: the spread over resamples; NaN for none."""
        return _spread(self.rate_draws)

    @cached_property
    def mean_error(self) -> Tensor:
        """The standard error of the fixed point, ``(dim,)``."""
        return _spread(self.mean_draws)

    @cached_property
    def sigma_error(self) -> float:
        """The standard error of σ; 0 if it was given."""
        return float(_spread(self.sigma_draws))


@standard_modes(gradients=False)
def learn_reference(
    arrays: Sequence[End] | Tensor | np.ndarray,
    times: Times,
    *,
    sigma: float | None = None,
    rounds: int = 200,
    resamples: int = 20,
    seed: Seed = 0,
) -> LearnedReference:
    """Learns the linear reference whose bridges through the snapshots cost least: ``min_θ min_P KL(P ‖ R_θ)``.

    Each round makes the bridge of every leg under the reference, in closed form between Gaussians with the means and
    covariances of the snapshots, then regresses its drift on ``A x + c`` along whole paths. The divergence falls in
    every round. σ cannot be learned by that regression, since paths with different σ exclude each other; it minimises
    the same divergence, as the transition density of the plan sees it. The snapshots of an Ornstein–Uhlenbeck process
    that starts away from equilibrium give back its rate, also an asymmetric one, its mean and σ. Two snapshots do not,
    and neither does a process in equilibrium: see the warning. Related: Shen, Berlinghieri & Broderick 2024
    (arXiv:2408.06277), Guan et al. 2024 (arXiv:2410.22729).

    Args:
        arrays, times: as in :func:`fit_course`; at least three snapshots. Distributions with known moments are exact
            snapshots, without resamples.
        sigma: in units of the data per root of the time unit; ``None``: learned.
        rounds: the largest number of rounds.
        resamples: how many times rows are drawn anew, with replacement within each snapshot, for standard errors.
        seed: of the resamples.

    Raises:
        InvalidInputError: for what :func:`fit_course` refuses, fewer than three snapshots, snapshots with too few rows
            for a covariance of full rank, or a reference without a fixed point.

    Warns:
        IdentifiabilityWarning: if the snapshots do not determine the rate: some direction of the parameters does not
            change the divergence, or resamples change the rate by as much as its size.

    Examples:
        >>> import torch
        >>> import sbridge as sb
        >>> process = sb.OrnsteinUhlenbeck(rate=torch.tensor([[1.0, 2.0], [-2.0, 1.0]]), sigma=0.5, horizon=2.0)
        >>> start, grid = sb.Gaussian(torch.tensor([3.0, 0.0]), torch.eye(2)), sb.TimeGrid.uniform(4)
        >>> paths = sb.PathMeasure(process, None, start, grid=grid).sample(2000, seed=0)
        >>> rows, times = list(paths.x), paths.t.tolist()
        >>> learned = sb.learn_reference(rows, times, sigma=0.5, resamples=3)
        >>> bool((learned.rate - process.rate).abs().max() < 0.1)
        True
        >>> course = sb.fit_course(rows, times, reference=learned)
    """
    laws, times = _checked(arrays, times)
    if sigma is not None and not (isinstance(sigma, Real) and 0.0 < float(sigma) < float("inf")):
        raise InvalidInputError(f"sigma must be a positive number or None, got {shown(sigma)}.")
    for name, count, least in (("rounds", rounds, 1), ("resamples", resamples, 0)):
        if not isinstance(count, Integral) or int(count) < least:
            raise InvalidInputError(f"{name} must be an integer of at least {least}, got {shown(count)}.")
    units = _Units.of(laws, times)
    given = units.snapshots(laws, fit_sigma=sigma is None)
    dim = laws[0].dim
    zero = torch.zeros(dim, dtype=torch.float64, device="cpu")
    start = LinearDrift(zero.new_zeros(dim, dim), zero, 1.0 if sigma is None else sigma / units.noise)
    samples, seed = [law for law in laws if isinstance(law, Samples)], as_seed(seed)
    found, divergences = given.learn(start, rounds, _TIGHT if samples else _EXACT)
    draws = [found]
    for place in range(resamples if len(samples) == len(laws) else 0):
        again = [_resampled(one, derive(seed, "rows", place, leg)) for leg, one in enumerate(samples)]
        draws.append(units.snapshots(again, fit_sigma=sigma is None).learn(found, rounds, _LOOSE)[0])
    rates = torch.stack([-one.matrix for one in draws])
    if given.least_curvature(found) < _FLAT:
        _warn("the divergence does not change along some direction of the parameters")
    elif len(draws) > 2 and float(rates[1:].std(0).square().mean().sqrt()) > _UNCLEAR * max(
        float(rates[0].square().mean().sqrt()), 1.0 / (len(laws) - 1)
    ):
        _warn("with other rows drawn from the same snapshots the rate changes by as much as its size")
    means = torch.stack([units.place + units.scale * one.mean for one in draws])
    sigmas = torch.tensor([sigma or units.noise * one.sigma for one in draws], dtype=torch.float64, device="cpu")
    rates = rates / units.time
    return LearnedReference(rates[0], means[0], float(sigmas[0]), divergences, rates[1:], means[1:], sigmas[1:])


def _checked(arrays: Sequence[End] | Tensor | np.ndarray, times: Times) -> tuple[list[Law], tuple[float, ...]]:
    snapshots, times = checked_snapshots(arrays, times)
    laws = [as_law(one, f"snapshot {place}") for place, one in enumerate(snapshots)]
    if len(laws) < 3:
        raise InvalidInputError(
            "two snapshots determine no drift: for any rate there is another mean and noise that explain them as well. "
            "At least three are needed."
        )
    for place, law in enumerate(laws):
        check_same_space(laws[0], law, ("snapshot 0", f"snapshot {place}"))
        if is_singular(*(one.double() for one in moments(law))):
            raise InvalidInputError(
                f"the covariance of snapshot {place} has no full rank: a column is constant, columns are linearly "
                f"dependent, or there are too few rows for {law.dim} columns. Give fewer columns, such as principal "
                "components."
            )
    return laws, times


@dataclass(frozen=True)
class _Units:
    """Units in which parameters are of order one: ``x = place + scale · y``, ``t = time · s``."""

    place: Tensor
    scale: float
    time: float
    stamps: tuple[float, ...]

    @classmethod
    def of(cls, laws: Sequence[Law], times: tuple[float, ...]) -> _Units:
        means, covariances = zip(*((one.double().cpu() for one in moments(law)) for law in laws), strict=True)
        place = torch.stack(means).mean(0)
        square = torch.stack(covariances).diagonal(dim1=1, dim2=2) + (torch.stack(means) - place).square()
        time = (times[-1] - times[0]) / (len(times) - 1)
        return cls(place, float(square.mean().sqrt()), time, tuple((t - times[0]) / time for t in times))

    @property
    def noise(self) -> float:
        """The unit of σ."""
        return self.scale / self.time**0.5

    def snapshots(self, laws: Sequence[Law], *, fit_sigma: bool) -> Snapshots:
        """Returns the moments in these units."""
        means, covariances = list[Tensor](), list[Tensor]()
        for law in laws:
            mean, covariance = (one.double().cpu() for one in moments(law))
            means.append((mean - self.place) / self.scale)
            covariances.append(covariance / self.scale**2)
        return Snapshots(means, covariances, self.stamps, fit_sigma)


def _resampled(law: Samples, seed: int) -> Samples:
    """Draws as many rows of a snapshot, with replacement; each keeps its weight."""
    which = torch.randint(len(law.rows), (len(law.rows),), generator=generator(seed), device="cpu")
    if law.weights is None:
        return Samples(law.rows[which])
    weights = law.weights[which].double()
    return Samples(law.rows[which], weights / weights.sum())


def _spread(draws: Tensor) -> Tensor:
    """The standard deviation over draws; NaN for fewer than two."""
    return draws.std(0) if len(draws) > 1 else torch.full_like(draws.sum(0), float("nan"))


def _warn(why: str) -> None:
    warnings.warn(
        f"the snapshots do not determine the rate: {why}. Snapshots at more times, or farther from equilibrium, are "
        "needed. The process is one of many that explain them; do not read its rate as a result.",
        IdentifiabilityWarning,
        stacklevel=4,
    )
