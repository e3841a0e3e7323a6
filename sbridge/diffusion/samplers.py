"""Samplers of reverse diffusion, from ``t = T`` down, behind one protocol, so that their costs can be compared.

All take a bridge of :func:`~sbridge.diffusion.reverse_diffusion` (those that need its velocity or its backward measure
only take any bridge), a number of rows or states at ``t = T``, and a seed, and give rows at ``t = 0``. They step down
the knots of a grid to its first positive knot ``s_min``; what happens below is a :class:`LastStep`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from sbridge.diffusion.accessors import backward_measure, linear_reference, score_of
from sbridge.diffusion.conversions import Score, checked_score, noise_from_score, start_from_score
from sbridge.diffusion.ddpm import StepVariance
from sbridge.diffusion.pinned import pinned_kernel
from sbridge.errors import InvalidInputError, UnsupportedError, shown
from sbridge.linear import LinearMap
from sbridge.measures.measure import noise_for, pieces
from sbridge.processes import LinearProcess, StepRule
from sbridge.random import Seed, as_seed, derive
from sbridge.simulation import propagate
from sbridge.simulation.engine import require_finite
from sbridge.simulation.ode import Heun, ODEMethod, flow
from sbridge.solutions import Bridge
from sbridge.storage.registry import register
from sbridge.time import TimeGrid


@dataclass(frozen=True, eq=False)
class Sampled:
    """Sampled rows, with their cost.

    Args:
        x: shape ``(n, dim)``.
        evaluations: of the score (the network), a row.
    """

    x: Tensor
    evaluations: int


class LastStep(ABC):
    """The treatment of the last interval, from ``s_min`` to 0, where the score diverges."""

    @abstractmethod
    def knots(self, knots: Tensor) -> Tensor:
        """Returns the increasing ``knots``, the first being 0, that the sampler itself visits."""

    @abstractmethod
    def finish(self, bridge: Bridge, s: float, x: Tensor) -> Sampled:
        """Converts states ``x`` at ``s``, the first of these knots, to the result."""


@register
@dataclass(frozen=True)
class Denoise(LastStep):
    """Tweedie's formula ``E[X_0 | X_{s_min}]``: one evaluation, which removes the noise of ``s_min``."""

    def knots(self, knots: Tensor) -> Tensor:
        """Returns all knots except 0."""
        return knots[1:]

    def finish(self, bridge: Bridge, s: float, x: Tensor) -> Sampled:
        """Computes the conditional mean; raises UnsupportedError unless the noising process is linear."""
        return Sampled(denoised(bridge, s, x), 1)


@register
@dataclass(frozen=True)
class StopEarly(LastStep):
    """The states at ``s_min``, unchanged: draws of the slightly noised distribution."""

    def knots(self, knots: Tensor) -> Tensor:
        """Returns all knots except 0."""
        return knots[1:]

    def finish(self, bridge: Bridge, s: float, x: Tensor) -> Sampled:
        """Returns ``x``."""
        return Sampled(x, 0)


@register
@dataclass(frozen=True)
class StepToZero(LastStep):
    """An ordinary last step to 0. Methods that evaluate the score at the end of a step then need it at ``t = 0``."""

    def knots(self, knots: Tensor) -> Tensor:
        """Returns all knots."""
        return knots

    def finish(self, bridge: Bridge, s: float, x: Tensor) -> Sampled:
        """Returns ``x``."""
        return Sampled(x, 0)


def denoised(bridge: Bridge, s: float, x: Tensor) -> Tensor:
    """Computes ``E[X_0 | X_s = x]`` under reverse diffusion, with one evaluation of the score."""
    process, score = linear_reference(bridge, "the mean E[X_0 | X_s]"), score_of(bridge)
    with torch.no_grad():
        return start_from_score(process, s, x, checked_score(score, s, x))


