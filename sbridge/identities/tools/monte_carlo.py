"""Monte Carlo estimates over noised data at random times, with as many draws as the standard error needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.controls.divergence import rademacher
from sbridge.diffusion.conversions import Score
from sbridge.diffusion.reverse import moments
from sbridge.diffusion.times import NoiseTimes
from sbridge.functionals import PathValues
from sbridge.identities.settings import Perturbed, Setting
from sbridge.laws import Samples
from sbridge.measures import Direction, Estimate, PathMeasure, Paths
from sbridge.objectives import score_matching as losses
from sbridge.processes.chain import Chain, default_rule
from sbridge.random import generator
from sbridge.time import TimeGrid

GAP = 10.0
"""Size in nats of the fixed perturbation of the score."""
RELATIVE, ABSOLUTE = 0.01, 0.01
"""Targets of a standard error: one percent of the value, or .01 nat."""
_ROWS = 8192
_EVALUATIONS = 5_000_000_000  # the largest number of component (or point) evaluations times coordinates for one side
_EXACT_TRACE = 8  # dimensions up to which divergences are exact traces
_BINS = 8


@dataclass(frozen=True, eq=False)
class Noised:
    """Noised data, each sample at its own random time.

    Args:
        t: increasing times in ``[s_min, T]``, float64, shape ``(n,)``.
        weight: one over the density of the times: the mean of ``weight · f(t, x)`` is ``∫ E f(t, X_t) dt``.
        mean: ``Φ X_0 + k``, shape ``(n, dim)``.
        noise_term: ``L ε``.
        noise: ``ε``.
        generator: for further draws.
    """

    t: Tensor
    weight: Tensor
    mean: Tensor
    noise_term: Tensor
    noise: Tensor
    generator: torch.Generator

    @cached_property
    def x(self) -> Tensor:
        """The states ``Φ X_0 + k + L ε``."""
        return self.mean + self.noise_term

    @cached_property
    def opposite(self) -> Noised:
        """Returns the same starts at the same times with the opposite noise."""
        return replace(self, noise_term=-self.noise_term, noise=-self.noise)


RowValues = Callable[[Noised], Tensor]


def noised(setting: Setting, n: int, resolution: float, *stream: str | int) -> Noised:
    """Draws ``n`` samples with independent noise at stratified times.

    Args:
        setting: process and data.
        n: number of samples.
        resolution: a fraction of the width of the data; times are dense where scores of data that narrow change.
        stream: names the draws.
    """
    g = generator(setting.seed_of("noised", *stream))
    process = setting.process
    start = setting.data.sample(n, g).double()
    t, density = NoiseTimes(resolution * width(setting)).draw(process, setting.s_min, n, g)
    noise = torch.randn(start.shape, generator=g, dtype=torch.float64)
    law = process.transition(0.0, t)
    return Noised(t, 1.0 / density, law.mean(start), law.root(noise), noise, g)


def estimate_mean(
    setting: Setting,
    values: RowValues,
    *stream: str | int,
    resolution: float = 0.3,
    target: float = 0.7,
    controls: RowValues | None = None,
    total: float | None = None,
) -> Estimate:
    """Estimates the mean of ``values`` over as many noised samples as the standard error needs.

    A pilot of ``setting.samples`` samples gives the variance. It is kept if its standard error suffices; otherwise
    a larger, independent batch replaces it.

    Args:
        setting: process and data.
        values: one number per sample, weights included.
        stream: names the draws.
        resolution: as for :func:`noised`.
        target: the wanted standard error, relative to ``max(1 %, .01)``.
        controls: control variates of mean zero, shape ``(n, m)``; their linear regression is subtracted.
        total: the value that one percent refers to, if the mean is only a part of it.
    """
    found = _mean(setting, values, controls, resolution, setting.samples, "pilot", *stream)
    wanted = target * max(RELATIVE * abs(found.value if total is None else total), ABSOLUTE)
    if found.standard_error <= wanted:
        return found
    points = len(setting.data.rows) if isinstance(setting.data, Samples) else 8
    most = max(setting.samples, min(_EVALUATIONS // (points * (setting.dim + 10)), 200 * setting.samples))
    n = math.ceil(1.2 * setting.samples * (found.standard_error / wanted) ** 2)
    return _mean(setting, values, controls, resolution, min(n, most), "main", *stream)


def _mean(
    setting: Setting, values: RowValues, controls: RowValues | None, resolution: float, n: int, *stream: str | int
) -> Estimate:
    found, beside = [], []
    with torch.no_grad():
        for part, first in enumerate(range(0, n, _ROWS)):
            rows = noised(setting, max(min(_ROWS, n - first), _BINS), resolution, part, *stream)
            found.append(values(rows).double())
            if controls is not None:
                beside.append(controls(rows))
    y = torch.cat(found)
    if beside:
        features = torch.cat(beside)
        design = torch.cat([torch.ones(len(y), 1, dtype=torch.float64), features], 1)
        y = y - features @ torch.linalg.lstsq(design, y[:, None]).solution[1:, 0]
    return Estimate.of(y)


def explicit(
    setting: Setting, score: Score, *stream: str | int, target: float = 0.5, exact: Score | None = None
) -> Estimate:
    """Estimates ``½ ∫ E|σᵀ(s − ∇log ρ_t)|² dt`` with the closed-form score at random times, without time steps.

    Args:
        setting, stream, target: as for :func:`precise`.
        score: ``s``.
        exact: replaces the true score.
    """
    true = setting.exact if exact is None else exact
    # The fixed perturbation is as large as the score of a Gaussian; a network has errors where scores are large.
    resolution = fine_resolution(setting) if score is setting.network else 1.0

    def rows(one: Noised) -> Tensor:
        return one.weight * losses.explicit(setting.process, one.t, score(one.t, one.x), true(one.t, one.x))

    return estimate_mean(setting, rows, "explicit", *stream, resolution=resolution, target=target)


def fine_resolution(setting: Setting) -> float:
    """Returns the resolution at which scores of the setting change little between knots."""
    return 0.03 if isinstance(setting.data, Samples) else 0.2


def estimate_path_mean(setting: Setting, run: Callable[[int, str], PathValues]) -> PathValues:
    """Returns path values with .8 of the wanted standard error, if ten times ``samples`` paths suffice.

    Args:
        setting: process and data.
        run: makes ``n`` values from a named stream.
    """
    found = run(setting.samples, "pilot")
    estimate = found.estimate
    wanted = 0.8 * max(RELATIVE * abs(estimate.value), ABSOLUTE)
    if estimate.standard_error <= wanted:
        return found
    most = (4 if isinstance(setting.data, Samples) else 10) * setting.samples
    n = math.ceil(1.15 * setting.samples * (estimate.standard_error / wanted) ** 2)
    return run(min(n, most), "main")


def sum_estimates(*parts: Estimate) -> Estimate:
    """Adds independent estimates."""
    error = sum(part.standard_error**2 for part in parts) ** 0.5
    return Estimate(sum(part.value for part in parts), error, min(part.samples for part in parts))


def target_mean(setting: Setting, one: Noised) -> Tensor:
    """Computes ``½ E|σᵀL^{−ᵀ}ε|² = ½ tr(σσᵀQ⁻¹)``."""
    root = setting.process.transition(0.0, one.t).root
    return 0.5 * setting.dim * (root.inverse() @ setting.process.scale(one.t)).mean_square(setting.dim)


def chi_square_controls(setting: Setting) -> RowValues:
    """Returns control variates: ``½|σᵀL^{−ᵀ}ε|²`` minus its mean, one for each of eight ranges of time."""

    def controls(one: Noised) -> Tensor:
        target = losses.denoising_target(setting.process, one.t, one.noise)
        excess = 0.5 * losses.likelihood_units(setting.process, one.t, target).square().sum(1)
        excess = one.weight * (excess - target_mean(setting, one))
        ranges = torch.arange(len(one.t)) * _BINS // len(one.t)
        return excess[:, None] * torch.nn.functional.one_hot(ranges, _BINS)

    return controls


def trace_probes(setting: Setting, one: Noised) -> Tensor | None:
    """Returns Hutchinson probes if an exact trace would be slow: in many dimensions, or for sets of points."""
    few = setting.dim <= (1 if isinstance(setting.data, Samples) else _EXACT_TRACE)
    return None if few else rademacher(one.x, 1, one.generator)


def width(setting: Setting) -> float:
    """Returns the standard deviation of the data, root mean square over coordinates."""
    _, covariance = moments(setting.data)
    return float(covariance.diagonal().mean().sqrt())


def scores_to_check(setting: Setting, gap: float = GAP, exact: Score | None = None) -> Iterator[tuple[str, Score]]:
    """Yields the fixed perturbation, sized for ``gap`` nats, and the trained network if there is one.

    Args:
        setting: process and data.
        gap: size of the perturbation in nats.
        exact: replaces the true score inside the perturbed one.
    """
    field = Perturbed.sized(setting, gap)
    true = setting.exact if exact is None else exact

    def perturbed(t: Time, x: Tensor) -> Tensor:
        return true(t, x) + field.size * field.offset(t, x)

    yield f"fixed perturbation of {gap:g} nats", perturbed
    if setting.network is not None:
        yield "trained network", setting.network


@dataclass(frozen=True, eq=False)
class Cached:
    """A score or control with a cache of its values.

    It keeps the last value at each time, and the last value for a time per sample.
    """

    function: Score
    _seen: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _last: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Returns the value at ``(t, x)``."""
        if isinstance(t, Tensor):
            if x.requires_grad or t.requires_grad:
                return self.function(t, x)
            if not self._last or self._last[0][0] is not t or self._last[0][1] is not x:
                self._last[:] = [(t, x, self.function(t, x))]
            return self._last[0][2]
        kept = self._seen.get(t)
        if kept is None or not torch.equal(kept[0], x):
            kept = self._seen[t] = (x, self.function(t, x))
        return kept[1]


