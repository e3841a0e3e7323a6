"""Integrals over time along stored paths: a number for each path, at the given step and at twice that step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, NonFiniteError
from sbridge.measures import Estimate, PathMeasure, Paths
from sbridge.measures.measure import pieces
from sbridge.processes.base import Time, as_time
from sbridge.random import ROW_BLOCK, Seed, as_seed
from sbridge.simulation import simulate
from sbridge.storage.registry import register

RowFunction = Callable[[Time, Tensor], Tensor]
"""A function ``(t, x) → (batch,)``."""


class Quadrature(ABC):
    """A rule for ``∫ f dt`` from values at knots: :class:`Trapezoid`, :class:`LeftPoint` or :class:`RightPoint`."""

    @abstractmethod
    def shares(self) -> tuple[float, float]:
        """The weights of the earlier and the later end of an interval, in the direction of the paths."""

    def weights(self, spans: Tensor) -> Tensor:
        """Returns the weight of every knot for intervals of lengths ``spans``, shape ``(N + 1,)``."""
        weights = spans.new_zeros(len(spans) + 1)
        first, last = self.shares()
        weights[:-1] += first * spans
        weights[1:] += last * spans
        return weights


@register
@dataclass(frozen=True)
class Trapezoid(Quadrature):
    """The trapezoidal rule: order two in the step if the states have the distribution of the continuous process."""

    def shares(self) -> tuple[float, float]:
        """The weights ½ and ½."""
        return 0.5, 0.5


@register
@dataclass(frozen=True)
class LeftPoint(Quadrature):
    """The value at the start of each step: order one, exact for the costs of a chain, no value needed at the end."""

    def shares(self) -> tuple[float, float]:
        """The weights 1 and 0."""
        return 1.0, 0.0


@register
@dataclass(frozen=True)
class RightPoint(Quadrature):
    """The value at the end of each step: order one, needs no value at the start of the paths."""

    def shares(self) -> tuple[float, float]:
        """The weights 0 and 1."""
        return 0.0, 1.0


@dataclass(frozen=True, eq=False)
class PathValues:
    """Values of a functional, one for each path.

    Args:
        values: float64, shape ``(batch,)``.
        coarse: the same from every second knot of the same paths; equal to ``values`` if there is no integral over
            time.
    """

    values: Tensor
    coarse: Tensor

    @classmethod
    def exact(cls, values: Tensor) -> PathValues:
        """Wraps values without a time-step error."""
        values = values.detach().double()
        return cls(values, values)

    @cached_property
    def estimate(self) -> Estimate:
        """The mean over paths with its standard error."""
        return Estimate.of(self.values)

    @cached_property
    def allowance(self) -> float:
        """The change ``|R(Δ) − R(Δ/2)|`` of the mean when the step is halved to that of the paths."""
        return abs(float((self.coarse - self.values).mean()))

    def __add__(self, other: PathValues) -> PathValues:
        """Adds path by path."""
        return PathValues(self.values + other.values, self.coarse + other.coarse)

    def __sub__(self, other: PathValues) -> PathValues:
        """Subtracts path by path: common parts of two functionals of the same paths do not add to the error."""
        return self + -other

    def __neg__(self) -> PathValues:
        """Computes ``−F``."""
        return PathValues(-self.values, -self.coarse)

    def __mul__(self, factor: float) -> PathValues:
        """Computes ``factor · F``."""
        return PathValues(factor * self.values, factor * self.coarse)

    def __str__(self) -> str:
        """Formats mean, standard error, and the change by halving the step."""
        return f"{self.estimate}, step halving {self.allowance:.2g}"


def integrate(
    paths: Paths, integrand: RowFunction, quadrature: Quadrature = Trapezoid(), start_time: float = 0.0
) -> PathValues:
    """Computes ``∫ f(t, X_t) dt`` along each path, over bridge times from ``start_time`` to ``T``.

    Args:
        paths: of either direction.
        integrand: ``f``, called with bridge time as a float, once for every knot that has a weight.
        quadrature: the rule between knots; its order is the error's.
        start_time: a knot of the grid before its last.

    Raises:
        InvalidInputError: if ``start_time`` is no such knot, or ``f`` returns another shape than ``(batch,)``.
        NonFiniteError: if ``f`` is NaN or infinite, with the time where it is.
    """
    inside = knots_from(paths, start_time)
    times = paths.t[inside]
    fine = quadrature.weights(times.diff().abs())
    coarse = torch.zeros_like(fine)
    every_second = [*range(0, len(inside) - 1, 2), len(inside) - 1]
    coarse[every_second] = quadrature.weights(times[every_second].diff().abs())
    total = paths.x.new_zeros(2, paths.x.shape[1], dtype=torch.float64)
    with torch.no_grad():
        for k, t, weight, wide in zip(inside.tolist(), times.tolist(), fine.tolist(), coarse.tolist(), strict=True):
            if weight or wide:
                value = row_values(integrand, t, paths.x[k], "the integrand").double()
                total[0] += weight * value
                total[1] += wide * value
    return PathValues(total[0], total[1])


def knots_from(paths: Paths, start_time: float) -> Tensor:
    """Returns the indices, in the order visited, of the states at bridge times from ``start_time`` on."""
    times = paths.t
    near = (times - start_time).abs() <= 1e-9 * paths.chain.process.horizon
    found = torch.nonzero((times > start_time) | near).flatten()
    if not bool(near.any()) or len(found) < 2:
        raise InvalidInputError(
            f"time {start_time:g} is not a knot of these paths before their last ({float(times.max()):g}); put it into "
            "their grid: grid.including([time / horizon])."
        )
    return found


def streamed(
    measure: PathMeasure, n: int, functional: Callable[[Paths], PathValues], *, seed: Seed, chunk: int = ROW_BLOCK
) -> PathValues:
    """Computes ``functional`` of ``measure.sample(n, seed=seed)``, keeping only ``chunk`` rows at a time.

    Args:
        measure: the measure that is simulated.
        n: number of paths.
        functional: any of this package, with its other arguments bound.
        seed: of start and noise.
        chunk: number of paths, rounded up to a multiple of 1024.
    """
    seed = as_seed(seed)
    starts = measure.starts(n, seed=seed)
    chain, parts = measure.chain(starts), []
    for rows, noise in pieces(starts, chain.length, seed, chunk):
        xi = noise.stored()
        states, controls = simulate(chain, measure.control, starts[rows], xi)
        parts.append(functional(Paths(states, xi, controls, chain)))
    return PathValues(torch.cat([part.values for part in parts]), torch.cat([part.coarse for part in parts]))


def row_values(function: RowFunction, t: Time, x: Tensor, name: str) -> Tensor:
    """Computes ``function(t, x)``; raises a descriptive error unless it is a finite tensor ``(batch,)``."""
    values = function(t, x)
    if not isinstance(values, Tensor) or values.shape != x.shape[:1]:
        said = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InvalidInputError(
            f"{name} must return one number per row, shape ({len(x)},); it returned {said}. A sum over coordinates is "
            "x.square().sum(1)."
        )
    if not bool(torch.isfinite(values).all()):
        moment = float(as_time(t).detach().min())
        largest = float(x.detach().abs().max())
        raise NonFiniteError(f"{name} is NaN or infinite at t = {moment:g}, where states reach {largest:g}.")
    return values