class Sampler(ABC):
    """Base of all samplers: frozen options, called as ``sampler(bridge, n or states, seed=…) → rows``.

    Fields that all have: ``grid`` (``None``: that of the bridge's backward measure) and ``last``.
    """

    grid: TimeGrid | None
    last: LastStep

    @final
    def __call__(self, bridge: Bridge, start: int | Tensor, *, seed: Seed) -> Tensor:
        """Returns rows at ``t = 0``, shape ``(n, dim)``; see :meth:`run`."""
        return self.run(bridge, start, seed=seed).x

    @final
    @torch.no_grad()
    def run(self, bridge: Bridge, start: int | Tensor, *, seed: Seed) -> Sampled:
        """Returns rows at ``t = 0`` with the number of evaluations per row.

        Args:
            bridge: reverse diffusion.
            start: how many rows to draw from the distribution at ``t = T``, or states there, shape ``(n, dim)``.
            seed: of start states and noise.

        Raises:
            InvalidInputError: for states of another dimension, or a grid with too few steps.
            UnsupportedError: for a bridge or a process that this sampler cannot treat.
            NonFiniteError: if the states stop being finite.
        """
        measure, seed = backward_measure(bridge), as_seed(seed)
        x = measure.starts(start, seed=seed) if isinstance(start, int) else bridge.rows(start, "start")
        grid = self.grid or measure.grid
        knots = self.last.knots(grid.times(bridge.horizon))
        if len(knots) < 2:
            raise InvalidInputError(f"{shown(self.last)} leaves no step of a grid with {grid.steps}; use a finer grid.")
        down = self._descend(bridge, x, knots, grid, seed)
        rest = self.last.finish(bridge, float(knots[0]), down.x)
        require_finite(rest.x, "the denoised state", len(knots) - 1, float(knots[0]))
        return Sampled(rest.x, down.evaluations + rest.evaluations)

    @abstractmethod
    def _descend(self, bridge: Bridge, x: Tensor, knots: Tensor, grid: TimeGrid, seed: int) -> Sampled:
        """States at ``knots[0]`` from states at ``knots[-1] = T``; ``knots`` are all of ``grid`` or all but 0."""


@register
@dataclass(frozen=True)
class StochasticSampler(Sampler):
    """The reverse equation ``dY = (−b + σσᵀ s) ds + σ dB`` as a chain, one evaluation per step, for any bridge.

    Args:
        rule: ``ExactTransition()`` (what ``None`` means for linear processes): the reference moves exactly and the
            control is held over a step; ``EulerMaruyama()``: so is the drift.
        grid, last: see :class:`Sampler`.
    """

    rule: StepRule | None = None
    grid: TimeGrid | None = None
    last: LastStep = field(default_factory=Denoise)

    def _descend(self, bridge: Bridge, x: Tensor, knots: Tensor, grid: TimeGrid, seed: int) -> Sampled:
        measure = backward_measure(bridge)
        chain = dataclasses.replace(measure, rule=self.rule or measure.rule).chain(x, grid)
        steps, end = len(knots) - 1, torch.empty_like(x)
        for rows, noise in pieces(x, chain.length, seed, None):
            end[rows] = propagate(chain, measure.control, x[rows], noise, stop=steps)
        return Sampled(end, steps)


def generate(bridge: Bridge, start: int | Tensor, *, seed: Seed, sampler: Sampler = StochasticSampler()) -> Tensor:
    """Generates new samples from reverse diffusion, shape ``(n, dim)``: ``sampler(bridge, start, seed=seed)``.

    If the bridge was fitted to samples of another shape, such as images, they have that shape.

    By default the reverse chain down to the first knot ``s`` of its grid, then ``E[X_0 | X_s]``, so that no noise of a
    last step is left on the rows (``bridge.backward.transport`` takes an ordinary last step instead).

    Args:
        bridge: from :func:`sbridge.diffuse` or :func:`~sbridge.diffusion.reverse_diffusion`.
        start: how many rows to draw from the prior, or states at ``t = T``.
        seed: of prior and noise.
        sampler: another way down.

    Raises:
        InvalidInputError, UnsupportedError, NonFiniteError: as :meth:`Sampler.run`.
    """
    rows = sampler(bridge, start, seed=seed)
    return rows if bridge.shape is None else rows.unflatten(-1, bridge.shape)


