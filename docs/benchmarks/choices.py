"""The default solver against the plug-in: ``python -m docs.benchmarks.choices``.

On pairs with a known bridge, the choice of :func:`~sbridge.fitting.choice.choose_solver` and
:class:`~sbridge.solvers.sinkhorn.SinkhornBridge` are fitted on the same samples and transport the same fresh source
samples. A line gives the energy distance of each to fresh target samples, and those of perfect draws and of the source,
unmoved. The plug-in draws end points among its training samples. The difference, chosen minus plug-in, is a mean over
seeds with its standard error.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from sbridge.benchmarks.bridge import PAIRS
from sbridge.benchmarks.output import row
from sbridge.benchmarks.planar_pairs import TARGETS, Pair
from sbridge.benchmarks.tables import mean
from sbridge.errors import InvalidInputError, check_known
from sbridge.fitting import solve
from sbridge.fitting.choice import choose_solver
from sbridge.laws import Samples
from sbridge.metrics import energy_distance
from sbridge.problems import BridgeProblem
from sbridge.random import derive
from sbridge.solvers.sinkhorn import SinkhornBridge


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        pairs: names of pairs of the bridge benchmark.
        dims: dimensions of mixture and Gaussian pairs.
        epsilons: noise levels ε.
        rows: training samples a side.
        fresh: fresh samples a side for the scores.
        seeds: of pairs, data and fits.
    """

    pairs: tuple[str, ...] = ("mixture", "ring", "moons")
    dims: tuple[int, ...] = (2, 16)
    epsilons: tuple[float, ...] = (1.0,)
    rows: tuple[int, ...] = (500, 10_000)
    fresh: int = 4000
    seeds: tuple[int, ...] = (3, 4, 5)

    def __post_init__(self) -> None:
        check_known("pair", self.pairs, PAIRS)
        if not self.seeds or self.fresh < 2 or min(self.rows) < 2:
            raise InvalidInputError(f"need a seed, and at least two samples to fit and to score; got {self}.")


def scores(pair: Pair, rows: int, fresh: int, seed: int) -> tuple[str, dict[str, float]]:
    """Returns the name of the chosen solver, and energy distances to fresh target samples."""
    x0, x1 = pair.sample(rows, seed=derive(seed, "choice", "train"))
    source, target = pair.sample(fresh, seed=derive(seed, "choice", "fresh"))
    perfect = pair.sample(fresh, seed=derive(seed, "choice", "perfect"))[1]
    problem = BridgeProblem(Samples(x0), Samples(x1), pair.reference)
    chosen = choose_solver(problem).solver
    found = {"perfect draws": energy_distance(perfect, target), "unmoved": energy_distance(source, target)}
    for name, solver in (("chosen", chosen), ("plug-in", SinkhornBridge())):
        bridge = solve(problem, solver, seed=seed)
        found[name] = energy_distance(bridge.transport(source, seed=derive(seed, "ends")), target)
    return type(chosen).__name__, found


def main(settings: Settings) -> None:
    """Prints a line per pair and number of samples."""
    for name in settings.pairs:
        for dim in (2,) if name in TARGETS else settings.dims:
            for epsilon in settings.epsilons:
                for rows in settings.rows:
                    runs = [
                        scores(PAIRS[name](dim, epsilon, seed), rows, settings.fresh, seed) for seed in settings.seeds
                    ]
                    columns = {key: mean([found[key] for _, found in runs]) for key in runs[0][1]}
                    excess = mean([found["chosen"] - found["plug-in"] for _, found in runs])
                    row(f"{name} d={dim} ε={epsilon:g} {rows} rows: {runs[0][0]}", excess=excess, **columns)


if __name__ == "__main__":
    main(tyro.cli(Settings))
