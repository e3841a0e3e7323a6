"""Reverse diffusion on two moons: ``python -m docs.benchmarks.diffusion``.

Three tables of means over seeds. The first compares the trained score with the exact score of the training points, by
noise level. The second shows whether their reversals return training points or new ones, when the last step gives
``E[X_0 | X_{s_min}]``. The third compares samplers at equal numbers of network evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import tyro
from torch import Tensor

from sbridge.benchmarks.output import row
from sbridge.benchmarks.tables import mean, timed
from sbridge.data import datasets
from sbridge.diffusion import ExactScore, Score, end_distribution, reverse_diffusion
from sbridge.diffusion.accessors import score_of
from sbridge.diffusion.samplers import (
    AncestralSampler,
    DDIMSampler,
    FlowSampler,
    Sampler,
    StochasticSampler,
)
from sbridge.diffusion.training import ScoreMatching
from sbridge.fitting import solve
from sbridge.laws import Samples
from sbridge.metrics import ExactW2
from sbridge.problems import BridgeProblem
from sbridge.processes import EulerMaruyama, LinearProcess, VariancePreserving
from sbridge.random import derive, generator
from sbridge.simulation.ode import Heun, RungeKutta4
from sbridge.solutions import Bridge
from sbridge.time import TimeGrid

DATA = "two_moons"


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        seeds: of data and training.
        rows: training points.
        fresh: generated samples, and fresh samples to compare them with.
        solver: learns the score.
        levels: noise levels, as fractions of the horizon, at which scores are compared.
        close: largest distance of a copy from a training point, in units of the data.
        start_time: ``s_min`` of the exact reversal, as a fraction of the horizon; the network has its own.
        steps: of the memorisation runs.
        evaluations: of the network, for each row of the comparison of samplers.
    """

    seeds: int = 3
    rows: int = 1_000
    fresh: int = 2_000
    solver: ScoreMatching = field(default_factory=ScoreMatching)
    levels: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    close: float = 1e-3
    start_time: float = 1e-6
    steps: int = 400
    evaluations: tuple[int, ...] = (20, 40, 80, 160)


def main(settings: Settings) -> None:
    """Prints a block for each table."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for seed in range(settings.seeds):
        for block, name, column, value in run(seed, settings):
            found.setdefault((block, name), {}).setdefault(column, []).append(value)
    for block in dict.fromkeys(block for block, _ in found):
        for name in (name for one, name in found if one == block):
            cells = {column: mean(values) for column, values in found[block, name].items()}
            row(block, of=f"{name:<28}", **cells)


def run(seed: int, settings: Settings) -> Iterator[tuple[str, str, str, float]]:
    """``(block, line, column, value)`` for one seed."""
    data = Samples(datasets.make(DATA, settings.rows, derive(seed, "training")))
    process = VariancePreserving(stationary_std=float(data.rows.var(0).mean().sqrt()), mean=data.rows.mean(0).double())
    problem = BridgeProblem(data, end_distribution(process, data), process)
    bridge, seconds = timed(lambda: solve(problem, settings.solver, seed=seed))
    yield "training", type(settings.solver.objective).__name__, "seconds", seconds
    exact, learnt = ExactScore(process, data), score_of(bridge)
    for level in settings.levels:
        yield "score", f"t = {level:g} T", "relative error", relative_error(process, data, learnt, exact, level, seed)
    starts = {
        "exact kernel score": (exact, settings.start_time),
        "trained network": (learnt, settings.solver.start_time),
    }
    for name, (score, start_time) in starts.items():
        reversal = reverse_diffusion(process, data, score, grid=refined(start_time, settings.steps))
        rows = StochasticSampler()(reversal, settings.fresh, seed=derive(seed, "reversal"))
        for column, value in memorised(rows, data, settings):
            yield "memorisation", name, column, value
    fresh = datasets.make(DATA, settings.fresh, derive(seed, "fresh"))
    for column, value in memorised(fresh, data, settings):
        yield "memorisation", "fresh rows", column, value
    yield from compared(bridge, seed, settings)


def relative_error(
    process: LinearProcess, data: Samples, learnt: Score, exact: Score, level: float, seed: int
) -> float:
    """``(E|s_θ − s|² / E|s|²)^½`` over noised training points."""
    g, t = generator(derive(seed, "noise")), level * process.horizon
    start, step = data.sample(20_000, g), process.transition(0.0, t)
    x = step.mean(start) + step.root.to(start)(torch.randn(start.shape, generator=g))
    with torch.no_grad():
        truth = exact(t, x)
        return math.sqrt(float((learnt(t, x) - truth).square().sum() / truth.square().sum()))


def memorised(rows: Tensor, data: Samples, settings: Settings) -> Iterator[tuple[str, float]]:
    """Distances of ``rows`` to training points."""
    nearest = torch.cdist(rows.double(), data.rows.double()).amin(1)  # by a matrix product: float32 has errors of 1e-3
    yield f"share within {settings.close:g}", float((nearest < settings.close).double().mean())
    yield "median distance", float(nearest.median())


def refined(start_time: float, steps: int, exponent: float = 7.0) -> TimeGrid:
    """``0``, then ``steps`` steps from ``start_time`` to 1, equal in ``t^(1/exponent)`` (Karras et al. 2022)."""
    low = start_time ** (1.0 / exponent)
    return TimeGrid((0.0, *((low + (1.0 - low) * k / steps) ** exponent for k in range(steps)), 1.0))


def samplers(evaluations: int) -> dict[str, Sampler]:
    """Every sampler with this many evaluations of the score, one of them in the last step."""

    def grid(cost: float) -> TimeGrid:
        return refined(1e-3, max(round((evaluations - 1) / cost), 1), 3.0)

    makers: dict[str, Callable[[], Sampler]] = {
        "Euler–Maruyama": lambda: StochasticSampler(EulerMaruyama(), grid(1)),
        "exact step": lambda: StochasticSampler(grid=grid(1)),
        "DDPM ancestral": lambda: AncestralSampler(grid=grid(1)),
        "DDIM": lambda: DDIMSampler(grid=grid(1)),
        "flow, Heun": lambda: FlowSampler(Heun(), grid(2)),
        "flow, Runge–Kutta 4": lambda: FlowSampler(RungeKutta4(), grid(4)),
    }
    return {name: make() for name, make in makers.items()}


def compared(bridge: Bridge, seed: int, settings: Settings) -> Iterator[tuple[str, str, str, float]]:
    """W2 between generated and fresh samples, and the floor: W2 between two sets of fresh samples."""
    metric = ExactW2(settings.fresh)
    fresh, other = (datasets.make(DATA, settings.fresh, derive(seed, name)) for name in ("fresh", "floor"))

    def judge(rows: Tensor) -> float:
        return metric(rows, fresh, generator(0))

    yield "samplers", "floor", "W2", judge(other)
    again = bridge.forward.start.sample(settings.fresh, generator(derive(seed, "again")))
    yield "samplers", "training points", "W2", judge(again)
    for evaluations in settings.evaluations:
        for name, sampler in samplers(evaluations).items():
            drawn = sampler.run(bridge, settings.fresh, seed=derive(seed, "samplers"))
            yield "samplers", name, f"W2 at {evaluations}", judge(drawn.x)


if __name__ == "__main__":
    main(tyro.cli(Settings))