@register
@dataclass(frozen=True)
class FlowSampler(Sampler):
    """The probability-flow equation ``dx/dt = b − ½σσᵀ s``, deterministic given its start, for any bridge.

    Args:
        method: ``Euler()``, ``Heun()``, ``RungeKutta4()`` or ``DormandPrince()``; the last uses no knots but the ends.
        grid, last: see :class:`Sampler`.
    """

    method: ODEMethod = field(default_factory=Heun)
    grid: TimeGrid | None = None
    last: LastStep = field(default_factory=Denoise)

    def _descend(self, bridge: Bridge, x: Tensor, knots: Tensor, grid: TimeGrid, seed: int) -> Sampled:
        found = flow(bridge.current_velocity, x, knots.flip(0), self.method)
        return Sampled(found.x, found.evaluations)


@register
@dataclass(frozen=True)
class AncestralSampler(Sampler):
    """Ancestral sampling ``x_{k−1} = Φ⁻¹(x_k − c + Q s) + noise``: the mean is exactly ``E[x_{k−1} | x_k]``.

    For a variance-preserving process it is DDPM's ancestral sampling (Ho et al. 2020, algorithm 2); here it is defined
    for every linear process. With ``StepVariance.FORWARD`` the noise has the covariance ``Q`` of the forward step, with
    ``POSTERIOR`` that of ``q(x_{k−1} | x_0, x_k)``: right for stationary data, and for data that are one point.

    Args:
        variance: of the noise.
        grid, last: see :class:`Sampler`.
    """

    variance: StepVariance = StepVariance.POSTERIOR
    grid: TimeGrid | None = None
    last: LastStep = field(default_factory=Denoise)

    def _descend(self, bridge: Bridge, x: Tensor, knots: Tensor, grid: TimeGrid, seed: int) -> Sampled:
        process, score = linear_reference(bridge, "ancestral sampling"), score_of(bridge)
        steps, times = len(knots) - 1, knots.tolist()
        noise = noise_for(x, steps, seed)
        for j, k in enumerate(range(steps, 0, -1)):
            law = process.transition(times[k - 1], times[k])
            moved = x - law.offset.to(x) + law.covariance.to(x)(checked_score(score, times[k], x))
            x = law.map.inverse().to(x)(moved) + self._root(process, times[k - 1], times[k]).to(x)(noise.step(j))
            require_finite(x, "the state", j + 1, times[k - 1])
        return Sampled(x, steps)

    def _root(self, process: LinearProcess, s: float, t: float) -> LinearMap:
        if self.variance is StepVariance.FORWARD:
            return process.transition(s, t).root
        return pinned_kernel(process, s, t).root


@register
@dataclass(frozen=True)
class DDIMSampler(Sampler):
    """DDIM steps ``x_s = Φ_s x̂_0 + k_s + L_s ε̂`` with the start and noise given by the score (Song et al. 2021).

    Euler's method for the probability flow, in the clock in which it is straight for data that are one point
    (arXiv:2010.02502, eq. (12)–(14)); first order, one evaluation a step, deterministic given its start.

    Args:
        grid, last: see :class:`Sampler`.
    """

    grid: TimeGrid | None = None
    last: LastStep = field(default_factory=Denoise)

    def _descend(self, bridge: Bridge, x: Tensor, knots: Tensor, grid: TimeGrid, seed: int) -> Sampled:
        process, score = linear_reference(bridge, "DDIM"), score_of(bridge)
        times = knots.flip(0).tolist()
        for j, (t, s) in enumerate(pairwise(times)):
            values, law = checked_score(score, t, x), process.transition(0.0, s)
            if law.root.dense or law.map.dense:
                raise UnsupportedError(
                    "DDIM steps agree with the probability flow only where coordinates do not mix; for a process with "
                    "matrix coefficients use FlowSampler(Heun())."
                )
            start, noise = start_from_score(process, t, x, values), noise_from_score(process, t, values)
            x = law.mean(start) + law.root.to(x)(noise)
            require_finite(x, "the state", j + 1, s)
        return Sampled(x, len(times) - 1)


