"""Scores of a bridge relative to a known one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sbridge.benchmarks.bures import conditional_uvp, marginal_uvp
from sbridge.benchmarks.planar_pairs import Pair
from sbridge.evaluation.baselines import Map
from sbridge.laws import Samples
from sbridge.measures import Estimate, PathMeasure, path_kl
from sbridge.random import derive, generator
from sbridge.storage.documents import Json

_STARTS = 10_000


@dataclass(frozen=True)
class Effort:
    """Numbers of draws.

    Args:
        conditions: source rows at which conditional distributions are judged.
        draws: of each conditional distribution.
        paths: for either path divergence.
    """

    conditions: int = 200
    draws: int = 1000
    paths: int = 2000


@dataclass(frozen=True)
class Scores:
    """The numbers in one line of the table.

    Args:
        conditional: cBW²-UVP in %.
        excess: its difference to perfect draws with the same seed, with its standard error over the conditions.
        marginal: BW²-UVP of 10 000 transported starts, in %.
        from_truth: ``KL(P* ‖ P)`` on the steps of the measure that is judged; ``None`` if it has no paths.
        to_truth: ``KL(P ‖ P*)``.
    """

    conditional: float
    excess: Estimate
    marginal: float
    from_truth: Estimate | None = None
    to_truth: Estimate | None = None

    @classmethod
    def from_json(cls, document: Json) -> Scores:
        """The scores that :func:`dataclasses.asdict` made a dictionary of."""
        both = (document["from_truth"], document["to_truth"])
        divergences = [None if fields is None else Estimate(**fields) for fields in both]
        return cls(document["conditional"], Estimate(**document["excess"]), document["marginal"], *divergences)


@dataclass(frozen=True, eq=False)
class Judge:
    """Common data of all methods on one pair: conditions, exact moments, seeds, and the scores of perfect draws."""

    pair: Pair
    effort: Effort

    def scores(self, measure: PathMeasure, *, path: bool = True) -> Scores:
        """Computes the scores of a forward measure; divergences only if its control is to be judged."""
        values = self._conditional(measure)
        starts = self.pair.source.sample(_STARTS, generator(derive(self.pair.seed, "starts"))).float()
        ends = measure.transport(starts, seed=derive(self.pair.seed, "ends"))
        found = Scores(
            float(values.mean()), Estimate.of(values - self._floor), marginal_uvp(ends, *self.pair.end_moments)
        )
        if not path:
            return found
        own = replace(measure, start=Samples(starts), end_kernel=None)
        exact = replace(own, control=self.pair.truth.control)
        n, seed = self.effort.paths, derive(self.pair.seed, "paths")
        return replace(found, from_truth=path_kl(exact, own, n, seed=seed), to_truth=path_kl(own, exact, n, seed=seed))

    @cached_property
    def _x(self) -> Tensor:
        draws = generator(derive(self.pair.seed, "conditions"))
        return self.pair.source.sample(self.effort.conditions, draws).float()

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        return self.pair.moments(self._x)

    @cached_property
    def _floor(self) -> Tensor:
        return self._conditional(self.pair.truth)

    def _conditional(self, measure: PathMeasure) -> Tensor:
        variance, seed = float(self.pair.end_moments[1].trace()), derive(self.pair.seed, "draws")
        return conditional_uvp(measure, self._x, self._moments, variance, seed=seed, draws=self.effort.draws)


@dataclass(frozen=True, eq=False)
class IndependentKernel:
    """A plan that draws a target row independently of the source row."""

    rows: Tensor

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws rows at random."""
        return self.rows[torch.randint(len(self.rows), (len(x),), generator=generator)]

    def mean(self, x: Tensor) -> Tensor:
        """Returns the mean row."""
        return self.rows.mean(0).expand_as(x)


@dataclass(frozen=True, eq=False)
class MapKernel:
    """A transport map as a plan: the mass of a row goes to one point."""

    map: Map

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Returns the images."""
        return self.map(x)

    def mean(self, x: Tensor) -> Tensor:
        """Returns the images."""
        return self.map(x)


def shown(value: Estimate | None) -> str:
    """Formats a divergence with its error, in at most 16 characters."""
    if value is None:
        return ""
    size = max(abs(value.value), 1e-12)
    digits = max(0, min(4, 3 - math.floor(math.log10(size))))
    return f"{value.value:.{digits}f} ± {value.standard_error:.{digits}f}" if size < 1e5 else f"{value.value:.1e}"
