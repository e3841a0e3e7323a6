"""Two-dimensional sets: ``python -m docs.benchmarks.planar``.

W2 between transported fresh source samples and fresh target samples, compared with its floor (two independent sets of
target samples), the trivial answer (the source itself) and optimal-transport maps fitted on the same training samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tyro
from torch import Tensor

from sbridge import datasets, transport
from sbridge.benchmarks.output import row
from sbridge.benchmarks.tables import SOLVERS, mean, timed
from sbridge.errors import check_known
from sbridge.fitting import choose_sigma, fit
from sbridge.metrics import ExactW2
from sbridge.processes import BrownianMotion
from sbridge.random import derive, generator

PAIRS = (
    ("gaussian", "eight_gaussians"),
    ("two_moons", "eight_gaussians"),
    ("gaussian", "two_moons"),
    ("gaussian", "s_curve"),
)


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        seeds: data seeds.
        rows: training samples a side.
        fresh: fresh samples a side, for the score.
        solvers: names of rows of the solver table.
        map_rows: training samples of the optimal-transport maps, whose memory grows with their square.
    """

    seeds: int = 3
    rows: int = 10_000
    fresh: int = 4_000
    solvers: tuple[str, ...] = tuple(SOLVERS)
    map_rows: int = 4_000

    def __post_init__(self) -> None:
        check_known("solver", self.solvers, SOLVERS)


def main(settings: Settings) -> None:
    """Prints a block per pair with a line per method."""
    for source, target in PAIRS:
        scores: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        for seed in range(settings.seeds):
            for name, (value, time) in run(source, target, seed, settings).items():
                scores.setdefault(name, []).append(value)
                seconds.setdefault(name, []).append(time)
        for name, values in scores.items():
            row(f"{source} → {target}", method=f"{name:<24}", W2=mean(values), seconds=mean(seconds[name]))


def run(source: str, target: str, seed: int, settings: Settings) -> dict[str, tuple[float, float]]:
    """``(W2, seconds of the fit)`` of every method on one data seed."""

    def draw(name: str, n: int, key: str) -> Tensor:
        return datasets.make(name, n, derive(seed, key, name))

    x0, x1 = draw(source, settings.rows, "train 0"), draw(target, settings.rows, "train 1")
    fresh0, fresh1 = draw(source, settings.fresh, "test 0"), draw(target, settings.fresh, "test 1")
    metric = ExactW2(settings.fresh)

    def judge(rows: Tensor) -> float:
        return metric(rows, fresh1, generator(0))

    sigma = choose_sigma(x0, x1).sigma
    found = {
        "floor": (judge(draw(target, settings.fresh, "floor")), 0.0),
        "source, unmoved": (judge(fresh0), 0.0),
    }
    few0, few1 = x0[: settings.map_rows], x1[: settings.map_rows]
    maps: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "exact OT map": lambda: transport.exact_map(few0, few1),
        "entropic map": lambda: transport.entropic_map(few0, few1, sigma**2),
        "Gaussian map": lambda: transport.gaussian_map(x0, x1),
    }
    for name, make in maps.items():
        fitted, time = timed(make)
        found[name] = (judge(fitted(fresh0)), time)
    for name in settings.solvers:
        solver = SOLVERS[name]
        bridge, time = timed(
            lambda solver=solver: fit(x0, x1, reference=BrownianMotion(sigma=sigma), solver=solver, seed=seed)
        )
        found[name] = (judge(bridge.transport(fresh0, seed=derive(seed, "transport"))), time)
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings))
