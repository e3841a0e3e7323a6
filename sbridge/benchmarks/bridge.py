"""Bridges with a known answer: ``python -m sbridge.benchmarks.bridge``.

Mixture pairs (:class:`~sbridge.benchmarks.pairs.MixturePair`), 100 000 unpaired rows a side. For each solver: cBW²-UVP
in % of the forward process over 200 conditions × 1000 draws, its excess over perfect draws with the same seed (± its
standard error over the conditions), marginal BW²-UVP, path KL from the truth, and seconds of the fit. Floors: perfect
draws, and the true drift on the steps of ``imf`` if it is among the solvers; trivial rows: no control, and the
independent coupling. ``light`` is the published recipe for mixture potentials, fitted in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor

from sbridge.benchmarks.light import LightRecipe
from sbridge.benchmarks.pairs import MixturePair
from sbridge.benchmarks.tables import row, timed
from sbridge.bures import conditional_uvp, marginal_uvp
from sbridge.errors import unknown_name
from sbridge.fitting import fit
from sbridge.laws import Samples
from sbridge.measures import Estimate, PathMeasure, path_kl
from sbridge.potentials import MixtureControl, MixtureKernel
from sbridge.random import derive, generator
from sbridge.solvers.base import Solver
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.imf import IMF
from sbridge.solvers.mixture import MixtureBridge
from sbridge.solvers.sinkhorn import SinkhornBridge
from sbridge.time import TimeGrid

IMF_NAME = "imf"
SOLVERS: dict[str, Solver] = {
    "mixture": MixtureBridge(),
    IMF_NAME: IMF(),
    "sinkhorn": SinkhornBridge(max_rows=4096),
    "gaussian": GaussianBridge(),
}
"""By name, one set of hyperparameters for the whole table; ``light`` is the published recipe beside them."""
LIGHT = "light"

Fitted = tuple[PathMeasure, float]


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        solver: names of rows.
        dims: dimensions.
        epsilons: noise levels ε.
        seeds: seeds of pairs.
        rows: training rows a side.
        conditions: source rows at which conditional laws are judged.
        draws: of each conditional law.
        paths: for the path KL.
    """

    solver: tuple[str, ...] = ("mixture", LIGHT)
    dims: tuple[int, ...] = (2, 16, 64)
    epsilons: tuple[float, ...] = (0.1, 1.0, 10.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    rows: int = 100_000
    conditions: int = 200
    draws: int = 1000
    paths: int = 2000


def main(settings: Settings) -> None:
    """Prints a block per pair, a line per method."""
    for name in settings.solver:
        if name not in (*SOLVERS, LIGHT):
            raise unknown_name("solver", name, (*SOLVERS, LIGHT))
    for dim in settings.dims:
        for epsilon in settings.epsilons:
            for seed in settings.seeds:
                run(MixturePair(dim, epsilon, seed), settings)


def run(pair: MixturePair, settings: Settings) -> None:
    """Every method on one pair."""
    judge = Judge.of(pair, settings)
    name = f"d={pair.dim} ε={pair.epsilon:g} pair {pair.seed}"
    x0, x1 = pair.sample(settings.rows, seed=derive(pair.seed, "train"))
    row(f"{name} perfect draws", **judge.cells(pair.truth, truth=True))
    if IMF_NAME in settings.solver:
        stepped = replace(pair.truth, end_kernel=None, grid=IMF().grid)
        row(f"{name} true drift, {stepped.grid.steps} steps", **judge.cells(stepped))
    row(f"{name} no control", **judge.cells(PathMeasure(pair.reference, None, pair.source, grid=TimeGrid.uniform(20))))
    independent = PathMeasure(pair.reference, None, pair.source, end_kernel=IndependentKernel(x1))
    row(f"{name} independent", **judge.cells(independent, path=False))
    for solver in settings.solver:
        task = FITS[solver] if solver in FITS else _solved(SOLVERS[solver])
        measure, seconds = task(pair, x0, x1)
        row(f"{name} {solver}", **judge.cells(measure), seconds=f"{seconds:.1f}")


@dataclass(frozen=True)
class IndependentKernel:
    """A target row for any source row."""

    rows: Tensor

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Rows at random."""
        return self.rows[torch.randint(len(self.rows), (len(x),), generator=generator)]

    def mean(self, x: Tensor) -> Tensor:
        """The mean row."""
        return self.rows.mean(0).expand_as(x)


@dataclass(frozen=True)
class Judge:
    """What all methods on one pair share: conditions, exact moments, and the scores of perfect draws."""

    pair: MixturePair
    settings: Settings
    x: Tensor
    floor: Tensor

    @classmethod
    def of(cls, pair: MixturePair, settings: Settings) -> Judge:
        """Draws the conditions."""
        x = pair.source.sample(settings.conditions, generator(derive(pair.seed, "conditions"))).float()
        judge = cls(pair, settings, x, torch.empty(0))
        return replace(judge, floor=judge.conditional(pair.truth))

    def conditional(self, measure: PathMeasure) -> Tensor:
        """cBW²-UVP for each condition."""
        variance = float(self.pair.end_moments[1].trace())
        seed = derive(self.pair.seed, "draws")
        moments = self.pair.moments(self.x)
        return conditional_uvp(measure, self.x, moments, variance, seed=seed, draws=self.settings.draws)

    def cells(self, measure: PathMeasure, *, truth: bool = False, path: bool = True) -> dict[str, str]:
        """One line of the table."""
        scores = self.floor if truth else self.conditional(measure)
        excess = Estimate.of(scores - self.floor)
        starts = self.pair.source.sample(10_000, generator(derive(self.pair.seed, "starts"))).float()
        ends = measure.transport(starts, seed=derive(self.pair.seed, "ends"))
        cells = {
            "cBW-UVP": f"{float(scores.mean()):.4f}",
            "excess": f"{excess.value:.4f} ± {excess.standard_error:.4f}",
            "BW-UVP": f"{marginal_uvp(ends, *self.pair.end_moments):.4f}",
        }
        if path and not truth:
            cells["KL"] = f"{self._path_kl(measure, starts):.4f}"
        return cells

    def _path_kl(self, measure: PathMeasure, starts: Tensor) -> float:
        """``KL(P* ‖ P)`` on paths of the truth, on the steps of ``measure``."""
        own = replace(measure, start=Samples(starts), end_kernel=None)
        exact = replace(own, control=self.pair.truth.control)
        return path_kl(exact, own, self.settings.paths, seed=derive(self.pair.seed, "paths")).value


def _solved(solver: Solver) -> Callable[[MixturePair, Tensor, Tensor], Fitted]:
    def task(pair: MixturePair, x0: Tensor, x1: Tensor) -> Fitted:
        bridge, seconds = timed(lambda: fit(x0, x1, reference=pair.reference, solver=solver, seed=0))
        return bridge.forward, seconds

    return task


def _light(pair: MixturePair, x0: Tensor, x1: Tensor) -> Fitted:
    potential, seconds = timed(lambda: LightRecipe().fit(x0, x1, pair.epsilon, seed=0))
    control, kernel = MixtureControl(potential), MixtureKernel(potential)
    return PathMeasure(pair.reference, control, pair.source, end_kernel=kernel), seconds


FITS: dict[str, Callable[[MixturePair, Tensor, Tensor], Fitted]] = {LIGHT: _light}


if __name__ == "__main__":
    main(tyro.cli(Settings))