def matched_grid(setting: Setting, steps: int, resolution: float | None = None) -> TimeGrid:
    """Makes the grid ``0``, then ``steps`` steps from ``s_min`` to ``T``; scores change equally in each step."""
    resolution = fine_resolution(setting) if resolution is None else resolution
    times = NoiseTimes(resolution * width(setting)).quantiles(setting.process, setting.s_min, steps)
    return TimeGrid((0.0, *(times[:-1] / setting.horizon).tolist(), 1.0))


def noising(setting: Setting, steps: int, resolution: float | None = None) -> PathMeasure:
    """Returns the noising process from the data, exact at the knots of :func:`matched_grid`."""
    return PathMeasure(setting.process, None, setting.data, grid=matched_grid(setting, steps, resolution))


def with_exact_rows(setting: Setting) -> Setting:
    """Returns the setting with points in float64, so that densities can be differentiated."""
    data = setting.data
    if not isinstance(data, Samples) or data.rows.dtype == torch.float64:
        return setting
    return replace(setting, data=Samples(data.rows.double(), data.weights))


def reversed_paths(paths: Paths, every: int = 1) -> Paths:
    """Converts noising paths from ``s_min`` on to paths of the reversed chain without control, at every n-th knot.

    The noise of the result is the noise with which that chain makes these paths, as Girsanov's formula needs it.
    """
    times, states = paths.t[1:][::every], paths.x[1:][::every].flip(0)
    chain = Chain(paths.chain.process, times, Direction.BACKWARD, default_rule(paths.chain.process), paths.x)
    noise = torch.stack([chain.shift(j, states[j], states[j + 1]) for j in range(chain.length)])
    return Paths(states, noise, torch.zeros_like(noise), chain)