def langevin(
    process: LinearProcess, score: Score, t: float, x: Tensor, *, step_size: float, steps: int, seed: Seed
) -> Tensor:
    """Runs Langevin dynamics at the noise level of time ``t``: ``x ← x + ½h Q s(t, x) + √h L ξ``, ``steps`` times.

    ``Q = L Lᵀ`` is the covariance of the noise at ``t``, so the step size ``h`` has no unit, and fits every level:
    no feature of ``ρ_t`` is narrower than the noise. Leaves ``ρ_t`` invariant up to a bias of order ``h``.

    Args:
        process: the noising process.
        score: ``∇ log ρ_t``.
        t: the time, ``0 < t ≤ T``.
        x: states, shape ``(batch, dim)``.
        step_size: ``h``, in ``(0, 2]``: beyond, the steps may diverge.
        steps: how many.
        seed: of the noise.

    Raises:
        InvalidInputError: for a step size or a time outside its range.
        NonFiniteError: if the states stop being finite.
    """
    _check_step(step_size, steps)
    if not 0.0 < t <= process.horizon * (1 + 1e-12):
        raise InvalidInputError(f"Langevin dynamics needs a noise level: t in (0, {process.horizon:g}], got {t:g}.")
    law, noise = process.transition(0.0, t), noise_for(x, max(steps, 1), as_seed(seed))
    drift, root = (law.covariance * (0.5 * step_size)).to(x), (law.root * step_size**0.5).to(x)
    for k in range(steps):
        x = x + drift(checked_score(score, t, x)) + root(noise.step(k))
        require_finite(x, "the state of Langevin dynamics", k + 1, t)
    return x


@register
@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """A step of :class:`StochasticSampler`, then steps of :func:`langevin` at the level reached (Song et al. 2021).

    arXiv:2011.13456, algorithm 1. Costs ``1 + corrections`` evaluations a step.

    Args:
        corrections: Langevin steps at each knot.
        step_size: of the corrector; see :func:`langevin`.
        rule: of the predictor.
        grid, last: see :class:`Sampler`.
    """

    corrections: int = 1
    step_size: float = 0.1
    rule: StepRule | None = None
    grid: TimeGrid | None = None
    last: LastStep = field(default_factory=Denoise)

    def __post_init__(self) -> None:
        _check_step(self.step_size, self.corrections)

    def _descend(self, bridge: Bridge, x: Tensor, knots: Tensor, grid: TimeGrid, seed: int) -> Sampled:
        process, score = linear_reference(bridge, "a Langevin corrector"), score_of(bridge)
        measure = backward_measure(bridge)
        chain = dataclasses.replace(measure, rule=self.rule or measure.rule).chain(x, grid)
        noise, times = noise_for(x, chain.length, seed), knots.flip(0).tolist()
        for j, s in enumerate(times[1:]):
            u = measure.control(times[j], x) if measure.control is not None else None
            x = x + chain.move(j, x, u) + chain.root(j)(noise.step(j))
            require_finite(x, "the state", j + 1, s)
            if s > 0:
                key = derive(seed, "corrector", j)
                x = langevin(process, score, s, x, step_size=self.step_size, steps=self.corrections, seed=key)
        below = sum(s > 0 for s in times[1:])
        return Sampled(x, len(times) - 1 + below * self.corrections)


@register
@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    """Langevin steps (:func:`langevin`) at decreasing noise levels (Song & Ermon 2019, arXiv:1907.05600, algorithm 1).

    Needs many steps a level, since nothing else moves the states from one level to the next.

    Args:
        steps: at each knot.
        step_size: see :func:`langevin`.
        grid, last: see :class:`Sampler`; with ``StepToZero()`` nothing is done at 0.
    """

    steps: int = 10
    step_size: float = 0.2
    grid: TimeGrid | None = None
    last: LastStep = field(default_factory=Denoise)

    def __post_init__(self) -> None:
        _check_step(self.step_size, self.steps)

    def _descend(self, bridge: Bridge, x: Tensor, knots: Tensor, grid: TimeGrid, seed: int) -> Sampled:
        process, score = linear_reference(bridge, "Langevin dynamics"), score_of(bridge)
        levels = [t for t in knots.flip(0).tolist() if t > 0]
        for j, t in enumerate(levels):
            x = langevin(
                process, score, t, x, step_size=self.step_size, steps=self.steps, seed=derive(seed, "level", j)
            )
        return Sampled(x, len(levels) * self.steps)


def _check_step(step_size: float, steps: int) -> None:
    if not 0.0 < step_size <= 2.0:
        raise InvalidInputError(f"a Langevin step size must be in (0, 2], got {step_size}; it has no unit.")
    if steps < 0:
        raise InvalidInputError(f"the number of Langevin steps must not be negative, got {steps}.")
