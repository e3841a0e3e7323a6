"""Denoising diffusion in discrete steps, as in Ho et al. 2020 (arXiv:2006.11239) and Song et al. 2021 (DDIM).

A variance-preserving process seen at knots ``t_0 = 0 < t_1 < … < t_N`` is the chain
``x_k = √α_k x_{k−1} + √β_k ε`` with ``β_k = 1 − ᾱ(t_k)/ᾱ(t_{k−1})``: exactly, at any step size. (The usual
``β(t_k) Δ_k`` agrees to first order only.) Steps are numbered 1 … N as there.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sbridge.diffusion.conversions import Score, checked_score, noise_from_score
from sbridge.errors import InvalidInputError, UnsupportedError, shown
from sbridge.processes import LinearProcess, VariancePreserving
from sbridge.storage.registry import register
from sbridge.time import TimeGrid


@register
class StepVariance(enum.Enum):
    """The variance ``σ_k²`` of an ancestral step; Ho et al. 2020, §3.2."""

    FORWARD = "forward"
    """``β_k``: exact for standard normal data."""
    POSTERIOR = "posterior"
    """``β̃_k = β_k (1 − ᾱ_{k−1})/(1 − ᾱ_k)``: exact for data at a single point."""


@dataclass(frozen=True, eq=False)
class DiscreteNoise:
    """The noise levels ``β_k``, ``ᾱ_k`` and derived quantities, in float64.

    Args:
        times: ``t_0 = 0 … t_N``, shape ``(N + 1,)``.
        betas: ``β_1 … β_N``, shape ``(N,)``.
        variances: ``1 − ᾱ_0 = 0 … 1 − ᾱ_N``, shape ``(N + 1,)``: kept instead of ``ᾱ``, which rounds to 1.

    Raises:
        InvalidInputError: for another shape, or numbers that are not in ``(0, 1)``.
    """

    times: Tensor
    betas: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        count = len(self.betas)
        if self.times.shape != (count + 1,) or self.variances.shape != (count + 1,) or self.betas.ndim != 1:
            raise InvalidInputError(
                f"N betas need N + 1 times and variances, got {tuple(self.betas.shape)}, {tuple(self.times.shape)} and "
                f"{tuple(self.variances.shape)}."
            )
        if not bool(((self.betas > 0) & (self.betas < 1)).all()):
            raise InvalidInputError("every beta must be strictly between 0 and 1: use finer steps or a later start.")

    @classmethod
    def of(cls, process: VariancePreserving, grid: TimeGrid) -> DiscreteNoise:
        """Makes the chain of ``process`` at the knots of ``grid``.

        Raises:
            UnsupportedError: unless it is variance preserving with ``stationary_std`` 1 and mean 0.
        """
        if not isinstance(process, VariancePreserving) or process.stationary_std != 1.0 or process.mean != 0.0:
            raise UnsupportedError(
                "the discrete chain of Ho et al. needs a VariancePreserving process with stationary_std 1 and mean 0, "
                f"got {shown(process)}; for other linear processes use AncestralSampler and DDIMSampler."
            )
        times = grid.times(process.horizon)
        steps, whole = process.transition(times[:-1], times[1:]), process.transition(0.0, times)
        return cls(times, steps.covariance.values[:, 0], whole.covariance.values[:, 0])

    @cached_property
    def alphas(self) -> Tensor:
        """``α_k = 1 − β_k``, shape ``(N,)``."""
        return 1.0 - self.betas

    @cached_property
    def alpha_bars(self) -> Tensor:
        """``ᾱ_0 = 1 … ᾱ_N``, shape ``(N + 1,)``."""
        return 1.0 - self.variances

    def step_variances(self, variance: StepVariance) -> Tensor:
        """Computes ``σ_k²``, shape ``(N,)``."""
        if variance is StepVariance.FORWARD:
            return self.betas
        return self.betas * self.variances[:-1] / self.variances[1:]

    def weights(self, variance: StepVariance) -> Tensor:
        """``β_k²/(2σ_k² α_k (1 − ᾱ_k))``, which multiplies ``|ε − ε_θ|²``, shape ``(N,)`` (Premkumar 2023, eq. (4.16)).

        With ``σ_k² = β_k`` it is ``1/α_k`` times ``½β_k/(1 − ᾱ_k)``, a step of the likelihood weighting of denoising
        score matching. With ``σ_k² = β̃_k`` the first is infinite: the start then has a likelihood term of its own.
        """
        shared = self.betas / (2.0 * self.alphas)
        return shared / (self.variances[1:] if variance is StepVariance.FORWARD else self.variances[:-1])

    def noised(self, k: int, x_start: Tensor, noise: Tensor) -> Tensor:
        """Computes ``x_k = √ᾱ_k x_0 + √(1 − ᾱ_k) ε``."""
        return self._root(self.alpha_bars, k) * x_start + self._root(self.variances, k) * noise

    def posterior_mean(self, k: int, x_start: Tensor, x: Tensor) -> Tensor:
        """Computes the mean of ``q(x_{k−1} | x_k, x_0)``; its variance is ``β̃_k`` (Ho et al. 2020, eq. (7)).

        ``(√ᾱ_{k−1} β_k x_0 + √α_k (1 − ᾱ_{k−1}) x_k)/(1 − ᾱ_k)``
        """
        before, after = float(self.variances[k - 1]), float(self.variances[k])
        own = self._root(self.alpha_bars, k - 1) * float(self.betas[k - 1]) * x_start
        return (own + self._root(self.alphas, k - 1) * before * x) / after

    def ancestral_mean(self, k: int, x: Tensor, noise: Tensor) -> Tensor:
        """``(x_k − β_k ε_θ/√(1 − ᾱ_k))/√α_k`` (Ho et al. 2020, eq. (11)): ``E[x_{k−1} | x_k]`` for the true ``ε_θ``."""
        beta = float(self.betas[k - 1])
        return (x - beta / self._root(self.variances, k) * noise) / self._root(self.alphas, k - 1)

    def ddim(self, k: int, x: Tensor, noise: Tensor) -> Tensor:
        """``x_{k−1} = (x_k − √(1−ᾱ_k) ε_θ)/√α_k + √(1−ᾱ_{k−1}) ε_θ`` (Song et al. 2021, arXiv:2010.02502, eq. (12)).

        Euler's method for ``d(x/√ᾱ)/d(√(1−ᾱ)/√ᾱ) = ε_θ``, the probability flow in that clock.
        """
        ratio, before = self._root(self.alphas, k - 1), self._root(self.variances, k - 1)
        return (x - self._root(self.variances, k) * noise) / ratio + before * noise

    @staticmethod
    def _root(values: Tensor, k: int) -> float:
        return float(values[k].sqrt())


@register
@dataclass(frozen=True)
class DiscreteDenoising:
    """The objective (4.16): ``E Σ_k w_k |ε − ε_θ(x_k, t_k)|²`` over the steps of a grid, one random step per row.

    The variational bound of Ho et al. 2020 without its terms at the two ends; as the steps shrink it becomes
    :class:`~sbridge.diffusion.objectives.Denoising` with likelihood weighting.

    Args:
        grid: the steps; those that end before ``s_min`` are left out.
        variance: ``σ_k²``.
    """

    grid: TimeGrid = field(default_factory=lambda: TimeGrid.uniform(1000))
    variance: StepVariance = StepVariance.FORWARD

    def __call__(
        self, process: LinearProcess, score: Score, start: Tensor, s_min: float, generator: torch.Generator
    ) -> Tensor:
        """Computes the loss for new noise added to rows ``start`` of the data.

        Raises:
            UnsupportedError: unless the process is variance preserving, as for :meth:`DiscreteNoise.of`.
            InvalidInputError: if no step is left.
        """
        if not isinstance(process, VariancePreserving):
            raise UnsupportedError(
                f"DiscreteDenoising needs a VariancePreserving process, got {type(process).__name__}; use Denoising()."
            )
        chain = DiscreteNoise.of(process, self.grid)
        weights = chain.weights(self.variance)
        kept = torch.nonzero((chain.times[1:] >= s_min) & weights.isfinite()).flatten()
        if not len(kept):
            raise InvalidInputError(
                f"no step of the grid is between s_min = {s_min:g} and the horizon; refine the grid."
            )
        chosen = kept[torch.randint(len(kept), (len(start),), generator=generator, device="cpu")]
        noise = torch.randn(start.shape, generator=generator, dtype=start.dtype, device=generator.device).to(start)
        variances = chain.variances[chosen + 1].unsqueeze(1)
        x = (1.0 - variances).sqrt().to(start) * start + variances.sqrt().to(start) * noise
        t = chain.times[chosen + 1]
        predicted = noise_from_score(process, t, checked_score(score, t, x))
        return len(kept) * (weights[chosen].to(start) * (predicted - noise).square().sum(1)).mean()
