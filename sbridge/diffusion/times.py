"""Random times for training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.processes import LinearProcess
from sbridge.storage.registry import register

_CELLS = 512


@runtime_checkable
class Times(Protocol):
    """A distribution of times in ``[s_min, T]`` with its density."""

    def draw(self, process: LinearProcess, s_min: float, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws ``n`` stratified times; returns them with their density, float64, shape ``(n,)``."""
        ...


@register
@dataclass(frozen=True)
class UniformTimes:
    """Times uniform in ``[s_min, T]``."""

    def draw(self, process: LinearProcess, s_min: float, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws times; their density is ``1/(T − s_min)``."""
        check_start(process, s_min)
        span = process.horizon - s_min
        return s_min + span * _stratified(n, generator), torch.full((n,), 1.0 / span, dtype=torch.float64, device="cpu")


@register
@dataclass(frozen=True)
class NoiseTimes:
    """Times with density ``∝ tr(σσᵀ Q_t⁻¹)``, the expected square of the denoising target under likelihood weighting.

    This is importance sampling such that all times contribute equally to the variance (Song et al. 2021,
    arXiv:2101.09258). The density is constant on each of 512 cells that grow geometrically, and known exactly.

    Args:
        data_scale: the standard deviation of the data; if it is positive, the density is ``∝ tr(σσᵀ (data_scale² ΦΦᵀ +
            Q_t)⁻¹)``, like the square of the score itself, which stays finite near the data.
    """

    data_scale: float = 0.0

    def draw(self, process: LinearProcess, s_min: float, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws times; returns them with their density."""
        check_start(process, s_min)
        return _Table(process, s_min, self.data_scale).at(_stratified(n, generator))

    def quantiles(self, process: LinearProcess, s_min: float, steps: int) -> Tensor:
        """Returns ``steps + 1`` times from ``s_min`` to ``T`` that bound intervals of equal probability, float64."""
        check_start(process, s_min)
        heights = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64, device="cpu")
        times, _ = _Table(process, s_min, self.data_scale).at(heights)
        times[0], times[-1] = s_min, process.horizon
        return times


@dataclass(frozen=True, eq=False)
class _Table:
    process: LinearProcess
    s_min: float
    data_scale: float

    def at(self, height: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the times whose cumulative probability is ``height``, and the density there."""
        cell = (torch.searchsorted(self.cumulative, height, right=True) - 1).clamp(0, _CELLS - 1)
        within = (height - self.cumulative[cell]) / self.masses[cell]
        widths = self.knots.diff()
        return self.knots[cell] + within * widths[cell], self.masses[cell] / widths[cell]

    @cached_property
    def knots(self) -> Tensor:
        fractions = torch.linspace(0.0, 1.0, _CELLS + 1, dtype=torch.float64, device="cpu")
        knots = self.s_min * (self.process.horizon / self.s_min) ** fractions
        knots[-1] = self.process.horizon  # not a rounding beyond it
        return knots

    @cached_property
    def masses(self) -> Tensor:
        middle = (self.knots[1:] * self.knots[:-1]).sqrt()
        scale, law = self.process.scale(middle), self.process.transition(0.0, middle)
        dim = scale.dim or law.covariance.dim or 1
        spread = law.covariance + law.map @ law.map.T * self.data_scale**2
        root = spread.cholesky().inverse() @ scale  # whose squared norm is tr(σσᵀ spread⁻¹)
        weight = root.mean_square(dim) * self.knots.diff()
        return weight / weight.sum()

    @cached_property
    def cumulative(self) -> Tensor:
        return torch.cat([self.masses.new_zeros(1), self.masses.cumsum(0)[:-1], self.masses.new_ones(1)])


def check_start(process: LinearProcess, s_min: float) -> None:
    """Raises InvalidInputError unless ``0 < s_min < T``."""
    if not 0.0 < s_min < process.horizon:
        raise InvalidInputError(
            f"s_min must be strictly between 0 and the horizon {process.horizon:g}, got {s_min:g}: at time 0 the "
            "denoising target is infinite. A thousandth of the horizon is a common choice."
        )


def noised(
    process: LinearProcess, times: Times, start: Tensor, s_min: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws times with densities, noised rows and noise; half of the rows get the opposite noise of the other half.

    At small times the target is almost the noise, and its part of the gradient cancels between the two halves. Samples
    are in random order, so times may be sorted.
    """
    half = start[: (len(start) + 1) // 2]
    t, density = times.draw(process, s_min, len(half), generator)
    noise = torch.randn(half.shape, generator=generator, dtype=start.dtype, device=generator.device).to(start.device)
    law = process.transition(0.0, t)
    mean, shift = law.mean(half), law.root.to(start)(noise)
    pairs = ((t, t), (density.to(start), density.to(start)), (mean + shift, mean - shift), (noise, -noise))
    t, density, x, noise = (torch.cat(pair)[: len(start)] for pair in pairs)
    return t, density, x, noise


def _stratified(n: int, generator: torch.Generator) -> Tensor:
    """Draws one uniform number in each of ``n`` equal cells of ``[0, 1]``, in order."""
    cells = torch.arange(n, dtype=torch.float64, device="cpu")
    return (cells + torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")) / n
