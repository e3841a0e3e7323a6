"""Samplers at equal numbers of score evaluations: ``python -m docs.benchmarks.samplers``.

Reverse diffusion of two moons with the exact score of the training points. A perfect sampler returns draws of these
points with replacement; compare with their row. W2 to fresh samples is exact; the floor is that of equally many other
fresh samples. ``off`` is the mean distance to the nearest training point: 0 for a perfect sampler. Every sampler starts
from the same states, uses knots of one family, and ends with ``E[X_0 | X_{s_min}]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from sbridge.benchmarks.output import row
from sbridge.benchmarks.tables import mean
from sbridge.data import datasets
from sbridge.diffusion import (
    AncestralSampler,
    AnnealedLangevin,
    DDIMSampler,
    ExactScore,
    FlowSampler,
    PredictorCorrector,
    Sampler,
    StepVariance,
    StochasticSampler,
    reverse_diffusion,
)
from sbridge.errors import InvalidInputError
from sbridge.laws import Samples
from sbridge.metrics import ExactW2
from sbridge.processes import EulerMaruyama, ExactTransition, VariancePreserving
from sbridge.random import derive, generator
from sbridge.simulation.ode import DormandPrince, Euler, Heun, RungeKutta4
from sbridge.time import TimeGrid

# name, sampler on a grid, evaluations a step
SAMPLERS: tuple[tuple[str, Callable[[TimeGrid], Sampler], int], ...] = (
    ("Euler–Maruyama", lambda grid: StochasticSampler(EulerMaruyama(), grid), 1),
    ("exact step (default)", lambda grid: StochasticSampler(ExactTransition(), grid), 1),
    ("ancestral, σ² = β", lambda grid: AncestralSampler(StepVariance.FORWARD, grid), 1),
    ("ancestral, σ² = β̃", lambda grid: AncestralSampler(StepVariance.POSTERIOR, grid), 1),
    ("predictor–corrector", lambda grid: PredictorCorrector(grid=grid), 2),
    ("annealed Langevin", lambda grid: AnnealedLangevin(5, grid=grid), 5),
    ("flow: Euler", lambda grid: FlowSampler(Euler(), grid), 1),
    ("flow: DDIM", lambda grid: DDIMSampler(grid), 1),
    ("flow: Heun", lambda grid: FlowSampler(Heun(), grid), 2),
    ("flow: RK4", lambda grid: FlowSampler(RungeKutta4(), grid), 4),
)
TOLERANCES = (3e-2, 3e-3, 3e-4, 3e-5)


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        seeds: data seeds.
        points: training points, whose exact score is used.
        rows: generated samples, and fresh samples.
        evaluations: numbers of score evaluations, one row of the table each.
        s_min: the first positive knot, a fraction of the horizon.
        exponent: knots are ``(a + (1 − a) k/n)^exponent`` with ``a`` such that the first is ``s_min``.
    """

    seeds: int = 3
    points: int = 2000
    rows: int = 1000
    evaluations: tuple[int, ...] = (20, 50, 100, 200)
    s_min: float = 1e-3
    exponent: float = 3.0


def main(settings: Settings) -> None:
    """Prints a line per sampler and number of evaluations."""
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for seed in range(settings.seeds):
        for name, budget, cells in run(seed, settings):
            found.setdefault((name, budget), []).append(cells)
    for (name, budget), cells in found.items():
        w2, off, used = zip(*cells, strict=True)
        value = mean(w2)
        row(
            f"{name}, {budget}" if budget else name,
            W2=f"{value.value:.3f} ± {value.standard_error:.3f}",
            off=f"{mean(off).value:.4f}",
            used=f"{mean(used).value:.0f}",
        )


def run(seed: int, settings: Settings) -> Iterator[tuple[str, int, tuple[float, float, float]]]:
    """Name, budget, and ``(W2, distance to the nearest training point, evaluations)`` of every line on one seed."""

    def draw(n: int, key: str) -> Tensor:
        return datasets.make("two_moons", n, derive(seed, key)).double()

    points, fresh, metric = draw(settings.points, "train"), draw(settings.rows, "test"), ExactW2(settings.rows)
    data = Samples(points)

    def judge(rows: Tensor) -> tuple[float, float]:
        return metric(rows, fresh, generator(0)), float(torch.cdist(rows, points).min(1).values.mean())

    yield "floor: equally many fresh samples", 0, (*judge(draw(settings.rows, "floor")), 0.0)
    again = data.sample(settings.rows, generator(derive(seed, "again")))
    yield "draws of the training points", 0, (*judge(again), 0.0)
    process = VariancePreserving(stationary_std=float(points.var(0).mean().sqrt()), mean=points.mean(0))
    bridge = reverse_diffusion(process, data, ExactScore(process, data))
    start = bridge.backward.starts(settings.rows, seed=derive(seed, "start"))
    for name, sampler, budget in lineup(settings):
        sampled = sampler.run(bridge, start, seed=derive(seed, "noise"))
        yield name, budget, (*judge(sampled.x), sampled.evaluations)


def lineup(settings: Settings) -> Iterator[tuple[str, Sampler, int]]:
    """Every sampler at every budget, as close as whole steps and one evaluation for the end allow."""
    for budget in settings.evaluations:
        for name, make, cost in SAMPLERS:
            # Langevin works at the knots: one more than there are steps between them
            steps = (budget - 1) // cost - (name == "annealed Langevin")
            if steps < 1:
                raise InvalidInputError(f"{budget} evaluations leave no step for {name}; give at least 20.")
            yield name, make(grid(steps, settings)), budget
    for tolerance in TOLERANCES:
        method = DormandPrince(tolerance, tolerance)
        yield f"flow: adaptive, {tolerance:g}", FlowSampler(method, grid(1, settings)), 0


def grid(steps: int, settings: Settings) -> TimeGrid:
    """``0``, and ``steps`` steps from ``s_min`` to the horizon."""
    a = settings.s_min ** (1.0 / settings.exponent)
    knots = ((a + (1.0 - a) * k / steps) ** settings.exponent for k in range(steps))
    return TimeGrid((0.0, *knots, 1.0))


if __name__ == "__main__":
    main(tyro.cli(Settings))
