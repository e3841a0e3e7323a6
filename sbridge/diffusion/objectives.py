"""Objectives for training a score, from the losses of :mod:`sbridge.objectives`, at random times or along paths.

All have the score ``∇ log ρ_s`` as their minimiser; they differ in variance, cost and the weight of times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbridge.controls.divergence import rademacher
from sbridge.diffusion.conversions import Score, ScoreControl
from sbridge.diffusion.reverse import reverse_grid
from sbridge.diffusion.times import NoiseTimes, Times, UniformTimes, check_start, noised
from sbridge.errors import check_at_least
from sbridge.laws import Samples
from sbridge.measures import PathMeasure
from sbridge.objectives.reversal import reversal_action
from sbridge.objectives.score_matching import checked_score, denoising, implicit, likelihood_units, noise_units
from sbridge.processes import LinearProcess
from sbridge.processes.base import Time
from sbridge.storage.registry import register


@runtime_checkable
class ScoreObjective(Protocol):
    """A loss to be minimised over scores."""

    def __call__(
        self, process: LinearProcess, score: Score, start: Tensor, s_min: float, generator: torch.Generator
    ) -> Tensor:
        """Computes the scalar loss for new noise added to rows ``start`` of the data; times run from ``s_min``."""
        ...


@runtime_checkable
class Weighting(Protocol):
    """The weight of the squared error of the score at each time."""

    @property
    def times(self) -> Times:
        """The distribution from which times are drawn."""
        ...

    def residual(self, process: LinearProcess, t: Time, error: Tensor) -> Tensor:
        """Converts the error, one row per time, to the units in which it is squared."""
        ...


@register
@dataclass(frozen=True)
class Likelihood:
    """The weighting ``½ |σᵀ(s_θ − s)|²`` per unit of time: the loss is a path KL, and a bound on the likelihood.

    Song et al. 2021, arXiv:2101.09258, theorem 1; Premkumar 2023, eq. (3.37).

    Args:
        times: how times are drawn; the loss is an importance-sampled integral over them.
    """

    times: Times = field(default_factory=NoiseTimes)

    def residual(self, process: LinearProcess, t: Time, error: Tensor) -> Tensor:
        """Computes ``σᵀ error``."""
        return likelihood_units(process, t, error)


@register
@dataclass(frozen=True)
class Simple:
    """The weighting ``½ |Lᵀ(s_θ − s)|² = ½ |ε_θ − ε|²``, equal for all noise levels (Ho et al. 2020, eq. (14)).

    Args:
        times: how times are drawn; uniform by default.
    """

    times: Times = field(default_factory=UniformTimes)

    def residual(self, process: LinearProcess, t: Time, error: Tensor) -> Tensor:
        """Computes ``Lᵀ error``."""
        return noise_units(process, t, error)


@register
@dataclass(frozen=True)
class Denoising:
    """Denoising score matching: regression on ``∇_x log p(x | x_0)`` (Vincent 2011; Premkumar 2023, eq. (3.43)).

    Args:
        weighting: weights of times; :class:`Likelihood` bounds the log likelihood, :class:`Simple` is the usual choice
            for pictures.
    """

    weighting: Weighting = field(default_factory=Likelihood)

    def __call__(
        self, process: LinearProcess, score: Score, start: Tensor, s_min: float, generator: torch.Generator
    ) -> Tensor:
        """Computes the loss at one random time per row."""
        t, density, x, noise = noised(process, self.weighting.times, start, s_min, generator)
        values = checked_score(score, t, x)
        return (denoising(process, t, values, noise, self.weighting.residual) / density).mean()


@register
@dataclass(frozen=True)
class Action:
    """The action on simulated paths of the noising chain: ``KL(P ‖ P^û)`` with ``û = σᵀ s`` (eq. (3.36), ibid.).

    No target, no transition density and no derivative of the score is needed, only steps of the chain and the noise
    that would reverse them (:func:`~sbridge.objectives.reversal.reversal_action`). Its gradient has a larger variance,
    because the noise of every step enters it.

    Args:
        steps: number of steps of the chain on :func:`~sbridge.diffusion.reverse_grid`; the learned score has an error
            of ``O(Δ)``.
        paths: number of samples of a batch that are simulated; the others are not used.
    """

    steps: int = 100
    paths: int = 32

    def __post_init__(self) -> None:
        check_at_least(self, 1, "paths")
        check_at_least(self, 2, "steps")

    def __call__(
        self, process: LinearProcess, score: Score, start: Tensor, s_min: float, generator: torch.Generator
    ) -> Tensor:
        """Computes the loss on new paths; its mean is that of :class:`Implicit` up to ``O(Δ)`` and a constant."""
        check_start(process, s_min)
        measure = PathMeasure(process, None, Samples(start), grid=reverse_grid(self.steps, s_min / process.horizon))
        paths = measure.simulate(start[: self.paths], seed=generator)
        return reversal_action(paths, ScoreControl(process, score), first=1).mean()


@register
@dataclass(frozen=True)
class Implicit:
    """Implicit score matching, ``½|σᵀs|² + ∇·(σσᵀ s)``, which needs a divergence but no target (Hyvärinen 2005).

    The divergence is Hutchinson's ``ηᵀ ∇(σσᵀ s · η)`` with one Rademacher probe per sample.

    Args:
        times: how times are drawn.
    """

    times: Times = field(default_factory=NoiseTimes)

    def __call__(
        self, process: LinearProcess, score: Score, start: Tensor, s_min: float, generator: torch.Generator
    ) -> Tensor:
        """Computes the loss at one random time per row; it differs from that of :class:`Denoising` by a constant."""
        t, density, x, _ = noised(process, self.times, start, s_min, generator)
        return (implicit(process, t, x, score, rademacher(x, 1, generator)) / density).mean()
