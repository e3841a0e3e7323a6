"""Recorder of the action gap during training."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sbridge.diffusion.conversions import Score, checked_score, score_from_noise
from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.objectives import Likelihood
from sbridge.diffusion.times import noised
from sbridge.diffusion.training import ScoreMatchingState
from sbridge.errors import InvalidInputError
from sbridge.measures import Estimate
from sbridge.random import Seed, as_seed, derive, generator
from sbridge.training import Numbers, State


@dataclass
class GapRecorder:
    """Training callback that measures the action gap of :class:`ScoreMatching` in two ways, every few steps.

    ::

        gap         ½∫ E|σᵀ(s_θ − ∇log ρ_s)|² ds                              with the exact score
        excess      ½∫ E|σᵀ(s_θ − ∇log p(X_s | X_0))|² ds − C                 the denoising loss minus its constant

    over ``[s_min, T]``, which are equal (Premkumar 2023, eq. (3.36)–(3.43)), from different draws. ``C`` is
    ``½∫ E|σᵀ∇log p|² − E|σᵀ∇log ρ|² ds``. The draws are the same at every step. In both ways the standard error
    decreases with the gap, so that small gaps are resolved as well as large ones.

    Args:
        exact: exact score of the training data.
        start_time: ``s_min`` as a fraction of the horizon, as in the solver.
        every: steps between measurements; the first step is also measured.
        draws: number of points in time and space for each way.
        seed: of the draws.
        rows: the measurements: ``step``, ``gap``, ``excess``, and their standard errors ``gap_error``,
            ``excess_error``.

    Raises:
        InvalidInputError: when called with the state of another solver.
    """

    exact: ExactScore
    start_time: float = 1e-3
    every: int = 50
    draws: int = 32_768
    seed: Seed = 0
    rows: list[Numbers] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.every < 1 or self.draws < 4:
            raise InvalidInputError(f"every must be positive and draws at least 4, got {self.every} and {self.draws}.")
        self.seed = as_seed(self.seed)

    def __call__(self, state: State, info: Numbers) -> None:
        """Measures the gap if it is due."""
        if not isinstance(state, ScoreMatchingState):
            raise InvalidInputError(f"a GapRecorder needs ScoreMatching, got a {type(state).__name__}.")
        if state.step == 1 or state.step % self.every == 0:
            self.rows.append({"step": state.step, **self.measure(state.score)})

    @torch.no_grad()
    def measure(self, score: Score) -> Numbers:
        """Computes ``gap`` and ``excess`` of ``score``, with their standard errors."""
        one, other = self._bundles
        gap = Estimate.of(_pairs(0.5 * one.offset(score).square().sum(1) / one.density))
        # |d + e|² − |e|² with d = σᵀ(s_θ − s), e = σᵀ(s − ∇log p), without the difference of large numbers
        offset = other.offset(score)
        excess = Estimate.of(_pairs((0.5 * offset + other.surprise).mul(offset).sum(1) / other.density))
        return {
            "gap": gap.value,
            "excess": excess.value,
            "gap_error": gap.standard_error,
            "excess_error": excess.standard_error,
        }

    @property
    def constant(self) -> float:
        """The constant ``C`` by which the denoising loss exceeds the gap."""
        other = self._bundles[1]
        return float((0.5 * (other.target.square() - other.truth.square()).sum(1) / other.density).mean())

    @cached_property
    def _bundles(self) -> tuple[_Bundle, _Bundle]:
        seed = as_seed(self.seed)
        return _Bundle.draw(self, derive(seed, "gap")), _Bundle.draw(self, derive(seed, "excess"))


@dataclass(frozen=True, eq=False)
class _Bundle:
    """Noised rows with the quantities that stay fixed during training; scores times ``σᵀ``."""

    exact: ExactScore
    t: Tensor
    density: Tensor
    x: Tensor
    truth: Tensor
    target: Tensor

    @classmethod
    def draw(cls, of: GapRecorder, seed: int) -> _Bundle:
        process, exact, units = of.exact.process, of.exact, Likelihood()
        draws = generator(seed)
        start = exact.data.sample(of.draws, draws)
        t, density, x, noise = noised(process, units.times, start, of.start_time * process.horizon, draws)
        truth = units.residual(process, t, exact(t, x))
        target = units.residual(process, t, score_from_noise(process, t, noise))
        return cls(exact, t, density, x, truth, target)

    @property
    def surprise(self) -> Tensor:
        """Computes ``σᵀ(∇log ρ − ∇log p)``, of mean zero given ``x``."""
        return self.truth - self.target

    def offset(self, score: Score) -> Tensor:
        """Computes ``σᵀ(s_θ − ∇log ρ)``."""
        return Likelihood().residual(self.exact.process, self.t, checked_score(score, self.t, self.x)) - self.truth


def _pairs(values: Tensor) -> Tensor:
    """Averages over each noise and its opposite; the averages are independent of each other."""
    half = len(values) // 2
    return 0.5 * (values[:half] + values[half : 2 * half])
